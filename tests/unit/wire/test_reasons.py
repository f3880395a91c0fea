"""Failures as numbers: every class arrives as itself or as its nearest relative."""

import pytest

from dfsfs.base import errors
from dfsfs.base.errors import DfsError
from dfsfs.base.limits import FAILURE_TEXT_BYTES_MAX
from dfsfs.wire import code_of, error_of, text_of

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, DfsError)
]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_arrives_as_something_it_is(cls: type[DfsError]) -> None:
    arrived = error_of(code_of(cls("text")), "text")
    assert isinstance(cls("text"), type(arrived)) or isinstance(arrived, errors.PeerFailed)
    assert str(arrived) == "text"


def test_posix_errors_keep_their_errno() -> None:
    for cls in (errors.NotFound, errors.Exists, errors.Full, errors.NotEmpty, errors.ReadOnly):
        assert error_of(code_of(cls()), "").errno == cls.errno


def test_codes_of_the_future_and_hostile_texts() -> None:
    error = error_of(12345, "red \x1b[31m alert\n")
    assert isinstance(error, errors.PeerFailed)
    assert "\x1b" not in str(error)
    assert "\n" not in str(error)
    long = text_of(errors.NotFound("ä" * 1000))
    assert len(long.encode()) <= FAILURE_TEXT_BYTES_MAX
    assert set(long) == {"ä"}
