"""One node of a simulation: the real `Node` in a simulated world, and a program that uses it.

The verbs are a small POSIX by path, over the vfs as the kernel would call it: look up each name,
open, write, flush, release. Every call is recorded in the history. A call that is under way when
its node crashes never returns to its program; it raises `Crashed`.
"""

import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from dfsfs.base.errors import DfsError, Exists, NotFound, Stale
from dfsfs.base.limits import INLINE_BYTES_MAX
from dfsfs.base.types import EMPTY_CONTENT, ROOT_INODE, ContentRef, InodeId
from dfsfs.blocks import LocalStorage, MemoryStore
from dfsfs.config import Config
from dfsfs.content import ContentWriter
from dfsfs.net import NodeIdentity, Reply, Request, Session
from dfsfs.net.handlers import CallHandler
from dfsfs.node import Node
from dfsfs.testing.history import Call, History, Observer, Tree, tree_of
from dfsfs.testing.network import SimTransport
from dfsfs.testing.world import SimWorld
from dfsfs.vfs import Caller

T = TypeVar("T")

READ_BYTES = 128 * 1024  # what the kernel asks for at a time
PROGRAM = Caller(uid=1000, gid=1000)


class Crashed(Exception):
    """The node ended while the call was under way: nobody knows what became of it."""


class SimNode:
    """Made by `Simulation.start_nodes`. One program at a time should use it, or any number."""

    def __init__(
        self, config: Config, identity: NodeIdentity, history: History, node_type: type[Node]
    ) -> None:
        self.config = config
        self._node_type = node_type
        self.name = config.name
        self.identity = identity
        self.incarnation = 0
        self.boot = 0  # how often its machine lost power
        self.up = False
        self.gone = False  # for good
        self._history = history
        self._node: Node | None = None
        self._world: SimWorld | None = None
        self._life = trio.CancelScope()
        self._calls: dict[int, trio.CancelScope] = {}
        self._idle = trio.Event()  # no call is under way
        self.ended = trio.Event()
        self.epochs: Callable[[SimNode], dict[str, int]] = lambda node: {}

    # -- life: for the simulation -------------------------------------------------------------

    @property
    def node(self) -> Node:
        """The real one."""
        assert self._node is not None, f"{self.name} was never started"
        return self._node

    @property
    def world(self) -> SimWorld:
        """Its clock and its dice."""
        assert self._world is not None, f"{self.name} was never started"
        return self._world

    async def live(
        self,
        config: Config,
        world: SimWorld,
        transport: SimTransport,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run one incarnation until it is ended."""
        self._world = world
        self._life = trio.CancelScope()
        ended = self.ended = trio.Event()
        with self._life:
            transports = {config.scheme: transport}
            async with self._node_type(config, world=world, transports=transports) as node:
                self.config, self._node, self.up = config, node, True
                Observer(self.name, node.namespace, self._history)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    await self._calls_end()
        ended.set()

    async def _calls_end(self) -> None:
        """Programs end before what they use: a call may still be in a blocking call."""
        with trio.CancelScope(shield=True):
            while self._calls:
                self._idle = trio.Event()
                await self._idle.wait()

    def reorder(self, seconds: float, dice: random.Random) -> None:
        """Let each call of a peer wait a while: so calls and messages of one session overtake.

        Nothing promises their order but on one stream of messages, and that is kept.
        """

        def later(handler: CallHandler) -> CallHandler:
            async def serve(session: Session, request: Request) -> Reply:
                await trio.sleep(dice.uniform(0, seconds))
                reply = handler(session, request)
                return reply if isinstance(reply, Reply) else await reply

            return serve

        calls = self.node.endpoint._handlers.calls
        calls.update({method: later(handler) for method, handler in calls.items()})

    def end(self) -> None:
        """Cancel this incarnation and the calls it had; orderly unless its doors are frozen."""
        self.up = False
        for scope in self._calls.values():
            scope.cancel()
        self._life.cancel()

    @property
    def state(self) -> Path:
        """Its directory."""
        return self.config.state

    # -- looking, at once ---------------------------------------------------------------------

    def tree(self) -> Tree:
        """Everything it shows now."""
        return tree_of(self.node.namespace)

    def names(self, path: str = "/") -> list[str]:
        """The names in a directory."""
        inode = self._resolve(path)
        return [name.decode() for name, _, _ in self.node.namespace.names(inode)]

    def exists(self, path: str) -> bool:
        """Whether there is such a name."""
        try:
            self._resolve(path)
        except NotFound:
            return False
        return True

    # -- calls --------------------------------------------------------------------------------

    async def write(self, path: str, data: bytes) -> None:
        """open(O_CREAT | O_TRUNC), write, close."""
        await self._call("write", path, lambda call: self._write(call, path, data, os.O_TRUNC))

    async def create(self, path: str, data: bytes = b"") -> None:
        """open(O_CREAT | O_EXCL), write, close: of several at once one should win."""
        await self._call("create", path, lambda call: self._write(call, path, data, os.O_EXCL))

    async def append(self, path: str, data: bytes) -> None:
        """open(O_CREAT | O_APPEND), write, close."""
        await self._call("append", path, lambda call: self._write(call, path, data, os.O_APPEND))

    async def fsynced(self, path: str, data: bytes) -> None:
        """`write`, with an fsync before the close."""
        await self._call(
            "write", path, lambda call: self._write(call, path, data, os.O_TRUNC), synced=True
        )

    async def read(self, path: str) -> bytes:
        """open, read to the end, close."""
        return await self._call("read", path, lambda call: self._read(call, path))

    async def mkdir(self, path: str) -> None:
        """Make a directory."""
        parent, name = self._split(path)

        async def act(call: Call) -> None:
            await self.node.filesystem.mkdir(self._resolve(parent), name, 0o755, PROGRAM)

        await self._call("mkdir", path, act)

    async def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        parent, name = self._split(path)

        async def act(call: Call) -> None:
            await self.node.filesystem.rmdir(self._resolve(parent), name)

        await self._call("rmdir", path, act)

    async def unlink(self, path: str) -> None:
        """Remove a name of a file."""
        parent, name = self._split(path)

        async def act(call: Call) -> None:
            await self.node.filesystem.unlink(self._resolve(parent), name)

        await self._call("unlink", path, act)

    async def link(self, path: str, new_path: str) -> None:
        """Give a file one more name."""
        new_parent, new_name = self._split(new_path)

        async def act(call: Call) -> None:
            inode, directory = self._resolve(path), self._resolve(new_parent)
            await self.node.filesystem.link(inode, directory, new_name)

        await self._call("link", f"{path} {new_path}", act)

    async def rename(self, path: str, new_path: str) -> None:
        """Move a name, over what has the new one."""
        parent, name = self._split(path)
        new_parent, new_name = self._split(new_path)

        async def act(call: Call) -> None:
            old, new = self._resolve(parent), self._resolve(new_parent)
            await self.node.filesystem.rename(old, name, new, new_name)

        await self._call("rename", f"{path} {new_path}", act)

    # -- how ----------------------------------------------------------------------------------

    async def _call(
        self, verb: str, path: str, act: Callable[[Call], Awaitable[T]], *, synced: bool = False
    ) -> T:
        if not self.up:
            raise Crashed(f"{self.name} is down")
        call = Call(self.name, verb, path, synced=synced, epochs=self.epochs(self))
        self._history.begin(call)
        incarnation = self.incarnation
        with trio.CancelScope() as scope:
            self._calls[call.number] = scope
            try:
                result = await act(call)
            except DfsError as error:
                self._history.end(call, type(error).__name__)
                raise
            finally:
                del self._calls[call.number]
                if not self._calls:
                    self._idle.set()
            if self.up and self.incarnation == incarnation:
                self._history.end(call)
                call.end_epochs = self.epochs(self)
                return result
        raise Crashed(f"{self.name} crashed during {verb} {path}")

    async def _write(self, call: Call, path: str, data: bytes, flags: int) -> None:
        filesystem = self.node.filesystem
        if not flags & os.O_APPEND:
            call.written = await self._content_of(data)
        number = await self._open_for_writing(call, path, flags)
        try:
            for start in range(0, len(data), READ_BYTES):
                await filesystem.write(number, start, data[start : start + READ_BYTES])
            if call.synced:
                await filesystem.fsync(number)
            await filesystem.flush(number)
        except DfsError:
            await filesystem.release(number)
            raise
        # The kernel sends it when close(2) has returned already.
        await filesystem.release(number)

    async def _open_for_writing(self, call: Call, path: str, flags: int) -> int:
        filesystem = self.node.filesystem
        parent, name = self._split(path)
        while True:
            directory = self._resolve(parent)
            try:
                inode = filesystem.lookup(directory, name).inode
            except NotFound:
                try:
                    opened, value = await filesystem.create(
                        directory, name, 0o644, os.O_WRONLY | flags, PROGRAM
                    )
                except Stale:
                    continue  # the kernel looks again, too
                self._history.opens(call, value.inode)
                return opened.number
            if flags & os.O_EXCL:
                raise Exists(path)
            self._history.opens(call, inode)
            try:
                return (await filesystem.open(inode, os.O_WRONLY | flags, PROGRAM)).number
            except NotFound:
                continue  # it went meanwhile

    async def _read(self, call: Call, path: str) -> bytes:
        filesystem = self.node.filesystem
        inode = self._resolve(path)
        opened = await filesystem.open(inode, os.O_RDONLY, PROGRAM)
        self._history.opens(call, inode)
        data = bytearray()
        try:
            while piece := await filesystem.read(opened.number, len(data), READ_BYTES):
                data += piece
        except DfsError:
            await filesystem.release(opened.number)
            raise
        await filesystem.release(opened.number)
        self._history.was_read(call, bytes(data))
        call.read = await self._content_of(bytes(data))
        return bytes(data)

    async def _content_of(self, data: bytes) -> ContentRef:
        """The content ref these bytes have wherever they are written."""
        if len(data) <= INLINE_BYTES_MAX:
            return ContentRef(size=len(data), inline=data) if data else EMPTY_CONTENT
        storage = LocalStorage(self.world, MemoryStore(), kind=self.node.cluster.storage.kind)
        writer = ContentWriter(storage.upload())
        await writer.write(data)
        return await writer.finish()

    def _resolve(self, path: str) -> InodeId:
        inode = ROOT_INODE
        for name in path.split("/"):
            if name:
                inode = self.node.filesystem.lookup(inode, name.encode()).inode
        return inode

    def _split(self, path: str) -> tuple[str, bytes]:
        parent, _, name = path.rpartition("/")
        return parent, name.encode()
