"""`dfs ls`, `rm`, `status` and `info`: ask the running node, print its answer."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import trio

from dfsfs.admin import connect_control
from dfsfs.base.errors import DfsError
from dfsfs.base.limits import CONTROL_LIST_COUNT_MAX
from dfsfs.base.types import FileKind
from dfsfs.cli import output
from dfsfs.cli.options import control_path
from dfsfs.cli.program import EXIT_FAILED, complain


def list_directory(key: str, state: Path | None, *, long: bool) -> None:
    """Print a directory's entries, or the one file that `key` is."""
    trio.run(_list, key, state, long)


async def _list(key: str, state: Path | None, long: bool) -> None:
    write = sys.stdout.buffer.write
    escape = sys.stdout.isatty()
    async with connect_control(control_path(state)) as node:
        entry = await node.stat(key)
        if entry.kind is not FileKind.DIRECTORY:
            write(output.listing_line(entry, long=long, escape=escape))
            return
        after: bytes | None = None
        while page := await node.list(key, after, CONTROL_LIST_COUNT_MAX):
            for entry in page:
                write(output.listing_line(entry, long=long, escape=escape))
            after = page[-1].name
    sys.stdout.buffer.flush()


def remove(keys: tuple[str, ...], state: Path | None) -> None:
    """Remove each key; go on after a failure, and fail at the end."""
    if trio.run(_remove, keys, state):
        sys.exit(EXIT_FAILED)


async def _remove(keys: tuple[str, ...], state: Path | None) -> bool:
    failed = False
    async with connect_control(control_path(state)) as node:
        for key in keys:
            try:
                await node.remove(key)
            except DfsError as error:
                complain("dfs", str(error))
                failed = True
    return failed


def status(state: Path | None, *, as_json: bool) -> None:
    """Print the node's status."""
    answer = trio.run(_status, state)
    print(_json(answer) if as_json else output.status_text(answer))


async def _status(state: Path | None) -> dict[str, Any]:
    async with connect_control(control_path(state)) as node:
        return await node.status()


def info(path: str, state: Path | None, *, as_json: bool) -> None:
    """Print where a file is."""
    answer = trio.run(_info, path, state)
    print(_json(answer) if as_json else output.info_text(answer))


async def _info(path: str, state: Path | None) -> dict[str, Any]:
    async with connect_control(control_path(state)) as node:
        mountpoint = (await node.status()).get("mountpoint")
        return await node.info(key_of_path(path, mountpoint))


def key_of_path(path: str, mountpoint: str | None) -> str:
    """The key of a path in the mount; anything else is a key already.

    Symlinks on the way to the mount are followed, the last component is not: the key of a symlink
    is its own.
    """
    if mountpoint is None:
        return path
    parent, name = os.path.split(os.path.abspath(path))
    real = os.path.join(os.path.realpath(parent), name)
    root = os.path.realpath(mountpoint)
    if real == root:
        return ""
    return os.path.relpath(real, root) if real.startswith(root.rstrip("/") + "/") else path


def _json(answer: dict[str, Any]) -> str:
    return json.dumps(answer, indent=2, sort_keys=True, default=_json_value)


def _json_value(value: object) -> str:
    # Ids and names that are bytes: text where they are text, hexadecimal digits otherwise.
    assert isinstance(value, bytes)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()
