"""Run a click command as a program: failures become one sentence and an exit status.

0: done. 1: it failed, and the sentence on standard error says why. 2: the command line or a setting
makes no sense. A reader that went away (`dfs get key | head`) ends the program quietly, as SIGPIPE
would (141). An exception that nobody expected keeps its traceback: it is a bug.
"""

import errno
import os
import sys
from typing import NoReturn

import click

from dfsfs.base.errors import DfsError, Misconfigured

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def run_program(command: click.Command, name: str) -> NoReturn:
    """Run `command` with the process's arguments and exit."""
    if not __debug__:
        complain(name, "dfsfs checks itself with assertions: start it without python -O")
        sys.exit(EXIT_USAGE)
    try:
        # Not command.main(): it turns a broken pipe into exit status 1.
        with command.make_context(name, sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
        status = 0
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.exceptions.Abort:
        status = EXIT_INTERRUPTED
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        status = _broken_pipe()
    except DfsError as error:
        complain(name, str(error))
        status = exit_status(error)
    except OSError as error:
        if error.errno == errno.EPIPE:
            status = _broken_pipe()
        else:
            complain(name, _os_sentence(error))
            status = EXIT_FAILED
    sys.exit(status)


def exit_status(error: DfsError) -> int:
    """The status that tells a mistake of the caller from a failure."""
    return EXIT_USAGE if isinstance(error, Misconfigured) else EXIT_FAILED


def complain(name: str, sentence: str) -> None:
    """Print a failure, in the one form all of them have."""
    print(f"{name}: {sentence}", file=sys.stderr)


def _os_sentence(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


def _broken_pipe() -> int:
    # The interpreter flushes standard output at exit and would complain a second time.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE
