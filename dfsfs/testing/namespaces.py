"""Real nodes whose network can be cut: each in a network namespace, a bridge between them.

A cut loses packets and tells nobody, as a pulled cable does; a proxy that closes connections would
be kinder than networks are. Only the network is another one: mounts are in the machine's own tree.
Needs root and ip(8); `why_not` says what is missing.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from dfsfs.testing.processes import ProcessNetwork, ProcessNode

SUBNET = "10.213.77"


def why_not() -> str:
    """Why such networks cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            return f"network namespaces need {program}"
    name = f"dfs{os.getpid()}try"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "br0", "type", "bridge")
        finally:
            _ip("netns", "del", name)
    except AssertionError as error:
        return f"no network namespaces here: {error}"
    return ""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class CuttableNetwork(ProcessNetwork):
    """Like `ProcessNetwork`, with `cut` and `join`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._prefix = f"dfs{os.getpid()}"
        self._names: list[str] = []
        self._switch = f"{self._prefix}-switch"
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            for name in [*map(self._space, self._names), self._switch]:
                with contextlib.suppress(AssertionError):
                    _ip("netns", "del", name)

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def make(self, name: str, *, mount: bool) -> ProcessNode:
        """A node in a namespace of its own, joined to the bridge."""
        self._names.append(name)
        space, number = self._space(name), len(self._names)
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
        port = f"port{number}"
        _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port)
        _ip("-n", space, "link", "set", port, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", port, "master", "br0")
        _ip("-n", self._switch, "link", "set", port, "up")
        _ip("-n", space, "address", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        node = super().make(name, mount=mount)
        node.prefix = ("nsenter", f"--net=/run/netns/{space}", "--")
        node.listen = f"{SUBNET}.{number}:4000"
        return node

    def cut(self, name: str) -> None:
        """Nothing gets to or from this node any more."""
        self._set(name, "down")

    def join(self, name: str) -> None:
        """It does again."""
        self._set(name, "up")

    def _set(self, name: str, state: str) -> None:
        number = self._names.index(name) + 1
        _ip("-n", self._switch, "link", "set", f"port{number}", state)
