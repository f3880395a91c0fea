"""One process per state directory: a lock file held by flock(2).

The kernel drops the lock when the holder ends, however it ends, so a crash leaves nothing to clean
up and the file is never removed (removing it would let two holders lock two different files).
The file's content is the holder's process id, for the message the second process gives.
Sync and never waits: a held lock is refused at once.
"""

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

from dfsfs.base.errors import Refused


class DirectoryLock:
    """Exclusive use of a directory from `acquire` to `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Make the directory (mode 0700) if needed and take its lock.

        Raises:
            Refused: another process has it, or this user may not use the directory.
        """
        assert self._descriptor is None, "acquired twice"
        directory = self._path.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Refused(f"cannot use the state directory {directory}: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                remedy = "end that one first, or choose another with --state"
                if _is_zombie(holder):
                    remedy = (
                        "it was killed, but a thread of it waits in the kernel:"
                        " as root, umount -f its mountpoint"
                    )
                raise Refused(
                    f"the state directory {directory} is in use by process {holder or 'unknown'};"
                    f" {remedy}"
                ) from error
            raise Refused(f"cannot lock {self._path}: {error}") from error
        self._descriptor = descriptor

    def is_held_elsewhere(self) -> bool:
        """Whether another process has the lock now."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def release(self) -> None:
        """Give the directory to others. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "DirectoryLock":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _is_zombie(process: str) -> bool:
    """Whether its main thread has ended, so that only others keep what it holds."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"
