"""Callers that were killed while a handler makes them wait: their wait is ended, so that they die.

A process that has sent a request to a FUSE server waits for the answer whatever signals it gets,
and the kernel's word that it was interrupted does not reach us (libfuse keeps it to itself). What
is left to see is that the caller has SIGKILL pending: after `kill -9`, and also after any other
signal that ends it. So while handlers wait for long, somebody looks for such callers in /proc, and
ends their handlers with EINTR, which nobody will read.

Most requests name the thread that made them. Those for an open file do not; then any dying thread
that has the file open will do. If somebody else waits for the same file at that moment, he is told
EINTR as well: C libraries and languages try again then. Only reads, writes and `fsync` are ended
that way: a `close` goes to its end, because it says whether what was written is there.

Reads through the page cache are not concerned: there the kernel itself lets a killed reader go.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyfuse3
import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import CALLERS_LOOK_S
from dfsfs.base.types import InodeId

_OPEN_FILE_VERBS = frozenset({"_read", "_write", "fsync"})
_SIGKILL_PENDING = 1 << 8  # bit of signal 9 in the masks of /proc/*/status
_PENDING = b"\nSigPnd:"


@dataclass(slots=True, eq=False)
class Wait:
    """One handler that may wait."""

    scope: trio.CancelScope
    thread: int  # that made the request; 0: not known
    number: int  # of the open file it is about, if the thread is not known
    began_s: float
    ended: bool = False  # because its caller is dying


class Callers:
    """The handlers of one mount that may wait, and a task that looks after their callers."""

    def __init__(self, inode_of: Callable[[int], InodeId]) -> None:
        """`inode_of`: the file behind the number of an open file."""
        self._inode_of = inode_of
        self._waits: dict[Wait, None] = {}
        self._someone = trio.Event()
        self.ended = 0

    def begin(self, verb: str, args: Sequence[object], scope: trio.CancelScope) -> Wait:
        """A handler runs that was called with `args`; `scope` ends it."""
        last = args[-1] if args else None
        thread = number = 0
        if isinstance(last, pyfuse3.RequestContext):
            thread = last.pid
        elif verb in _OPEN_FILE_VERBS:
            assert isinstance(args[0], int)
            number = args[0]
        wait = Wait(scope, thread, number, trio.current_time())
        self._waits[wait] = None
        self._someone.set()
        return wait

    def end(self, wait: Wait) -> None:
        """It runs no longer."""
        del self._waits[wait]

    async def run(self) -> None:
        """Look after callers until cancelled."""
        while True:
            await self._someone.wait()
            await trio.sleep(CALLERS_LOOK_S)
            late_s = trio.current_time() - CALLERS_LOOK_S
            late = [wait for wait in self._waits if wait.began_s <= late_s]
            if late:
                await self._look(late)
            if not self._waits:
                self._someone = trio.Event()

    async def _look(self, late: list[Wait]) -> None:
        files = {wait: self._file_of(wait) for wait in late if not wait.thread and wait.number}
        threads = {wait.thread for wait in late if wait.thread}
        dying, open_there = await trio.to_thread.run_sync(find_dying, threads, set(files.values()))
        for wait in late:
            if wait.thread in dying or files.get(wait) in open_there:
                wait.ended = True
                wait.scope.cancel()
                self.ended += 1

    def _file_of(self, wait: Wait) -> InodeId | None:
        try:
            return self._inode_of(wait.number)
        except DfsError:
            return None


def find_dying(threads: set[int], files: set[InodeId | None]) -> tuple[set[int], set[InodeId]]:
    """Those of `threads` that are dying, and those of `files` that dying threads have open.

    Blocks for some milliseconds. Never asks the filesystem itself anything.
    """
    dying = {thread for thread in threads if _is_dying(f"/proc/{thread}")}
    wanted = {b"%d" % file for file in files if file is not None}
    found: set[InodeId] = set()
    for process in os.listdir("/proc") if wanted else ():
        if process.isdigit() and _is_dying(f"/proc/{process}"):
            for task in _list(f"/proc/{process}/task"):
                found.update(_open_files(f"/proc/{process}/task/{task}", wanted))
    return dying, found


def _open_files(task: str, wanted: set[bytes]) -> Iterator[InodeId]:
    for descriptor in _list(f"{task}/fdinfo"):
        for line in _read(f"{task}/fdinfo/{descriptor}").splitlines():
            if line.startswith(b"ino:") and line[4:].strip() in wanted:
                yield InodeId(int(line[4:]))


def _is_dying(task: str) -> bool:
    """Whether SIGKILL is pending, or it is dead but for threads that are still in a call."""
    status = _read(f"{task}/status")
    at = status.find(_PENDING)
    pending = at >= 0 and int(status[at + len(_PENDING) :].split(None, 1)[0], 16)
    return bool(pending & _SIGKILL_PENDING) or b"\nState:\tZ" in status


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # it is gone, or not ours to look at


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
