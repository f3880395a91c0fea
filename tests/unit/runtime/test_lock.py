"""One process per state directory, however the first one ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfsfs.base.errors import Refused
from dfsfs.runtime import DirectoryLock

HOLD = """
import sys
from pathlib import Path
from dfsfs.runtime import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


DIE_BUT_FOR_A_THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.PyDLL(None).pthread_exit(None)
"""


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "state")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match=f"process {child.pid};.*--state"):
            DirectoryLock(tmp_path / "state").acquire()
        assert DirectoryLock(tmp_path / "state").is_held_elsewhere()
        child.send_signal(signal.SIGKILL)
    with DirectoryLock(tmp_path / "state"):
        assert (tmp_path / "state" / "lock").read_text() == f"{os.getpid()}\n"


def test_the_second_is_told_that_the_first_is_dead_and_cannot_end(tmp_path: Path) -> None:
    program = HOLD.replace("sys.stdin.read()", DIE_BUT_FOR_A_THREAD)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        with pytest.raises(Refused, match=r"was killed.*umount -f"):
            DirectoryLock(tmp_path).acquire()
        child.send_signal(signal.SIGKILL)


def test_a_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_released_is_free(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    with pytest.raises(Refused):
        DirectoryLock(tmp_path).acquire()
    assert DirectoryLock(tmp_path).is_held_elsewhere()  # flock counts open files, not processes
    lock.release()
    lock.release()
    assert not DirectoryLock(tmp_path).is_held_elsewhere()
    assert not DirectoryLock(tmp_path / "nothing").is_held_elsewhere()
    with DirectoryLock(tmp_path):
        pass


def test_a_place_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot use"):
        DirectoryLock(tmp_path / "file").acquire()
