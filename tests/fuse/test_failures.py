"""What goes wrong: bugs in handlers, dead processes, bad mountpoints, signals."""

import errno
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from dfsfs.base.errors import Misconfigured
from dfsfs.base.limits import HANDLER_TIMEOUT_S
from dfsfs.fuse.mounts import check_mountpoint
from dfsfs.fuse.serve import mount_options
from dfsfs.testing.mountpoint import MountedNode
from dfsfs.testing.processes import wait_until


@pytest.fixture
def own(tmp_path: Path) -> MountedNode:
    """A mount of this test alone, not started."""
    return MountedNode(tmp_path / "mount", tmp_path / "state")


def test_a_bug_in_a_handler_is_eio_and_a_log_line(own: MountedNode) -> None:
    with own:
        for _ in range(3):
            with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
                os.stat(own.path / "raise-RuntimeError")
        with pytest.raises(PermissionError):
            os.stat(own.path / "raise-PermissionError")
        (own.path / "file").write_bytes(b"alive")
        assert (own.path / "file").read_bytes() == b"alive"
    assert own.log.count("lookup failed: a bug in dfsfs") == 3
    assert "RuntimeError: a bug made for a test" in own.log
    assert "Traceback" in own.log


@pytest.mark.parametrize("how", ["SIGTERM", "fusermount3", "umount"])
def test_ways_to_unmount(own: MountedNode, how: str) -> None:
    if how == "umount" and os.geteuid() != 0:
        pytest.skip("umount(8) of a FUSE mount needs root")
    with own:
        (own.path / "file").write_bytes(b"x")
        if how == "SIGTERM":
            own.process.terminate()
        else:
            command = ["umount"] if how == "umount" else ["fusermount3", "-u"]
            subprocess.run([*command, str(own.path)], check=True)
        assert own.process.wait(timeout=60) == 0
        assert not os.path.ismount(own.path)
        assert list(own.path.iterdir()) == []
        own.start()
        assert (own.path / "file").read_bytes() == b"x"


def test_what_was_written_and_not_closed_is_kept_by_an_orderly_end(own: MountedNode) -> None:
    with own:
        handle = os.open(own.path / "file", os.O_WRONLY | os.O_CREAT)
        os.write(handle, b"not closed")
        own.process.terminate()
        assert own.process.wait(timeout=60) == 0
        with pytest.raises(OSError):
            os.close(handle)
        own.start()
        assert (own.path / "file").read_bytes() == b"not closed"


def test_what_was_closed_survives_the_end_of_the_process(own: MountedNode) -> None:
    with own:
        data = os.urandom(3_000_000)
        for number in range(20):
            (own.path / f"{number}").write_bytes(data[number:])
        (own.path / "3").rename(own.path / "three")
        (own.path / "4").unlink()
        own.kill()
        own.start()
        for number in range(20):
            if number not in (3, 4):
                assert (own.path / f"{number}").read_bytes() == data[number:]
        assert (own.path / "three").read_bytes() == data[3:]
        assert not (own.path / "4").exists()
        assert own.ask("check") == []


def test_mountpoints_that_cannot_be(tmp_path: Path, own: MountedNode) -> None:
    with pytest.raises(Misconfigured, match="No such file"):
        check_mountpoint(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match="not a directory"):
        check_mountpoint(tmp_path / "file")
    with own, pytest.raises(Misconfigured, match="already"):
        check_mountpoint(own.path)


@pytest.mark.parametrize("name", ["mount", "with space", "mit Umläuten", "back\\slash"])
def test_a_mountpoint_whose_process_died_is_recovered(tmp_path: Path, name: str) -> None:
    own = MountedNode(tmp_path / name, tmp_path / "state")
    with own:
        handle = os.open(own.path / "file", os.O_CREAT | os.O_RDWR)
        os.write(handle, b"never closed")
        (own.path / "closed").write_bytes(b"closed")
        for _ in range(2):
            own.process.kill()
            own.process.wait()
            with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOTCONN):
                os.statvfs(own.path)
            own.start()  # nobody has unmounted anything
            assert (own.path / "closed").read_bytes() == b"closed"
        with pytest.raises(OSError):  # what was open stays an error, not a hang
            os.pread(handle, 10, 0)
        with pytest.raises(OSError):
            os.close(handle)
    assert list(own.path.iterdir()) == []


def test_a_directory_in_a_dead_mount_is_no_mountpoint(tmp_path: Path, own: MountedNode) -> None:
    with own:
        (own.path / "inner").mkdir()
        own.process.kill()
        own.process.wait()
        with pytest.raises(Misconfigured, match="process died"):
            check_mountpoint(own.path / "inner")
        own.kill()


def waits_in_kernel(process: int) -> bool:
    """Whether a thread of it waits where no signal reaches it."""
    stats = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/stat")]
    return any(stat.rpartition(")")[2].split()[0] == "D" for stat in stats)


@pytest.mark.parametrize("forgetting", [False, True])
def test_nobody_hangs_when_the_process_dies(own: MountedNode, forgetting: bool) -> None:
    with own:
        (own.path / "file").write_bytes(b"x" * 100_000)
        mapped = os.open(own.path / "file", os.O_RDONLY)
        assert not (own.path / "there").exists()
        own.ask("hold")
        ends: list[int | None] = []

        def wait(name: str) -> None:
            try:
                (own.path / name).mkdir()
            except OSError as error:
                ends.append(error.errno)

        threads = [threading.Thread(target=wait, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        while own.ask("waiting") == 0:
            pass
        if forgetting:
            own.ask("create", path="there")
            while not waits_in_kernel(own.process.pid):
                pass  # a thread of the node, for the lock that `mkdir` holds
        own.process.kill()
        own.process.wait(timeout=60)
        for thread in threads:
            thread.join(timeout=60)
        assert len(ends) == 3
        assert set(ends) <= {errno.ENOTCONN, errno.ECONNABORTED}
        with pytest.raises(OSError):
            os.close(mapped)
        own.kill()


def test_mount_options() -> None:
    assert {"default_permissions", "fsname=dfs", "ro"} <= mount_options(["ro"])
    assert ("allow_other" in mount_options([])) == (os.geteuid() == 0)
    assert "no_epoch" not in mount_options(["no_epoch"])
    for option in ("max_read=4096", "fsname=other", "fd=3"):
        with pytest.raises(Misconfigured):
            mount_options([option])


def test_a_read_only_mount(tmp_path: Path) -> None:
    first = MountedNode(tmp_path / "mount", tmp_path / "state")
    with first:
        (first.path / "file").write_bytes(b"x")
    second = MountedNode(tmp_path / "mount", tmp_path / "state", options=["ro"])
    with second:
        assert (second.path / "file").read_bytes() == b"x"
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EROFS):
            (second.path / "file").write_bytes(b"y")


def test_noatime(tmp_path: Path) -> None:
    with MountedNode(tmp_path / "mount", tmp_path / "state", options=["noatime"]) as node:
        path = node.path / "file"
        path.write_bytes(b"x")
        os.utime(path, ns=(10**18, 10**18))
        path.read_bytes()
        assert path.stat().st_atime_ns == 10**18


def test_a_call_that_waits_does_not_hold_up_others(own: MountedNode) -> None:
    with own:
        own.ask("hold")
        thread = threading.Thread(target=(own.path / "slow").mkdir)
        thread.start()
        while own.ask("waiting") == 0 and thread.is_alive():
            pass
        assert os.statvfs(own.path).f_namemax == 255
        own.ask("release")
        thread.join(timeout=60)
        assert (own.path / "slow").is_dir()


def test_a_caller_that_was_killed_does_not_wait_for_its_answer(own: MountedNode) -> None:
    """Promise 12: a waiting process can be killed, whoever else waits, and they go on waiting."""
    with own:
        places = [own.path / name for name in ("one", "two")]
        for place in places:
            place.mkdir()
        own.ask("hold")
        makers = [subprocess.Popen(["mkdir", place / "new"]) for place in places]
        wait_until(lambda: own.ask("waiting") == len(makers))
        for number in (signal.SIGTERM, signal.SIGKILL):
            assert all(maker.poll() is None for maker in makers), "nobody has been answered"
            maker = makers.pop()
            maker.send_signal(number)
            assert maker.wait(timeout=HANDLER_TIMEOUT_S / 2) == -number
        own.ask("release")
