"""Files being made on one real mount and looked at on another."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from dfsfs.testing.processes import ProcessNetwork, ProcessNode


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ProcessNode]]:
    with ProcessNetwork(tmp_path_factory.mktemp("drafts")) as network:
        nodes = [network.start(name) for name in ("a", "b")]
        network.wait_connected()
        yield nodes


def coherence(node: ProcessNode, figure: str) -> int:
    value = node.status()["coherence"][figure]
    assert isinstance(value, int)
    return value


def test_what_is_set_of_an_open_file_is_seen_at_once(mounts: list[ProcessNode]) -> None:
    """Promise 4, whether the other mount has looked before or not, by stat and by listing."""
    a, b = mounts
    for number in range(60):
        path = a.path / f"seen{number}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        for mode in (0o640, 0o711, 0o604):
            os.fchmod(descriptor, mode)
            if mode != 0o640 or number % 2:
                if number % 3:
                    seen = os.stat(b.path / path.name)
                else:
                    with os.scandir(b.path) as entries:
                        (seen,) = [e.stat() for e in entries if e.name == path.name]
                assert seen.st_mode & 0o7777 == mode
        os.utime(descriptor, ns=(1, number))
        os.close(descriptor)
        assert os.stat(b.path / path.name).st_mtime_ns == number


def test_a_copied_file_costs_two_waits_and_no_question(mounts: list[ProcessNode]) -> None:
    a, b = mounts
    count = 40
    source = a.state.parent / "source"
    source.mkdir()
    for number in range(count):
        (source / f"{number}").write_bytes(os.urandom(1000))
        os.chmod(source / f"{number}", 0o640)
    before = coherence(a, "visibility_waits")
    asked = coherence(b, "draft_questions")
    subprocess.run(["cp", "-a", source, a.path / "copy"], check=True)
    waits = coherence(a, "visibility_waits") - before
    assert 2 * count <= waits <= 2 * count + 10  # and those of the directory
    for number in range(count):
        copied, original = b.path / "copy" / f"{number}", source / f"{number}"
        assert copied.read_bytes() == original.read_bytes()
        assert copied.stat().st_mtime_ns == original.stat().st_mtime_ns
    assert coherence(b, "draft_questions") == asked
