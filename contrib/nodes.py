"""Nodes on this machine, for the demo and the benchmark: real programs, in their own directory.

Everything started here is ended and removed here, whatever happens in between, a signal included.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

END_S = 20.0  # a node has so long to end by itself
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class LocalNode:
    """One node: its state directory, process and mountpoint (None: it only stores)."""

    name: str
    state: Path
    pid: int
    address: str
    mountpoint: Path | None


class LocalNetwork:
    """Nodes of one network, below one directory, each with a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = directory / "network.key"
        self.nodes: list[LocalNode] = []
        run(PROGRAMS / "dfs", "key", "new", self.key)

    def start(self, name: str, *more: str, mount: bool) -> LocalNode:
        """Start a node, joining those that run; it is ready when this returns. `more`: options."""
        state = self.directory / f"{name}.state"
        mountpoint = self.directory / name if mount else None
        options: list[str | Path] = ["--state", state, "--key", self.key, "--name", name]
        options += ["--listen", "127.0.0.1:0", *more]
        if self.nodes:
            options += ["--bootstrap", self.nodes[0].address]
        if mountpoint is None:
            run(PROGRAMS / "dfs", "node", *options)
        else:
            mountpoint.mkdir()
            run(PROGRAMS / "dfs-mount", mountpoint, *options)
        pid = int((state / "lock").read_text())
        address = self.status(state)["node"]["addresses"][0].partition("://")[2]
        node = LocalNode(name, state, pid, address, mountpoint)
        self.nodes.append(node)
        return node

    def status(self, state: Path) -> dict[str, Any]:
        """`dfs status` of one node."""
        answer: dict[str, Any] = json.loads(
            run(PROGRAMS / "dfs", "status", "--json", "--state", state)
        )
        return answer

    def kill(self, node: LocalNode) -> None:
        """What a power cut does to a process: no goodbye. Its dead mount is taken away."""
        os.kill(node.pid, signal.SIGKILL)
        _wait_end(node.pid)
        _unmount(node)
        self.nodes.remove(node)

    def end(self) -> None:
        """End every node that runs, and see that nothing stays mounted below the directory."""
        for node in reversed(self.nodes):
            if node.mountpoint is not None:
                quietly("fusermount3", "-u", node.mountpoint)
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGTERM)
        for node in self.nodes:
            if not _wait_end(node.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(node.pid, signal.SIGKILL)
            _unmount(node)
        self.nodes.clear()
        # A node that failed while it started is in no list, but its state directory is here.
        for lock in self.directory.glob("*.state/lock"):
            _end_holder(lock)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mountpoint = line.split(" ")[4]
            if mountpoint.startswith(f"{self.directory}/"):
                quietly("fusermount3", "-uz", mountpoint)


@contextlib.contextmanager
def local_network(base: Path | None = None) -> Iterator[LocalNetwork]:
    """A network in a new directory below `base`, and nothing of it left at the end."""
    # SIGTERM and a closed terminal become exceptions, so that the clean-up below runs.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    directory = Path(tempfile.mkdtemp(prefix="dfs-", dir=base))
    try:
        network = LocalNetwork(directory)
        try:
            yield network
        finally:
            network.end()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(*command: str | Path) -> str:
    """Run a program to its end; its output.

    Raises:
        SystemExit: it failed; its own words are the message.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise SystemExit(f"{words}\nfailed ({done.returncode}): {done.stderr or done.stdout}")
    return done.stdout


def quietly(*command: str | Path) -> bool:
    """Run a program whose failure is an answer."""
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


def require(programs: Sequence[str]) -> None:
    """End with a sentence if a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"this needs {', '.join(missing)}: install it first")


def _interrupted(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _unmount(node: LocalNode) -> None:
    if node.mountpoint is not None:
        quietly("fusermount3", "-uz", node.mountpoint)


def _runs(pid: int) -> bool:
    """Whether the process is there, and not only waiting for its parent to notice its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_end(pid: int) -> bool:
    """Whether a process that is no child of ours has ended in time."""
    deadline = time.monotonic() + END_S
    while _runs(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _end_holder(lock: Path) -> None:
    """End the process that holds the lock of a state directory, if one does."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(lock.read_text())
        if str(lock.parent).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            _wait_end(pid)
