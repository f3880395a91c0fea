"""Calls that must fail, and calls made by several processes at once."""

import ctypes
import os
from collections.abc import Callable

import pytest

libc = ctypes.CDLL(None, use_errno=True)


def fails(number: int, call: Callable[..., object], *arguments: object) -> None:
    """See that a call fails with this errno."""
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno == number, caught.value


def in_children(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in child processes at the same time; all must return."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            try:
                work(number)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count
