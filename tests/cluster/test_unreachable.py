"""What is on nodes that cannot be reached: only its readers notice, and these can be killed."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfsfs.fuse.connection import CONTROL
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
READERS = 120
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


def test_many_readers_of_what_cannot_be_fetched_keep_nobody_from_what_is_here(
    tmp_path: Path,
) -> None:
    """Promise 12: the kernel has so many requests under way at a time, and these stay under way."""
    with ProcessNetwork(tmp_path) as network:
        a, b = network.start("a", *ALONE), network.start("b", *ALONE)
        network.wait_connected()
        names = [str(number) for number in range(READERS)]
        for name in names:
            (a.path / name).write_bytes(os.urandom(600_000))
        own = os.urandom(1_000_000)
        (b.path / "own").write_bytes(own)
        a.kill()
        wait_until(lambda: not b.sees())
        waiting = CONTROL / str(os.minor(b.path.stat().st_dev)) / "waiting"
        readers = [
            subprocess.Popen(
                ["cat", b.path / name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            for name in names
        ]
        try:
            # A few had all of their file given to this node.
            wait_until(lambda: int(waiting.read_text()) > READERS * 3 // 4)
            start_s = time.monotonic()
            with (b.path / "own").open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert file.read() == own
            assert time.monotonic() - start_s < FETCH_TIMEOUT_S / 2
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()


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
