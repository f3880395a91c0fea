"""An `Operator` in memory, for tests of what stands in front of one."""

import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from dfsfs.admin import Key, Listing
from dfsfs.base.errors import IsDirectory, NotDirectory, NotEmpty, NotFound, NotSupported
from dfsfs.base.types import Buffer, FileKind


class MemoryOperator:
    """Files in a dict, directories where files are; the promises of `Operator`, and no more."""

    def __init__(self) -> None:
        self.files: dict[bytes, bytes] = {}
        self.pieces_seen = 0
        self.puts_given_up = 0

    async def put(self, key: Key, source: AsyncIterable[Buffer]) -> None:
        name = _name(key)
        if self._is_directory(name):
            raise IsDirectory(f"{os.fsdecode(name)} is a directory")
        content = bytearray()
        try:
            async for piece in source:
                content += piece
                self.pieces_seen += 1
        except BaseException:
            self.puts_given_up += 1
            raise
        self.files[name] = bytes(content)

    @asynccontextmanager
    async def get(self, key: Key) -> AsyncIterator[AsyncIterable[Buffer]]:
        content = self._content(key)

        async def pieces() -> AsyncGenerator[Buffer, None]:
            # Larger than a message may be and at odd places, as blocks of any size are.
            for start in range(0, len(content), 1_000_003):
                yield memoryview(content)[start : start + 1_000_003]

        async with aclosing(pieces()) as iterator:
            yield iterator

    async def stat(self, key: Key) -> Listing:
        name = _name(key)
        if self._is_directory(name):
            return _listing(name, FileKind.DIRECTORY, 0)
        return _listing(name, FileKind.REGULAR, len(self._content(key)))

    async def list(self, key: Key, after: bytes | None, limit: int) -> "list[Listing]":
        directory = _name(key)
        if directory in self.files:
            raise NotDirectory(f"{os.fsdecode(directory)} is no directory")
        prefix = directory + b"/" if directory else b""
        below = {
            name[len(prefix) :].partition(b"/")[::2]
            for name in self.files
            if name.startswith(prefix)
        }
        found = {name: _kind(rest) for name, rest in sorted(below)}
        names = sorted(name for name in found if after is None or name > after)
        return [_listing(name, found[name], 0) for name in names[:limit]]

    async def remove(self, key: Key) -> None:
        name = _name(key)
        if self._is_directory(name):
            raise NotEmpty(f"{os.fsdecode(name)} is not empty")
        self._content(key)
        del self.files[name]

    def status(self) -> dict[str, Any]:
        return {"node": {"id": "ab" * 32, "name": "twin"}, "peers": []}

    async def upkeep(
        self, task: str, arguments: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        if task != "fsck":
            raise NotSupported(f"no task is called {task}")
        yield {"doing": "reading", "done": 1, "of": 2}
        if arguments.get("key") is not None:
            self._content(arguments["key"])
        yield {"result": {"mended": int(arguments.get("repair", False)), "left": 0}}

    async def info(self, key: Key) -> dict[str, Any]:
        return {"path": os.fsdecode(_name(key)), "size": len(self._content(key))}

    def _content(self, key: Key) -> bytes:
        try:
            return self.files[_name(key)]
        except KeyError as error:
            raise NotFound(f"there is no file {os.fsdecode(_name(key))}") from error

    def _is_directory(self, name: bytes) -> bool:
        return not name or any(other.startswith(name + b"/") for other in self.files)


def _kind(rest: bytes) -> FileKind:
    return FileKind.DIRECTORY if rest else FileKind.REGULAR


def _name(key: Key) -> bytes:
    raw = os.fsencode(key) if isinstance(key, str) else key
    return b"/".join(part for part in raw.split(b"/") if part)


def _listing(name: bytes, kind: FileKind, size: int) -> Listing:
    return Listing(
        name=name.rpartition(b"/")[2],
        kind=kind,
        mode=0o755 if kind is FileKind.DIRECTORY else 0o644,
        nlink=1,
        uid=0,
        gid=0,
        size=size,
        mtime_ns=1_700_000_000_000_000_000,
    )
