"""The soak itself: a short one, and that its judgement can fail."""

import subprocess
import sys
from pathlib import Path

from contrib.soak import complaints, growth

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_soak_finds_nothing_but_what_grows_at_first() -> None:
    """Promise 16: an hour of it is run by hand, see doc/testing.md."""
    options = ("--seconds", "6", "--files", "20", "--rate", "50")
    done = subprocess.run(
        [sys.executable, "-m", "contrib.soak", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
        check=False,
    )
    *points, verdict = done.stdout.splitlines()
    assert points[0].startswith("filled in"), done.stderr
    assert all(line.endswith(" MiB") for line in points[1:]), done.stdout
    assert "growth since warm" in verdict  # nothing is said after it: no complaint


def test_growth_is_seen_and_noise_is_not() -> None:
    noise = [100, 130, 100, 100] * 12
    assert growth(noise) == 0
    assert growth([size + number for number, size in enumerate(noise)]) > 0.3


def test_what_is_beyond_its_bound_or_fails_is_named() -> None:
    worker = {"name": "gc", "failures": 0, "last_failure": ""}
    status = {
        "bounded": {"upload_bytes": [5, 10], "pinned_blocks": [9, 0], "gc_log_bytes": [19, 10]},
        "workers": [worker],
    }
    assert complaints("a", status) == {}
    status["bounded"] = {"upload_bytes": [11, 10], "gc_log_bytes": [21, 10]}
    status["workers"] = [{**worker, "failures": 1, "last_failure": "no space"}]
    assert complaints("a", status) == {
        "a: upload_bytes": "is 11, its bound is 10",
        "a: gc_log_bytes": "is 21, its bound is 10",
        "a: gc": "failed: no space",
    }
