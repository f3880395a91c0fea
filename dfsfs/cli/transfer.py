"""`dfs put` and `dfs get`: files and standard streams, to and from the running node, by pieces.

Reading and writing files happens in threads that may be abandoned: a terminal or a pipe can keep
one waiting for ever, and Ctrl-C must end the command all the same.
"""

import os
import stat
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import trio

from dfsfs.admin import connect_control
from dfsfs.base.limits import CONTROL_PIECE_BYTES
from dfsfs.base.types import Buffer
from dfsfs.cli.options import control_path


def put(key: str, file: str, state: Path | None) -> None:
    """Store a file or standard input as `key`."""
    if file == "-":
        trio.run(_put, key, sys.stdin.fileno(), state)
        return
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    with suppress(OSError):  # a pipe by name takes no advice
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    try:
        trio.run(_put, key, descriptor, state)
    finally:
        os.close(descriptor)


def get(key: str, file: str, state: Path | None) -> None:
    """Write the content of `key` to a file or standard output."""
    if file == "-":
        trio.run(_get, key, sys.stdout.fileno, state)
        return
    if _is_special(file):
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            trio.run(_get, key, lambda: descriptor, state)
        finally:
            os.close(descriptor)
        return
    _get_into_new_file(key, Path(file), state)


def _is_special(file: str) -> bool:
    """Whether `file` exists and is a device or a pipe, which is written to and never replaced."""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _get_into_new_file(key: str, file: Path, state: Path | None) -> None:
    """Replace `file` when all of the content is there, so that a failure leaves the old one."""
    if file.is_dir():
        raise IsADirectoryError(21, "Is a directory", str(file))
    descriptor, temporary = -1, ""

    def target() -> int:
        # Made when the first bytes are here: a key that does not exist leaves no trace.
        nonlocal descriptor, temporary
        if descriptor < 0:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        return descriptor

    try:
        trio.run(_get, key, target, state)
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(target(), 0o666 & ~mask)
        os.replace(temporary, file)
    except BaseException:
        if temporary:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


async def _put(key: str, descriptor: int, state: Path | None) -> None:
    async with (
        connect_control(control_path(state)) as node,
        aclosing(_pieces(descriptor)) as pieces,
    ):
        await node.put(key, pieces)


async def _pieces(descriptor: int) -> AsyncGenerator[Buffer, None]:
    while piece := await trio.to_thread.run_sync(
        os.read, descriptor, CONTROL_PIECE_BYTES, abandon_on_cancel=True
    ):
        yield piece


async def _get(key: str, target: Callable[[], int], state: Path | None) -> None:
    async with connect_control(control_path(state)) as node, node.get(key) as pieces:
        async for piece in pieces:
            await trio.to_thread.run_sync(_write_all, target(), piece, abandon_on_cancel=True)


def _write_all(descriptor: int, piece: Buffer) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]
