"""What is on nodes that cannot be reached: only its readers notice, and these can be killed."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfsfs.testing.processes import DEADLINE_S, ProcessNetwork, read_whole, wait_until

FETCH_TIMEOUT_S = 45
ALONE = ("--replicas", "1", "--write-concern", "1", "--fetch-timeout", str(FETCH_TIMEOUT_S))
# Without the page cache: a buffered reader is let go by the kernel itself.
READ = """
import os, sys
file, at = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), 0
while count := os.preadv(file, [bytearray(1 << 16)], at):
    at += count
"""
SIZE = 8_000_000  # so many blocks that placement cannot have given all of them to the reader's node


def wait_waiting(process: subprocess.Popen[bytes]) -> None:
    """Until it has been in an uninterruptible wait for a while, so that it is not another one."""
    for _ in range(5):
        wait_until(lambda: " D " in Path(f"/proc/{process.pid}/stat").read_text())
        time.sleep(0.1)


def test_a_reader_of_what_cannot_be_fetched_can_be_killed(tmp_path: Path) -> None:
    """Promise 12; nothing else in the mount stalls meanwhile."""
    with ProcessNetwork(tmp_path) as network:
        a, b = network.start("a", *ALONE), network.start("b", *ALONE)
        network.wait_connected()
        for name in ("one", "two"):
            (a.path / name).write_bytes(os.urandom(SIZE))
        own = os.urandom(1_000_000)
        (b.path / "own").write_bytes(own)
        a.kill()
        wait_until(lambda: not b.sees())
        start_s = time.monotonic()
        for name, number in (("one", signal.SIGKILL), ("two", signal.SIGTERM)):
            reader = subprocess.Popen([sys.executable, "-c", READ, str(b.path / name)])
            wait_waiting(reader)
            assert read_whole(b.path / "own") == own
            (b.path / f"made while {name} is waited for").write_bytes(own)
            reader.send_signal(number)
            assert reader.wait(DEADLINE_S) == -number
        assert time.monotonic() - start_s < FETCH_TIMEOUT_S, "they waited to the end"
        assert b.status()["peers"][0]["state"] != "alive"


def test_what_cannot_be_fetched_is_eio_in_the_end(tmp_path: Path) -> None:
    """Promise 12: after the time the operator set."""
    options = ("--replicas", "1", "--write-concern", "1", "--fetch-timeout", "1")
    with ProcessNetwork(tmp_path) as network:
        a, b = network.start("a", *options), network.start("b", *options)
        network.wait_connected()
        (a.path / "file").write_bytes(os.urandom(SIZE))
        a.kill()
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
            read_whole(b.path / "file")
