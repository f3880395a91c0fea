"""The errno border: what a handler raises, and what the caller of the filesystem sees.

pyfuse3 ends its main loop, and with it the mount, when a handler raises anything but FUSEError. So
every handler passes here: expected failures become their errno, a handler that takes longer than
`limits.HANDLER_TIMEOUT_S` becomes EIO, one whose caller was killed ends early (`Callers`), and a
bug becomes EIO, a line in the log with its traceback, and a count.

Every call is counted here as well: how long it took and how it failed (`CallTable`). A handler that
is only the waiting half of another (its name begins with `_`) is not counted twice.

Cancellation is never caught. `sync_handler` is for handlers that never wait: no deadline to set.
"""

import errno
import functools
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, TypeVar

import pyfuse3
import trio

from dfsfs.base.errors import DfsError
from dfsfs.base.limits import HANDLER_TIMEOUT_S
from dfsfs.fuse.callers import Callers
from dfsfs.runtime import CallTable

log = logging.getLogger(__name__)

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


class Failures:
    """How often handlers failed in ways nobody expected; read by status and tests."""

    def __init__(self, calls: CallTable) -> None:
        self.calls = calls
        self.bugs = 0
        self.timeouts = 0

    def translate(self, name: str, error: Exception) -> pyfuse3.FUSEError:
        """What the caller sees of an exception."""
        if isinstance(error, pyfuse3.FUSEError):
            return error
        if isinstance(error, DfsError):
            if error.errno == errno.EIO:
                log.info("%s: %s", name, error)
            return pyfuse3.FUSEError(error.errno)
        if isinstance(error, OSError) and error.errno:
            log.info("%s: %s", name, error)
            return pyfuse3.FUSEError(error.errno)
        if isinstance(error, trio.TooSlowError):
            self.timeouts += 1
            log.info("%s: no end after %.0f s", name, HANDLER_TIMEOUT_S)
            return pyfuse3.FUSEError(errno.EIO)
        self.bugs += 1
        log.error("%s failed: a bug in dfsfs", name, exc_info=error)
        return pyfuse3.FUSEError(errno.EIO)


def handler(method: Handler) -> Handler:
    """Wrap a handler that may wait."""
    verb = method.__name__

    @functools.wraps(method)
    async def bounded(self: Any, *args: Any) -> Any:
        callers: Callers = self.callers
        with trio.move_on_after(HANDLER_TIMEOUT_S) as scope:
            wait = callers.begin(verb, args, scope)
            try:
                return await method(self, *args)
            finally:
                callers.end(wait)
        if wait.ended:
            raise pyfuse3.FUSEError(errno.EINTR)
        raise trio.TooSlowError

    return _guarded(bounded)  # type: ignore[return-value] # the same call, but for what it raises


def sync_handler(method: Handler) -> Handler:
    """Wrap a handler that never waits: it is on the hottest paths, and needs no deadline."""
    return _guarded(method)


def _guarded(method: Handler) -> Handler:
    verb = method.__name__

    @functools.wraps(method)
    async def guarded(self: Any, *args: Any) -> Any:
        try:
            return await method(self, *args)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise self.failures.translate(verb, error) from error

    @functools.wraps(method)
    async def counted(self: Any, *args: Any) -> Any:
        failures: Failures = self.failures
        calls = failures.calls
        failure = 0
        begin_s = perf_counter()  # a third of what the loop's clock costs, on the hottest paths
        calls.under_way += 1
        try:
            return await method(self, *args)
        except pyfuse3.FUSEError as error:
            failure = error.errno
            raise
        except Exception as error:
            translated = failures.translate(verb, error)
            failure = translated.errno
            raise translated from error
        finally:
            calls.under_way -= 1
            calls.ended(verb, perf_counter() - begin_s, failure)

    return guarded if verb.startswith("_") else counted  # type: ignore[return-value] # as above
