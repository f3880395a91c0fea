"""A real mount for a test: a node alone in a child process, unmounted whatever happens.

`MountedNode` starts the child (`python -m dfsfs.testing.mountpoint`), waits until the mount
answers, and ends it. The child is the real thing but for two parts a test can reach:

- `TestFilesystem` fails on demand: looking up `raise-<Exception>` raises it, as a bug would.
- `HeldPublication` can be made to hold every call that waits for visibility, as a peer that does
  not answer would.

A line of JSON on the child's standard input is a command, answered by a line of JSON. Commands make
changes elsewhere: a second namespace in the child, whose rows are applied to the mounted one.
"""

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from dfsfs.base.limits import ROWS_BATCH_BYTES_MAX
from dfsfs.base.types import ROOT_INODE, Buffer, DigestKind, FileKind, InodeId, Origin
from dfsfs.base.units import MIB
from dfsfs.blocks import LocalStorage, SegmentStore
from dfsfs.content import ContentWriter, inline_ref
from dfsfs.crdt import HybridClock
from dfsfs.fuse import serve
from dfsfs.namespace import (
    SCHEMA,
    SCHEMA_VERSION,
    AttributeChanges,
    Change,
    Inode,
    Namespace,
)
from dfsfs.runtime import CallTable, Database, RealWorld
from dfsfs.vfs import Filesystem, LocalFacts, Space

START_TIMEOUT_S = 60.0
CACHE_BYTES = 16 * MIB


class MountedNode:
    """A mount in a child process: `with MountedNode(mountpoint, state) as node`."""

    def __init__(
        self, mountpoint: Path, state: Path, *, options: Sequence[str] = (), shift: int = 18
    ) -> None:
        self.path = mountpoint
        self.state = state
        self._options = options
        self._shift = shift
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[str]:
        """The child."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """What the child logged."""
        return (self.state / "log").read_text()

    def start(self) -> None:
        """Mount; returns when the mount answers."""
        self._close_pipes()
        with contextlib.suppress(FileExistsError):  # of a dead mount nobody can say what it is
            self.path.mkdir(parents=True)
        self.state.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dfsfs.testing.mountpoint", str(self.path)]
        command += [str(self.state), f"--shift={self._shift}"]
        command += [f"--option={option}" for option in self._options]
        with (self.state / "log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        answer = self._read_line()
        if answer != "ready":
            self.stop()
            raise AssertionError(f"no mount: {answer!r}\n{self.log}")

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Have the child carry out a command; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self._read_line()
        assert line, f"the child is gone\n{self.log}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def stop(self) -> int:
        """Unmount and end the child in the orderly way, or by force; its exit status."""
        process = self.process
        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the mount did not end\n{self.log}") from None
        finally:
            self._close_pipes()
            self._unmount()

    def kill(self) -> None:
        """End the child as a power cut would end its machine."""
        self.process.kill()
        self.process.wait()
        self._unmount()

    def _close_pipes(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def _unmount(self) -> None:
        subprocess.run(["fusermount3", "-uzq", str(self.path)], check=False, capture_output=True)


# -- the child ----------------------------------------------------------------------------------


class HeldPublication:
    """A publication that a test can hold up."""

    def __init__(self, store: SegmentStore, database: Database, world: RealWorld) -> None:
        self._store = store
        self._database = database
        self._world = world
        self.gate = trio.Event()
        self.gate.set()
        self.waiting = 0

    async def visible(self, position: int) -> None:
        """Everything is visible at once, unless held."""
        if not self.gate.is_set():
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1

    async def durable(self, position: int) -> None:
        """Flush the local disk."""
        await self._store.sync()
        await self._world.run_blocking(self._database.sync)


class TestFilesystem(Filesystem):
    """A filesystem with bugs on demand, which counts what a write costs."""

    __test__ = False
    writes = 0
    xattrs_asked = 0

    def write_nowait(self, number: int, offset: int, data: Buffer) -> bool:
        """As usual, counted."""
        self.writes += 1
        return super().write_nowait(number, offset, data)

    def getxattr(self, inode: InodeId, name: bytes) -> bytes:
        """As usual, counted."""
        self.xattrs_asked += 1
        return super().getxattr(inode, name)

    def lookup(self, parent: InodeId, name: bytes) -> Inode:
        """As usual, but for names that ask for an exception."""
        if name == b"raise-RuntimeError":
            raise RuntimeError("a bug made for a test")
        if name == b"raise-PermissionError":
            raise PermissionError(13, "an OSError made for a test")
        return super().lookup(parent, name)


class Child:
    """A node alone, its mount, and a replica elsewhere."""

    def __init__(self, state: Path, store: SegmentStore, world: RealWorld, shift: int) -> None:
        database = Database(
            state / "namespace.db", schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=CACHE_BYTES
        )
        self.namespace = _namespace(database, world, Origin(1))
        self.storage = LocalStorage(world, store)
        self.publication = HeldPublication(store, database, world)
        self.filesystem = TestFilesystem(
            world,
            self.namespace,
            self.storage,
            self.publication,
            facts=LocalFacts(DigestKind.BLAKE3, lambda: _space(store)),
            shift=shift,
        )
        memory = Database(None, schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=CACHE_BYTES)
        self.elsewhere = _namespace(memory, world, Origin(2))

    async def command(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Carry out one command of the test."""
        if verb == "hold":
            self.publication.gate = trio.Event()
            return None
        if verb == "release":
            self.publication.gate.set()
            return None
        if verb == "waiting":
            return self.publication.waiting
        if verb == "check":
            return self.namespace.check()
        if verb == "requests":
            return [self.filesystem.writes, self.filesystem.xattrs_asked]
        if verb == "contents_in_use":
            return len(list(self.filesystem.contents_in_use()))
        return await self._elsewhere(verb, arguments)

    async def _elsewhere(self, verb: str, arguments: dict[str, Any]) -> float:
        """Change something in the other replica and apply it here; seconds until it was forgotten.

        The other replica is brought up to date first, as a connected one would be.
        """
        _exchange(self.namespace, self.elsewhere, Origin(1))
        if verb == "write_blocks":
            await self._write_blocks(**arguments)
        else:
            self._change(verb, **arguments)
        changes = _exchange(self.elsewhere, self.namespace, Origin(2))
        begin = trio.current_time()
        await self.filesystem.invalidated(changes)
        return trio.current_time() - begin

    async def _write_blocks(self, path: str, letter: str, size: int) -> None:
        """Give a file more bytes than fit its row; both replicas share the block store."""
        upload = self.storage.upload()
        writer = ContentWriter(upload)
        await writer.write(letter.encode() * size)
        inode = self.elsewhere.lookup(*self._find(path)).inode
        self.elsewhere.write(inode, await writer.finish(), mtime_ns=RealWorld().wall_ns())
        upload.close()

    def _change(
        self, verb: str, path: str, *, data: str = "", to: str = "", mode: int = 0o644
    ) -> None:
        there = self.elsewhere
        parent, name = self._find(path)
        if verb == "write":
            try:
                inode = there.lookup(parent, name).inode
            except LookupError:
                raise AssertionError(path) from None
            there.write(inode, inline_ref(data.encode()), mtime_ns=RealWorld().wall_ns())
        elif verb in ("create", "mkdir"):
            kind = FileKind.REGULAR if verb == "create" else FileKind.DIRECTORY
            made = there.create(parent, name, kind=kind, mode=mode, uid=0, gid=0)
            if data:
                there.write(made.inode, inline_ref(data.encode()), mtime_ns=made.mtime_ns)
        elif verb == "unlink":
            there.unlink(parent, name)
        elif verb == "rename":
            there.rename(parent, name, *self._find(to))
        elif verb == "chmod":
            inode = there.lookup(parent, name).inode
            there.set_attributes(inode, AttributeChanges(mode=mode))
        else:
            raise AssertionError(f"no command {verb}")

    def _find(self, path: str) -> tuple[InodeId, bytes]:
        *directories, name = os.fsencode(path).split(b"/")
        parent = ROOT_INODE
        for directory in directories:
            parent = self.elsewhere.lookup(parent, directory).inode
        return parent, name


def _namespace(database: Database, world: RealWorld, origin: Origin) -> Namespace:
    return Namespace(
        database,
        origin=origin,
        clock=HybridClock(world),
        node_name=lambda origin: f"node-{origin}",
    )


def _exchange(source: Namespace, target: Namespace, origin: Origin) -> list[Change]:
    """Bring `target` everything that `source` has of `origin`."""
    changes: list[Change] = []
    while True:
        batch = source.feed(origin, target.have().get(origin, 0), bytes_max=ROWS_BATCH_BYTES_MAX)
        if batch is None:
            return changes
        changes += target.apply([batch])


def _space(store: SegmentStore) -> Space:
    usage = store.usage()
    return Space(usage.capacity_bytes, max(0, usage.capacity_bytes - usage.block_bytes))


async def _obey(child: Child) -> None:
    """Commands, one at a time."""
    # Abandoned at the end: a thread that waits for a line cannot be called back.
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        arguments = json.loads(line)
        verb = arguments.pop("verb")
        try:
            answer = {"result": await child.command(verb, arguments)}
        except AssertionError as error:
            answer = {"error": str(error)}
        _say(json.dumps(answer))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _run(mountpoint: Path, state: Path, options: list[str], shift: int) -> None:
    world = RealWorld()
    store = await SegmentStore.open(world, state / "blocks")
    child = Child(state, store, world, shift)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.filesystem.run)
        nursery.start_soon(_obey, child)
        await serve(
            child.filesystem,
            mountpoint,
            options,
            calls=CallTable(),
            ready=lambda: _say("ready"),
        )
        nursery.cancel_scope.cancel()
    await store.close()


def main() -> None:
    """The child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--shift", type=int, default=18)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    trio.run(_run, arguments.mountpoint, arguments.state, arguments.option, arguments.shift)
    # A thread may still wait for a line of standard input; it must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
