"""Real nodes as child processes: start, kill, pause, restart, and nothing left behind.

    with ProcessNetwork(tmp_path) as network:
        a = network.start("a", mount=True)
        b = network.start("b", mount=True)
        (a.path / "file").write_text("x")
        a.kill()
        assert (b.path / "file").read_text() == "x"

The programs are the installed ones, in the foreground, with their own logs. Waiting is for a
condition, with a deadline that only a hang misses.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from dfsfs.admin import connect_control

DEADLINE_S = 90.0
POLL_S = 0.02
PROGRAMS = Path(sys.executable).parent


class ProcessNode:
    """One node: its directory stays, its process comes and goes."""

    def __init__(self, directory: Path, name: str, key: Path, *, mount: bool) -> None:
        self.name = name
        self.state = directory / f"{name}.state"
        self.path = directory / name
        self.log = directory / f"{name}.log"
        self._mount = mount
        self._key = key
        self.listen = "127.0.0.1:0"
        self.prefix: tuple[str, ...] = ()  # a program that runs the node's
        self._process: subprocess.Popen[str] | None = None

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, *options: str | Path) -> None:
        """Start it; when this returns it answers.

        Raises:
            AssertionError: it ended instead; the message is its log.
        """
        assert not self.runs
        program: list[str | Path] = [*self.prefix, PROGRAMS / "dfs", "node"]
        if self._mount:
            self.path.mkdir(exist_ok=True)
            program = [*self.prefix, PROGRAMS / "dfs-mount", self.path]
        program += ["--state", self.state, "--key", self._key, "--name", self.name]
        program += ["--listen", self.listen, "-f", *options]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                program, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
            )
        assert self._process.stdout is not None
        # Nothing is said before it is ready, and its end ends the wait.
        if not self._process.stdout.readline():
            self._reap()
            raise AssertionError(f"{self.name} did not start:\n{self.log.read_text()[-4000:]}")
        self.listen = self.address  # at a restart too: others know it by that

    def kill(self) -> None:
        """`kill -9`, and the dead mount taken away."""
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """An orderly end."""
        self._signal(signal.SIGTERM)
        self._reap()

    def pause(self) -> None:
        """Stop its process where it is: a peer that is there and does not answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)

    def status(self) -> dict[str, Any]:
        """What `dfs status` shows. Asked here: a process for every look would be most of a test."""
        return trio.run(self._status)

    async def _status(self) -> dict[str, Any]:
        async with connect_control(self.state / "control.sock") as node:
            return await node.status()

    @property
    def address(self) -> str:
        """HOST:PORT, for --bootstrap."""
        address: str = self.status()["node"]["addresses"][0]
        return address.partition("://")[2]

    def sees(self) -> set[str]:
        """The names of the peers it has sessions with."""
        return {peer["name"] for peer in self.status()["peers"] if peer["state"] == "alive"}

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _reap(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(DEADLINE_S)
        finally:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            if self._mount:
                subprocess.run(["fusermount3", "-uz", self.path], check=False, capture_output=True)

    def end(self) -> None:
        """Whatever state it is in."""
        if self._process is not None and self._process.stdout is not None:
            self._process.kill()
            self._reap()


class ProcessNetwork:
    """Nodes of one network below one directory; a context manager that ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = directory / "network.key"
        self.nodes: list[ProcessNode] = []
        subprocess.run([PROGRAMS / "dfs", "key", "new", self._key], check=True, capture_output=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            node.end()

    def make(self, name: str, *, mount: bool) -> ProcessNode:
        """A node that does not run yet."""
        return ProcessNode(self._directory, name, self._key, mount=mount)

    def start(self, name: str, *options: str | Path, mount: bool = True) -> ProcessNode:
        """Start a node that joins through the first one that runs."""
        node = self.make(name, mount=mount)
        through = next((other for other in self.nodes if other.runs), None)
        self.nodes.append(node)
        bootstrap = () if through is None else ("--bootstrap", through.address)
        node.start(*bootstrap, *options)
        return node

    def wait_connected(self) -> None:
        """Until every running node has a session with every other."""
        running = [node for node in self.nodes if node.runs]
        names = {node.name for node in running}
        wait_until(lambda: all(node.sees() == names - {node.name} for node in running))


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until it holds.

    Raises:
        AssertionError: it never did.
    """
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(POLL_S)


def read_whole(path: Path) -> bytes:
    """Open, read, close: what close-to-open speaks about."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)
