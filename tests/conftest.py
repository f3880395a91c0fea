"""What every test is held to: hypothesis profiles, a watched log, no mounts left behind.

A WARNING or worse that dfsfs logs during a test fails it, unless the test announced it:
`@pytest.mark.announce("pattern")` with a regular expression that finds the message. A test that
provokes a failure says so; a warning nobody expected is a find.
"""

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Machines differ in speed and are shared: no test may fail because it was slow.
_UNHURRIED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("dev", _UNHURRIED, max_examples=50)
settings.register_profile("ci", _UNHURRIED, max_examples=200, print_blob=True)
settings.register_profile("soak", _UNHURRIED, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


class _LogWatch(logging.Handler):
    """Keeps what dfsfs warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)


@pytest.fixture(autouse=True)
def _no_unannounced_warnings(request: pytest.FixtureRequest) -> Iterator[None]:
    watch = _LogWatch()
    logger = logging.getLogger("dfsfs")
    logger.addHandler(watch)
    try:
        yield
    finally:
        logger.removeHandler(watch)
    announced = [mark.args[0] for mark in request.node.iter_markers("announce")]
    surprises = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for record in watch.seen
        if not any(re.search(pattern, record.getMessage()) for pattern in announced)
    ]
    if surprises:
        pytest.fail("logged without announcement:\n" + "\n".join(surprises), pytrace=False)


def mounts_below(directory: Path) -> list[str]:
    """Mountpoints below a directory, from the kernel's own table: a dead mount answers no stat."""
    table = Path("/proc/self/mountinfo").read_text()
    # Space, tab, newline and backslash appear as octal escapes.
    points = (line.split(" ")[4].encode().decode("unicode_escape") for line in table.splitlines())
    return [point for point in points if point.startswith(f"{directory}/")]


@pytest.fixture(autouse=True, scope="module")
def _no_mounts_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module leaves no mount behind; one that does is unmounted, so that the next may run."""
    base = tmp_path_factory.getbasetemp()
    yield
    left = mounts_below(base)
    for mountpoint in left:
        subprocess.run(["fusermount3", "-uz", mountpoint], check=False, capture_output=True)
    assert not left, f"mounts left behind: {left}"
