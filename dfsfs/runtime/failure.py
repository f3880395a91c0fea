"""One failure out of the groups in which nurseries wrap whatever leaves them.

A nursery that is an implementation detail of a context manager should not change what its user's
`except NotFound` sees. Several failures at once stay a group: dropping any would hide a bug.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import trio


def failures_in(error: BaseException) -> list[BaseException]:
    """The failures a group is made of, cancellations left out; of anything else itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in failures_in(inner)]
    return [] if isinstance(error, trio.Cancelled) else [error]


@contextmanager
def ungrouped() -> Iterator[None]:
    """Let a group of one failure out as that failure."""
    try:
        yield
    except BaseExceptionGroup as group:
        failures = failures_in(group)
        if len(failures) != 1:
            raise
        failure, context = failures[0], failures[0].__context__
        try:
            raise failure
        finally:
            # The group became its context; a failure that contains itself is no help to a reader.
            failure.__context__ = context
            del failure, failures, context
