"""The control socket, both ends, in front of an operator in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dfsfs.admin import ControlClient, Operator, connect_control, messages, serve_control
from dfsfs.base.errors import (
    IsDirectory,
    NotFound,
    PeerUnreachable,
    RemoteProtocolError,
    Unavailable,
)
from dfsfs.base.limits import CONTROL_LIST_COUNT_MAX
from dfsfs.base.types import Buffer, FileKind
from dfsfs.runtime import RealWorld
from tests.unit.admin.operator_twin import MemoryOperator


@asynccontextmanager
async def connected(tmp_path: Path, operator: Operator) -> AsyncIterator[ControlClient]:
    path = tmp_path / "control.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, operator, RealWorld(), path, {"mountpoint": "/m"})
        async with connect_control(path) as client:
            yield client
        nursery.cancel_scope.cancel()


async def pieces_of(content: bytes, size: int = 200_000) -> AsyncIterator[Buffer]:
    for start in range(0, len(content), size):
        await trio.lowlevel.checkpoint()
        yield content[start : start + size]


async def test_a_file_goes_in_and_comes_out(tmp_path: Path) -> None:
    operator = MemoryOperator()
    content = bytes(range(256)) * 40_000  # 10 MB: more than credit and queues together
    async with connected(tmp_path, operator) as client:
        await client.put("a/b \udcff", pieces_of(content))
        assert operator.files == {b"a/b \xff": content}
        assert operator.pieces_seen > 10
        async with client.get(b"a/b \xff") as pieces:
            assert b"".join([bytes(piece) async for piece in pieces]) == content
        await client.put("empty", pieces_of(b""))
        async with client.get("empty") as pieces:
            assert [piece async for piece in pieces] == []


async def test_a_put_that_breaks_off_does_not_happen(tmp_path: Path) -> None:
    operator = MemoryOperator()
    operator.files[b"k"] = b"old"

    async def breaks() -> AsyncIterator[Buffer]:
        yield b"new"
        raise ValueError("the file could not be read to its end")

    async with connected(tmp_path, operator) as client:
        with pytest.raises(ValueError, match="to its end"):
            await client.put("k", breaks())
        with trio.fail_after(30):
            while not operator.puts_given_up:
                await client.status()
    assert operator.files == {b"k": b"old"}


async def test_a_put_that_is_refused_says_why_and_stops_reading(tmp_path: Path) -> None:
    operator = MemoryOperator()
    operator.files[b"d/f"] = b""
    sent = 0

    async def endless() -> AsyncIterator[Buffer]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(100_000)
            await trio.lowlevel.checkpoint()

    async with connected(tmp_path, operator) as client:
        with pytest.raises(IsDirectory, match="d is a directory"), trio.fail_after(30):
            await client.put("d", endless())


async def test_errors_arrive_as_what_they_are(tmp_path: Path) -> None:
    async with connected(tmp_path, MemoryOperator()) as client:
        with pytest.raises(NotFound, match="there is no file none"):
            await client.stat("none")
        with pytest.raises(NotFound):
            await client.remove("none")
        with pytest.raises(NotFound):
            await client.info("none")
        with pytest.raises(NotFound):
            async with client.get("none") as pieces:
                [piece async for piece in pieces]


async def test_a_directory_is_listed_in_pages(tmp_path: Path) -> None:
    operator = MemoryOperator()
    names = sorted(b"%05d-" % number + b"x" * 200 for number in range(2_500))
    operator.files = {b"d/" + name: b"" for name in names} | {b"d/sub/f": b""}
    async with connected(tmp_path, operator) as client:
        found, after = [], None
        while page := await client.list("d", after, CONTROL_LIST_COUNT_MAX):
            assert len(page) <= CONTROL_LIST_COUNT_MAX
            found += page
            after = page[-1].name
        assert [entry.name for entry in found] == [*names, b"sub"]
        assert found[-1].kind is FileKind.DIRECTORY
        await client.remove(b"d/" + names[0])
        assert b"d/" + names[0] not in operator.files


async def test_status_has_what_the_face_knows(tmp_path: Path) -> None:
    async with connected(tmp_path, MemoryOperator()) as client:
        status = await client.status()
        assert status["mountpoint"] == "/m"
        assert status["node"]["name"] == "twin"


async def test_several_clients_at_a_time(tmp_path: Path) -> None:
    operator = MemoryOperator()
    async with connected(tmp_path, operator):

        async def put(number: int) -> None:
            async with connect_control(tmp_path / "control.sock") as client:
                await client.put(f"f{number}", pieces_of(b"%d" % number * 100_000))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(put, number)
    assert len(operator.files) == 8


async def test_no_node_is_a_sentence_that_helps(tmp_path: Path) -> None:
    with pytest.raises(PeerUnreachable, match="no dfs node runs with the state directory"):
        async with connect_control(tmp_path / "control.sock"):
            pass


async def test_a_socket_file_left_by_a_dead_node_is_replaced(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    with pytest.raises(PeerUnreachable):
        async with connect_control(tmp_path / "control.sock"):
            pass
    async with connected(tmp_path, MemoryOperator()) as client:
        await client.status()


async def test_a_living_socket_is_not_taken(tmp_path: Path) -> None:
    async with connected(tmp_path, MemoryOperator()) as client:
        with pytest.raises(Unavailable, match="another process listens"):
            await serve_control(MemoryOperator(), RealWorld(), tmp_path / "control.sock", {})
        await client.status()


@pytest.mark.parametrize(
    "body", [None, 7, "text", b"x" * 20_000, [b"k", 3, 1], [b"k", None, 10**9], [b"k"]]
)
async def test_malformed_requests_are_refused(tmp_path: Path, body: object) -> None:
    async with connected(tmp_path, MemoryOperator()) as client:
        session = client._session  # the raw wire, to say what a client never says
        for method in (
            (messages.LIST,) if isinstance(body, list) else (messages.STAT, messages.INFO)
        ):
            with pytest.raises(RemoteProtocolError):
                await session.call(method, body)
        await client.status()
