"""Ends the connection of a mount whose process died, so that nobody waits for it for ever.

A thread that makes the kernel forget a name waits, uninterruptibly, for the lock of a directory.
Whoever has the lock may wait for an answer of this very process. When that is killed the thread
cannot end before it has the lock, its process has not ended before the thread has, the kernel
closes the connection only then, and only then is the request given up that holds the lock: programs
in the mount, and the process itself, would hang until the machine is started anew.

So a process of its own watches. It is this file run as a program, and knows nothing of dfsfs. When
its pipe is closed (an orderly end) or the main thread of the process that started it is dead (a
killed process' is at once, whatever its other threads wait for), it writes to the connection's
`abort`, which for one that is gone does nothing, and ends.
"""

import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

log = logging.getLogger(__name__)

PERIOD_S = 0.5  # between two looks


class Watchdog:
    """Watches over the connection of this process, until told to end or the process dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, connection: Path | None) -> None:
        """Watch over a connection, by its control directory; without one nothing can be done."""
        if connection is None:
            log.info("no FUSE control file system: programs may hang if this process is killed")
            return
        # Opened now: later the number of this connection may be that of another.
        with (connection / "abort").open("wb", buffering=0) as abort:
            self._process = subprocess.Popen(
                # Of the standard library alone, and in a session of its own: Ctrl-C is not for it.
                [sys.executable, "-I", "-S", __file__, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=abort,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def end(self) -> None:
        """The connection is closed: give up what still waits for an answer."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


def watch(parent: int) -> None:
    """Wait for the end of the process that started this one, then end what standard output is."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while not select.select([0], [], [], PERIOD_S)[0] and not _is_dead(parent):
        pass
    os.write(1, b"1")


def _is_dead(process: int) -> bool:
    """Whether its main thread is."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X")


if __name__ == "__main__":
    watch(int(sys.argv[1]))
