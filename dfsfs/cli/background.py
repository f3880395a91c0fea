"""Put a node into the background, and tell its parent how the start went.

The fork comes before trio and before any thread: a forked child has only the forking thread, and
locks that others held stay locked for ever. The parent stays until the child reports that it
is ready, or why it will not be, and exits with that; so a script may use the mount when
`dfs-mount` has returned. The wait has no deadline of its own (a first join copies the namespace,
which may be long) but ends with the child, however that ends, and with Ctrl-C, which ends both.

The report on the pipe is one byte, an exit status, and then text in UTF-8 to the end.
"""

import contextlib
import faulthandler
import logging
import logging.handlers
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dfsfs.base.errors import DfsError, Refused
from dfsfs.base.limits import LOG_BYTES_MAX
from dfsfs.cli.program import EXIT_FAILED, complain, exit_status

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Serve(Protocol):
    """A node's whole life."""

    def __call__(self, ready: Callable[[str], None]) -> None:
        """Run until told to end; call `ready` once with what people should know then.

        Raises:
            DfsError: it could not start.
        """
        ...


class _LogFile(logging.handlers.RotatingFileHandler):
    """The log of a node without a terminal: at most `LOG_BYTES_MAX`, and its predecessor.

    Standard error leads there too (libraries write to it, and the interpreter when it dies), and
    follows when the file is changed for a new one.
    """

    def doRollover(self) -> None:
        super().doRollover()
        self.take_standard_streams()

    def take_standard_streams(self) -> None:
        assert self.stream is not None
        for descriptor in (1, 2):
            os.dup2(self.stream.fileno(), descriptor)


def log_to_file(path: Path, *, verbose: bool) -> None:
    """Send all logging, and the standard streams, to the file.

    Raises:
        Refused: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _LogFile(path, maxBytes=LOG_BYTES_MAX, backupCount=1, encoding="utf-8")
    except OSError as error:
        raise Refused(f"cannot write the log {path}: {error.strerror}") from error
    handler.take_standard_streams()
    _log_through(handler, verbose=verbose)


def log_to_standard_error(*, verbose: bool) -> None:
    """Send all logging to standard error."""
    _log_through(logging.StreamHandler(), verbose=verbose)


def _log_through(handler: logging.Handler, *, verbose: bool) -> None:
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dfsfs").setLevel(logging.DEBUG if verbose else logging.INFO)
    faulthandler.enable()
    # A node that seems stuck shows where it is: kill -USR1 PID, then read the log.
    faulthandler.register(signal.SIGUSR1)


def run_in_foreground(serve: Serve, name: str, *, verbose: bool) -> int:
    """Serve here, until told to end; the exit status."""
    log_to_standard_error(verbose=verbose)
    try:
        serve(ready=_announce)
    except DfsError as error:
        complain(name, str(error))
        return exit_status(error)
    return 0


def run_in_background(serve: Serve, name: str, log_path: Path, *, verbose: bool) -> int:
    """Serve in a child; in the parent, return the exit status when it is ready or has failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _serve_as_child(serve, log_path, writing, verbose=verbose)
    os.close(writing)
    with open(reading, "rb") as pipe:
        try:
            report = pipe.read()
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)
            raise
    if not report:
        _, wait_status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(wait_status)
        complain(name, f"the node ended before it was ready ({ended}); its log is {log_path}")
        return EXIT_FAILED
    text = report[1:].decode()
    if report[0] == 0:
        _announce(text)
    else:
        complain(name, text)
    return report[0]


def _announce(text: str) -> None:
    print(text, flush=True)


def _serve_as_child(serve: Serve, log_path: Path, pipe: int, *, verbose: bool) -> None:
    """Become a session of its own, serve, and end the process without returning."""

    def report(status: int, text: str) -> None:
        # A parent that was killed meanwhile is no reason to stop.
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, bytes((status,)) + text.encode("utf-8", "replace"))
        os.close(pipe)

    reported = False

    def ready(text: str) -> None:
        nonlocal reported
        reported = True
        report(0, text)

    status = 0
    try:
        os.setsid()
        os.chdir("/")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log_to_file(log_path, verbose=verbose)
        serve(ready=ready)
    except DfsError as error:
        status = exit_status(error)
        # A node that served has no reason to end with an error: where it came from matters then.
        logging.getLogger(__name__).error("%s", error, exc_info=reported)
        if not reported:
            report(status, str(error))
    except BaseException:
        status = EXIT_FAILED
        traceback.print_exc()
        if not reported:
            report(status, f"the node failed in a way nobody foresaw; see its log {log_path}")
    finally:
        logging.shutdown()
        # Not sys.exit: the frames above belong to the parent's program.
        os._exit(status)
