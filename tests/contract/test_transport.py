"""What every transport keeps, whatever carries its bytes: see `dfsfs.net.transport`."""

import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from dfsfs.base.errors import PeerUnreachable, Unavailable
from dfsfs.net import (
    Address,
    Credentials,
    Listener,
    NetworkKey,
    NodeIdentity,
    Stream,
    Transport,
    Transports,
    control_transports,
    insecure_transports,
    standard_transports,
)
from dfsfs.testing.network import LinkProfile, SimNetwork

KEY = NetworkKey(b"k" * 32)
GENEROUS_S = 20


class Setup:
    """Two machines' transports of one kind, and an address to listen at."""

    def __init__(self, here: Transport, there: Transport, url: str) -> None:
        self.here = here
        self.there = there
        self.address = Address.parse(url)

    async def listen(self) -> Listener:
        return await self.there.listen(self.address)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[Stream, Stream]]:
        listener = await self.listen()
        streams: list[Stream] = []
        try:
            near = await self.here.connect(Address.parse(listener.url))
            far = await listener.accept()
            streams += [near, far]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.handshake)
                nursery.start_soon(far.handshake)
            yield near, far
        finally:
            listener.close()
            for stream in streams:
                stream.close()


def tls(_: Path) -> Setup:
    def make() -> Transports:
        return standard_transports(Credentials(NodeIdentity.generate(), KEY))

    return Setup(make()["tls"], make()["tls"], "tls://127.0.0.1:0")


def tcp(_: Path) -> Setup:
    transport = insecure_transports()["tcp"]
    return Setup(transport, transport, "tcp://127.0.0.1:0")


def tcp6(_: Path) -> Setup:
    transport = insecure_transports()["tcp"]
    return Setup(transport, transport, "tcp://[::1]:0")


def unix(directory: Path) -> Setup:
    transport = control_transports()["unix"]
    return Setup(transport, transport, f"unix://{directory}/control.sock")


def sim(_: Path) -> Setup:
    profile = LinkProfile(latency_min_s=0.0001, latency_max_s=0.002)
    network = SimNetwork(random.Random(1), profile)
    return Setup(network.transport("a"), network.transport("b"), "sim://b:0")


@pytest.fixture(params=[tls, tcp, tcp6, unix, sim], ids=lambda make: make.__name__)
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    make: Callable[[Path], Setup] = request.param
    return make(tmp_path)


async def send(stream: Stream, *parts: bytes) -> None:
    waiting = deque(memoryview(part) for part in parts)
    while waiting:
        stream.send_nowait(waiting)
        if waiting:
            await stream.wait_sendable()
        else:
            await trio.lowlevel.checkpoint()


async def send_for_ever(stream: Stream) -> None:
    while True:
        await send(stream, bytes(100_000))


async def receive(stream: Stream, count: int, step: int = 1 << 20) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    filled = 0
    while filled < count:
        taken = await stream.receive_into(view[filled : filled + step])
        if not taken:
            break
        filled += taken
    return bytes(view[:filled])


async def test_bytes_arrive_in_order_both_ways(setup: Setup) -> None:
    random_bytes = random.Random(2).randbytes
    forth, back = random_bytes(3_000_001), random_bytes(2_000_003)
    with trio.fail_after(GENEROUS_S):
        async with setup.connected() as (near, far), trio.open_nursery() as nursery:

            async def check(stream: Stream, expected: bytes, step: int) -> None:
                assert await receive(stream, len(expected), step) == expected

            nursery.start_soon(check, far, forth, 70_000)
            nursery.start_soon(check, near, back, 1234)
            nursery.start_soon(send, near, forth[:7], forth[7:20_000], forth[20_000:])
            nursery.start_soon(send, far, back)


async def test_many_parts_of_all_sizes(setup: Setup) -> None:
    dice = random.Random(3)
    parts = [dice.randbytes(dice.choice((1, 2, 20, 500, 16_384, 70_000))) for _ in range(300)]
    expected = b"".join(parts)
    with trio.fail_after(GENEROUS_S):
        async with setup.connected() as (near, far), trio.open_nursery() as nursery:
            nursery.start_soon(send, near, *parts)
            assert await receive(far, len(expected)) == expected


async def test_a_receiver_gets_what_is_there_without_waiting_for_more(setup: Setup) -> None:
    with trio.fail_after(GENEROUS_S):
        async with setup.connected() as (near, far):
            await send(near, b"abc")
            assert await receive(far, 3) == b"abc"
            await send(far, b"d")
            assert await near.receive_into(memoryview(bytearray(100))) == 1


async def test_a_sender_is_held_back_by_a_receiver_that_does_not_read(setup: Setup) -> None:
    async with setup.connected() as (near, far):
        block = memoryview(bytes(1 << 20))
        waiting: deque[memoryview] = deque()
        accepted = 0
        with trio.move_on_after(0.3):
            while accepted < 256:
                waiting.append(block)
                while waiting:
                    near.send_nowait(waiting)
                    await near.wait_sendable()
                accepted += 1
        assert 0 <= accepted < 256
        # What was left over is sent when the other side reads again.
        with trio.fail_after(GENEROUS_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, near, *(bytes(part) for part in waiting))
                size = (accepted + (1 if waiting else 0)) << 20
                assert len(await receive(far, size)) == size


async def test_closing_in_good_order_is_an_end(setup: Setup) -> None:
    with trio.fail_after(GENEROUS_S):
        async with setup.connected() as (near, far):
            await send(near, b"last words")
            near.close()
            near.close()
            assert await receive(far, 100) == b"last words"
            assert await far.receive_into(memoryview(bytearray(10))) == 0


async def test_closing_wakes_whoever_waits(setup: Setup) -> None:
    with trio.fail_after(GENEROUS_S):
        async with setup.connected() as (near, _far), trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(PeerUnreachable):
                    await near.receive_into(memoryview(bytearray(10)))

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            near.close()


async def test_a_closed_stream_fails_in_every_way(setup: Setup) -> None:
    async with setup.connected() as (near, _far):
        near.close()
        with pytest.raises(PeerUnreachable):
            await near.receive_into(memoryview(bytearray(10)))
        with pytest.raises(PeerUnreachable):
            near.send_nowait(deque([memoryview(b"x")]))
        with pytest.raises(PeerUnreachable):
            await near.wait_sendable()


async def test_sending_to_one_who_left_fails_in_the_end(setup: Setup) -> None:
    with trio.fail_after(GENEROUS_S):
        async with setup.connected() as (near, far):
            await send(near, b"never read")
            await trio.testing.wait_all_tasks_blocked()
            far.close()
            with pytest.raises(PeerUnreachable):
                await send_for_ever(near)


async def test_cancelled_waits_leave_the_stream_intact(setup: Setup) -> None:
    with trio.fail_after(GENEROUS_S):
        async with setup.connected() as (near, far):
            buffer = memoryview(bytearray(10))
            with trio.move_on_after(0.01) as scope:
                await far.receive_into(buffer)
            assert scope.cancelled_caught
            await send(near, b"still here")
            assert await receive(far, 10) == b"still here"


async def test_receiving_is_a_checkpoint_even_when_bytes_are_here(setup: Setup) -> None:
    with trio.fail_after(GENEROUS_S):
        async with setup.connected() as (near, far):
            await send(near, b"ab")
            assert await receive(far, 1) == b"a"
            with trio.move_on_after(0) as scope:
                await far.receive_into(memoryview(bytearray(1)))
            assert scope.cancelled_caught
            assert await receive(far, 1) == b"b"  # and cancelled it has taken nothing


async def test_nobody_listens(setup: Setup) -> None:
    listener = await setup.listen()
    address = Address.parse(listener.url)
    listener.close()
    listener.close()
    with trio.fail_after(GENEROUS_S), pytest.raises(PeerUnreachable):
        await setup.here.connect(address)


async def test_an_address_is_taken_once(setup: Setup) -> None:
    listener = await setup.listen()
    try:
        with pytest.raises(Unavailable):
            await setup.there.listen(Address.parse(listener.url))
    finally:
        listener.close()


async def test_closing_a_listener_wakes_its_accepter_and_frees_the_address(setup: Setup) -> None:
    listener = await setup.listen()
    with trio.fail_after(GENEROUS_S):
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                with pytest.raises(PeerUnreachable):
                    await listener.accept()

            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            listener.close()
    again = await setup.there.listen(Address.parse(listener.url))
    assert again.url == listener.url
    again.close()


async def test_what_a_transport_proves_is_the_same_on_both_sides(setup: Setup) -> None:
    async with setup.connected() as (near, far):
        assert (near.peer_id is None) == (far.peer_id is None)
        assert near.local == far.local
        if setup.address.scheme == "tls":
            assert near.peer_id is not None
            assert near.peer_id != far.peer_id
        assert near.local == (setup.address.scheme == "unix")
