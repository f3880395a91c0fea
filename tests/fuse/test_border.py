"""What a handler raises, and what the caller of the filesystem sees."""

import errno

import pyfuse3
import pytest
import trio
import trio.testing

from dfsfs.base.errors import Corrupt, DfsError, Exists, NotFound
from dfsfs.base.limits import HANDLER_TIMEOUT_S
from dfsfs.base.types import InodeId
from dfsfs.fuse.border import Failures, handler, sync_handler
from dfsfs.fuse.callers import Callers
from dfsfs.runtime import CallTable


class Handlers:
    """Handlers that fail in every way."""

    def __init__(self) -> None:
        self.failures = Failures(CallTable())
        self.callers = Callers(InodeId)

    @handler
    async def fail(self, error: BaseException) -> None:
        raise error

    @sync_handler
    async def fail_at_once(self, error: BaseException) -> None:
        raise error

    @sync_handler
    async def succeed(self) -> None:
        await self._wait()

    @handler
    async def _wait(self) -> None:
        await trio.lowlevel.checkpoint()

    @handler
    async def hang(self) -> None:
        await trio.sleep_forever()


def _subclasses(kind: type[DfsError]) -> list[type[DfsError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _subclasses(child))]


@pytest.mark.parametrize("kind", _subclasses(DfsError))
async def test_expected_failures_have_their_errno(kind: type[DfsError]) -> None:
    handlers = Handlers()
    for method in (handlers.fail, handlers.fail_at_once):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await method(kind("a sentence"))
        assert caught.value.errno == kind.errno > 0
    assert handlers.failures.bugs == 0


def test_a_few_by_name() -> None:
    assert (NotFound.errno, Exists.errno, Corrupt.errno) == (
        errno.ENOENT,
        errno.EEXIST,
        errno.EIO,
    )


@pytest.mark.announce("a bug in dfsfs")
@pytest.mark.parametrize(
    "error", [KeyError("x"), AssertionError(), OSError("no errno"), MemoryError()]
)
async def test_bugs_are_eio_and_counted(error: Exception) -> None:
    handlers = Handlers()
    for method in (handlers.fail, handlers.fail_at_once):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await method(error)
        assert caught.value.errno == errno.EIO
    assert handlers.failures.bugs == 2


async def test_system_errors_keep_their_errno() -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Handlers().fail(OSError(errno.EDQUOT, "over quota"))
    assert caught.value.errno == errno.EDQUOT
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Handlers().fail(pyfuse3.FUSEError(errno.EXDEV))
    assert caught.value.errno == errno.EXDEV


async def test_calls_are_counted_by_verb_and_errno() -> None:
    handlers = Handlers()
    for method in (handlers.fail, handlers.fail_at_once):
        for error in (NotFound("a sentence"), pyfuse3.FUSEError(errno.ENOENT)):
            with pytest.raises(pyfuse3.FUSEError):
                await method(error)
    await handlers.succeed()
    figures = handlers.failures.calls.figures()
    assert figures["fail"]["failures"] == figures["fail_at_once"]["failures"] == {"ENOENT": 2}
    # The waiting half of a call is not a call of its own.
    assert {verb: sum(found["counts"]) for verb, found in figures.items()} == {
        "fail": 2,
        "fail_at_once": 2,
        "succeed": 1,
    }
    assert handlers.failures.calls.under_way == 0


async def test_a_handler_has_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    handlers = Handlers()
    begin = trio.current_time()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handlers.hang()
    assert caught.value.errno == errno.EIO
    assert trio.current_time() - begin == pytest.approx(HANDLER_TIMEOUT_S)
    assert handlers.failures.timeouts == 1


async def test_cancellation_passes(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await Handlers().hang()
    assert scope.cancelled_caught
    with pytest.raises(KeyboardInterrupt):
        await Handlers().fail(KeyboardInterrupt())
