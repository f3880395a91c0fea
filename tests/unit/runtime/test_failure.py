"""One failure out of a nursery is that failure; several stay several."""

import pytest
import trio

from dfsfs.base.errors import NotFound, Refused
from dfsfs.runtime import failures_in, ungrouped


async def fail(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def test_one_failure_comes_out_as_itself() -> None:
    error = NotFound("it")
    cause = ValueError("why")
    error.__cause__ = cause

    async def two_nurseries_deep() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(trio.sleep_forever)
            inner.start_soon(fail, error)

    with pytest.raises(NotFound) as caught, ungrouped():
        await two_nurseries_deep()
    assert caught.value is error
    assert error.__cause__ is cause
    assert error.__context__ is None or not isinstance(error.__context__, BaseExceptionGroup)


async def test_two_failures_stay_two() -> None:
    with pytest.raises(BaseExceptionGroup) as caught, ungrouped():
        raise ExceptionGroup("both", [NotFound("a"), ExceptionGroup("inner", [Refused("b")])])
    assert [type(failure) for failure in failures_in(caught.value)] == [NotFound, Refused]


async def test_cancellation_passes() -> None:
    with trio.move_on_after(0) as scope, ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
    assert scope.cancelled_caught


def test_what_is_no_group_passes() -> None:
    with pytest.raises(KeyError), ungrouped():
        raise KeyError
    assert failures_in(ValueError("x"))[0].args == ("x",)
