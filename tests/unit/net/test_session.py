"""Sessions: calls, streams, failures, flow control, signs of life. On the simulated network; tests
in which seconds pass take a mock clock, so that these cost nothing."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dfsfs.base import limits
from dfsfs.base.errors import (
    DeadlineExceeded,
    EndOfStream,
    LocalProtocolError,
    NotFound,
    NotSupported,
    Overloaded,
    PeerFailed,
    PeerUnreachable,
)
from dfsfs.net import Endpoint, MessageStream, Reply, Request, Session
from tests.unit.net.conftest import GENEROUS_S, Net, until

Serve = Callable[[Endpoint], None]
BLOCK = bytes(range(256)) * 1024


def calls(**handlers: Any) -> Serve:
    def serve(endpoint: Endpoint) -> None:
        for method, handler in handlers.items():
            endpoint.serve_calls(method, handler)

    return serve


def streams(**handlers: Any) -> Serve:
    def serve(endpoint: Endpoint) -> None:
        for method, handler in handlers.items():
            endpoint.serve_streams(method, handler)

    return serve


async def echo(session: Session, request: Request) -> Reply:
    await trio.lowlevel.checkpoint()
    return Reply(request.body, request.payload)


def echo_at_once(session: Session, request: Request) -> Reply:
    return Reply(request.body, request.payload)


async def hang(session: Session, request: Request) -> Reply:
    await trio.sleep_forever()


@pytest.mark.parametrize("handler", [echo, echo_at_once])
async def test_a_call_and_its_reply_both_ways(net: Net, handler: Any) -> None:
    near, far = await net.pair(calls(echo=handler))
    for session in (near, far):
        for payload in (b"", b"small", BLOCK, bytes(limits.FRAME_PAYLOAD_BYTES_MAX)):
            reply = await session.call("echo", {"a": [1, None, "x", b"y"]}, payload)
            assert reply.body == {"a": [1, None, "x", b"y"]}
            assert reply.payload == payload


async def test_answers_come_in_the_order_they_are_ready(
    net: Net, autojump_clock: MockClock
) -> None:
    async def sleep(session: Session, request: Request) -> Reply:
        await trio.sleep(request.body)
        return Reply(request.body)

    near, _ = await net.pair(calls(sleep=sleep))
    done: list[float] = []

    async def ask(delay: float) -> None:
        done.append((await near.call("sleep", delay)).body)

    async with trio.open_nursery() as nursery:
        for delay in (3.0, 1.0, 2.0):
            nursery.start_soon(ask, delay)
    assert done == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("in_a_nursery", [False, True])
async def test_what_a_handler_raises_reaches_the_caller(net: Net, in_a_nursery: bool) -> None:
    async def fail(session: Session, request: Request) -> Reply:
        if in_a_nursery:
            async with trio.open_nursery():
                raise NotFound("no such block")
        raise NotFound("no such block")

    near, far = await net.pair(calls(fail=fail))
    with pytest.raises(NotFound, match="no such block"):
        await near.call("fail")
    assert far.statistics.calls_refused == 1
    assert far.statistics.handler_failures == 0


@pytest.mark.announce("handler of fail failed")
@pytest.mark.parametrize("sync", [False, True])
async def test_a_bug_in_a_handler_is_logged_counted_and_answered(
    net: Net, caplog: pytest.LogCaptureFixture, sync: bool
) -> None:
    async def fail(session: Session, request: Request) -> Reply:
        raise ZeroDivisionError("secret")

    def fail_at_once(session: Session, request: Request) -> Reply:
        raise ZeroDivisionError("secret")

    near, far = await net.pair(calls(fail=fail_at_once if sync else fail, echo=echo))
    with caplog.at_level(logging.CRITICAL, "dfsfs.net.session"), pytest.raises(PeerFailed) as info:
        await near.call("fail")
    assert "secret" not in str(info.value)
    assert far.statistics.handler_failures == 1
    assert (await near.call("echo", 1)).body == 1


async def test_an_unknown_method(net: Net) -> None:
    near, _ = await net.pair()
    with pytest.raises(NotSupported, match="nonsense"):
        await near.call("nonsense")
    async with near.open_stream("nonsense") as stream:
        with pytest.raises(NotSupported, match="nonsense"):
            await stream.receive()


async def test_a_reply_too_large_is_a_failure_here_and_now(net: Net) -> None:
    near, far = await net.pair(calls(echo=echo))
    with pytest.raises(LocalProtocolError):
        await near.call("echo", b"x" * (limits.FRAME_HEADER_BYTES_MAX + 1))
    with pytest.raises(LocalProtocolError):
        await near.call("echo", None, bytes(limits.FRAME_PAYLOAD_BYTES_MAX + 1))
    assert near.connection.calls_out == far.connection.calls_in == 0
    assert (await near.call("echo", 2)).body == 2


async def test_a_deadline_ends_the_call_on_both_sides(net: Net, autojump_clock: MockClock) -> None:
    cancelled = trio.Event()

    async def handler(session: Session, request: Request) -> Reply:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    near, far = await net.pair(calls(hang=handler, echo=echo))
    with pytest.raises(DeadlineExceeded, match="hang"):
        await near.call("hang", deadline_s=1.5)
    with trio.fail_after(10):
        await cancelled.wait()
    assert near.connection.calls_out == far.connection.calls_in == 0
    assert (await near.call("echo", 1)).body == 1


async def test_an_answer_that_crosses_a_cancel_is_dropped(net: Net) -> None:
    started, release = trio.Event(), trio.Event()

    async def slow(session: Session, request: Request) -> Reply:
        started.set()
        with trio.CancelScope(shield=True):
            await release.wait()
        return Reply("late")

    near, _ = await net.pair(calls(slow=slow, echo=echo))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.call, "slow")
        await started.wait()
        nursery.cancel_scope.cancel()
    release.set()
    for number in range(10):
        assert (await near.call("echo", number)).body == number
    assert not near.closed.is_set()


async def test_cancelled_before_it_was_sent_a_call_leaves_no_trace(net: Net) -> None:
    served: list[int] = []

    def count(session: Session, request: Request) -> Reply:
        served.append(request.body)
        return Reply()

    near, _ = await net.pair(calls(count=count))
    # The window of the link is smaller than one block: the first call fills it.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.call, "count", 1, bytes(4 << 20))
        while not near.connection.calls_out:
            await trio.lowlevel.checkpoint()
        with trio.move_on_after(0):
            await near.call("count", 2, BLOCK)
    await near.call("count", 3)
    assert served == [1, 3]


async def test_small_frames_overtake_blocks(net: Net) -> None:
    order: list[Any] = []

    def note(session: Session, request: Request) -> Reply:
        order.append(request.body)
        return Reply()

    near, _ = await net.pair(calls(note=note))
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(near.call, "note", number, bytes(1 << 20))
        while near.statistics.calls_sent < 6:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(near.call, "note", "urgent")
    assert order.index("urgent") <= 1
    assert sorted(number for number in order if number != "urgent") == list(range(6))


async def test_callers_wait_while_the_queue_is_full_and_nothing_is_dropped(net: Net) -> None:
    served = 0

    def take(session: Session, request: Request) -> Reply:
        nonlocal served
        served += 1
        return Reply()

    near, _ = await net.pair(calls(take=take))
    payload = bytes(1 << 20)
    peak = 0
    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(near.call, "take", None, payload)
        while served < 64:
            peak = max(peak, near.connection.calls_out)
            await trio.sleep(0.0005)
    assert served == 64
    assert peak * len(payload) <= limits.SEND_QUEUE_BYTES_MAX + 4 * len(payload)


async def test_a_peer_that_asks_for_too_much_at_a_time_is_told_so(
    net: Net, autojump_clock: MockClock
) -> None:
    near, far = await net.pair(calls(hang=hang, echo=echo))
    refused = 0

    async def ask() -> None:
        nonlocal refused
        try:
            await near.call("hang", None, bytes(4 << 20), deadline_s=5)
        except Overloaded:
            refused += 1
        except DeadlineExceeded:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert refused == 4  # 16 of 4 MiB fit into INBOUND_BYTES_MAX
    assert (await near.call("echo", 1)).body == 1
    assert far._inbound_bytes == 0


async def test_more_calls_than_the_limit_wait_for_their_turn(net: Net) -> None:
    near, _ = await net.pair(calls(echo=echo))
    answers: list[int] = []

    async def ask(number: int) -> None:
        answers.append((await near.call("echo", number)).body)

    async with trio.open_nursery() as nursery:
        for number in range(limits.STREAMS_PER_SESSION_MAX + 200):
            nursery.start_soon(ask, number)
    assert sorted(answers) == list(range(limits.STREAMS_PER_SESSION_MAX + 200))


# -- message streams --------------------------------------------------------------------------


async def test_messages_flow_both_ways_in_order(net: Net) -> None:
    async def double(session: Session, stream: MessageStream) -> None:
        assert stream.body == {"factor": 2}
        async for message in stream:
            await stream.send(message.body * 2, message.payload)

    near, far = await net.pair(streams(double=double))
    async with near.open_stream("double", {"factor": 2}) as stream:
        for number in range(200):
            # Small and large in turn: a small message must not overtake its own stream.
            await stream.send(number, BLOCK if number % 7 == 0 else b"")
        stream.end()
        seen = [message.body async for message in stream]
    assert seen == [2 * number for number in range(200)]
    assert near.connection.credit(1) is None
    await until(lambda: not far._running)


async def test_a_sender_waits_for_the_credit_of_a_slow_reader(
    net: Net, autojump_clock: MockClock
) -> None:
    release = trio.Event()

    async def slow(session: Session, stream: MessageStream) -> None:
        await release.wait()
        total = sum([len(message.payload) async for message in stream])
        await stream.send(total)

    near, _ = await net.pair(streams(slow=slow))
    sent = 0

    async with near.open_stream("slow") as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            for _ in range(100):
                await stream.send(None, BLOCK)
                sent += len(BLOCK)
            stream.end()

        nursery.start_soon(send)
        await trio.sleep(5)
        assert (
            limits.STREAM_CREDIT_BYTES - len(BLOCK)
            <= sent
            <= limits.STREAM_CREDIT_BYTES + len(BLOCK)
        )
        assert (await near.ping()) is True  # the session is not held up
        release.set()
        assert (await stream.receive()).body == 100 * len(BLOCK)


async def test_the_largest_message_fits_whatever_the_credit(net: Net) -> None:
    async def count(session: Session, stream: MessageStream) -> None:
        await stream.send(len([None async for _ in stream]))

    near, _ = await net.pair(streams(count=count))
    async with near.open_stream("count") as stream:
        for _ in range(5):
            await stream.send(None, bytes(limits.FRAME_PAYLOAD_BYTES_MAX))
        stream.end()
        assert (await stream.receive()).body == 5


async def test_a_stream_handler_that_fails_ends_both_directions(net: Net) -> None:
    async def fail(session: Session, stream: MessageStream) -> None:
        await stream.send("first")
        raise NotFound("gone")

    near, _ = await net.pair(streams(fail=fail))
    async with near.open_stream("fail") as stream:
        assert (await stream.receive()).body == "first"
        with pytest.raises(NotFound, match="gone"):
            await stream.receive()
        with pytest.raises(NotFound, match="gone"):
            await stream.send("more")


async def test_a_stream_handler_that_returns_ends_the_stream(net: Net) -> None:
    async def short(session: Session, stream: MessageStream) -> None:
        await stream.send("only")

    near, _ = await net.pair(streams(short=short))
    async with near.open_stream("short") as stream:
        assert (await stream.receive()).body == "only"
        with pytest.raises(EndOfStream):
            await stream.receive()


async def test_leaving_a_stream_early_cancels_its_handler(net: Net) -> None:
    cancelled = trio.Event()

    async def wait(session: Session, stream: MessageStream) -> None:
        try:
            await stream.send("ready")
            await trio.sleep_forever()
        finally:
            cancelled.set()

    near, _ = await net.pair(streams(wait=wait))
    async with near.open_stream("wait") as stream:
        await stream.receive()
    with trio.fail_after(10):
        await cancelled.wait()


async def test_too_many_streams(net: Net) -> None:
    async def wait(session: Session, stream: MessageStream) -> None:
        async for _ in stream:
            pass

    near, far = await net.pair(streams(wait=wait))
    async with trio.open_nursery() as nursery:

        async def hold() -> None:
            async with near.open_stream("wait"):
                await trio.sleep_forever()

        for _ in range(limits.MESSAGE_STREAMS_PER_SESSION_MAX):
            nursery.start_soon(hold)
        await until(lambda: len(far._running) == limits.MESSAGE_STREAMS_PER_SESSION_MAX)
        with pytest.raises(Overloaded):
            async with near.open_stream("wait"):
                pass
        nursery.cancel_scope.cancel()
    async with near.open_stream("wait") as stream:
        stream.end()
        with pytest.raises(EndOfStream):
            await stream.receive()


# -- life and death ---------------------------------------------------------------------------


async def test_closing_tells_the_peer_why_and_fails_what_waits(net: Net) -> None:
    near, far = await net.pair(calls(hang=hang))
    errors: list[str] = []

    async def ask() -> None:
        try:
            await near.call("hang")
        except PeerUnreachable as error:
            errors.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await until(lambda: far.connection.calls_in == 2)
        far.close("spring cleaning")
        far.close("again")
    assert len(errors) == 2
    assert all("spring cleaning" in text for text in errors)
    with trio.fail_after(5):
        await near.closed.wait()
        await far.closed.wait()
    with pytest.raises(PeerUnreachable, match="spring cleaning"):
        await near.call("hang")
    with pytest.raises(PeerUnreachable):
        async with near.open_stream("any"):
            pass


async def test_a_cut_ends_the_session_on_both_sides(net: Net) -> None:
    near, far = await net.pair(calls(hang=hang))
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(PeerUnreachable):
                await near.call("hang")

        nursery.start_soon(ask)
        await until(lambda: far.connection.calls_in == 1)
        assert net.network.cut("a", "b") == 1
    with trio.fail_after(5):
        await near.closed.wait()
        await far.closed.wait()
    assert not far._running


async def test_a_silent_peer_is_dead_after_the_lease_and_not_before(
    net: Net, autojump_clock: MockClock
) -> None:
    near, far = await net.pair()
    await trio.sleep(10 * limits.SESSION_LEASE_S)
    assert not near.closed.is_set()  # keepalives flow without any traffic
    assert near.round_trip_s is not None
    assert 0 < near.round_trip_s < 0.1
    last_heard = near.received_at
    net.network.partition({"a"}, {"b"})
    await trio.sleep(limits.SESSION_LEASE_S - limits.KEEPALIVE_S * 1.1)
    assert not near.closed.is_set()
    with trio.fail_after(limits.KEEPALIVE_S * 3 + limits.GOODBYE_TIMEOUT_S):
        await near.closed.wait()
        await far.closed.wait()
    assert near.received_at - last_heard < limits.KEEPALIVE_S * 1.1
    assert "silent" in near.close_reason


async def test_pings_measure_and_fail_with_the_session(net: Net, autojump_clock: MockClock) -> None:
    near, far = await net.pair()
    assert await near.ping()
    before = far.answered_at
    await trio.sleep(0.01)
    assert await near.ping()
    assert far.answered_at > before
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            assert not await near.ping()

        net.network.partition({"a"}, {"b"})
        nursery.start_soon(ask)


@pytest.mark.announce("handler of fail failed")
async def test_a_handler_that_fails_while_it_is_cancelled_harms_nobody(net: Net) -> None:
    failed = trio.Event()

    async def fail(session: Session, request: Request) -> Reply:
        async def clean_up_badly() -> None:
            try:
                await trio.sleep_forever()
            finally:
                failed.set()
                raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean_up_badly)
            nursery.start_soon(trio.sleep_forever)
        return Reply()

    near, far = await net.pair(calls(fail=fail, echo=echo))

    async def ask() -> None:
        with pytest.raises(PeerUnreachable):
            await near.call("fail")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: far.connection.calls_in == 1)
        await trio.testing.wait_all_tasks_blocked()
        near.close()
    with trio.fail_after(GENEROUS_S):
        await failed.wait()
        await far.closed.wait()
        again = await net.endpoints["a"].connect("sim://b")
        assert (await again.call("echo", 1)).body == 1


async def test_a_handler_that_is_done_when_the_session_has_ended_answers_nobody(net: Net) -> None:
    begun, go_on, done = trio.Event(), trio.Event(), trio.Event()

    async def store(session: Session, request: Request) -> Reply:
        begun.set()
        with trio.CancelScope(shield=True):
            await go_on.wait()
        done.set()
        return Reply()

    near, far = await net.pair(calls(store=store))
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(PeerUnreachable):
                await near.call("store")

        nursery.start_soon(ask)
        await begun.wait()
        near.close("enough")
    await until(lambda: bool(far.close_reason))
    go_on.set()
    await far.closed.wait()
    assert done.is_set()
    assert far.statistics.handler_failures == 0


async def test_a_call_that_finds_the_stream_broken_while_sending_fails(net: Net) -> None:
    near, _ = await net.pair(calls(echo=echo))
    await near.call("echo", 1)  # the outbox is idle: the next call sends in its own task
    net.network.cut("a", "b")
    with trio.fail_after(GENEROUS_S), pytest.raises(PeerUnreachable):
        await near.call("echo", 2)
    assert near.connection.calls_out <= 1
    assert not near._calls


@pytest.mark.announce("broke the protocol")
async def test_a_peer_that_uses_a_stream_twice_loses_its_session_and_nothing_else(
    net: Net,
) -> None:
    """While the first handler is still ending, its place is not another's."""
    near, far = await net.pair(calls(hang=hang))
    stream, head = near.connection.send_call("hang", None, 0)
    near.outbox.hold()
    near.outbox.put(stream, head)
    near.outbox.put(stream, near.connection.send_cancel(stream))
    near.outbox.put(stream, head)
    near.outbox.release()
    with trio.fail_after(GENEROUS_S):
        await far.closed.wait()
        await near.closed.wait()
    assert "twice" in far.close_reason
