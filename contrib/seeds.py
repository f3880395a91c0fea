"""Random lives of the simulation by the thousand: `make seeds SIM_SEEDS=10000 SIM_JOBS=2`.

Goes on past failures and prints each at once, with what to run to see it again. Exit status 1 if
there was one. A seed that takes longer than --wall seconds of real time is a failure as well, and
so is an exception that a node logged because nobody had expected it.

With --bug every node has that bug (`dfsfs/testing/planted.py`): ends when a seed has failed, which
it should, and the exit status is 1 if none has.
"""

import argparse
import logging
import multiprocessing
import random
import signal
import sys
import time
from types import FrameType

from dfsfs.node import Node
from dfsfs.runtime import failures_in
from dfsfs.testing.planted import BUGS
from dfsfs.testing.simulator import simulate
from dfsfs.testing.workload import mix_of, random_life

REPORT_EVERY = 100
Work = tuple[int, float, int, str]
Outcome = tuple[int, float, str]


class _TooLong(BaseException):
    """Not an Exception: nothing on the way may catch it."""


class _Watch(logging.Handler):
    """Keeps what was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.seen.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


def live(work: Work) -> Outcome:
    """One seed: its number, the CPU seconds it took, and what went wrong."""
    seed, seconds, wall_s, bug = work
    node_type = BUGS[bug] if bug else Node
    begin_s = time.process_time()

    def give_up(number: int, frame: FrameType | None) -> None:
        raise _TooLong(f"took more than {wall_s} s of real time")

    watch = _Watch()
    logging.getLogger("dfsfs").addHandler(watch)
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(wall_s)
    try:
        simulate(seed, lambda sim: random_life(sim, seconds=seconds), node_type=node_type)
        wrong = "; ".join(watch.seen[:3])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        wrong = "; ".join(f"{type(e).__name__}: {e}" for e in failures_in(error)[:3]) or repr(error)
    finally:
        signal.alarm(0)
        logging.getLogger("dfsfs").removeHandler(watch)
    return seed, time.process_time() - begin_s, wrong


def main() -> int:
    """Run a range of seeds on some processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--wall", type=int, default=600)
    parser.add_argument("--bug", choices=["", *BUGS], default="")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    logging.getLogger("dfsfs").propagate = False
    work = [
        (seed, options.seconds, options.wall, options.bug)
        for seed in range(options.first, options.first + options.seeds)
    ]
    failed, spent_s, begin_s = [], 0.0, time.monotonic()
    # A process does not live for ever, so that no seed depends on what ran before.
    with multiprocessing.Pool(options.jobs, maxtasksperchild=50) as pool:
        for done, (seed, took_s, wrong) in enumerate(pool.imap_unordered(live, work), 1):
            spent_s += took_s
            if wrong:
                failed.append(seed)
                mix = mix_of(random.Random(f"{seed}/faults"), options.seconds)
                print(f"seed {seed} (harm: {mix.harm or 'none'}): {wrong[:1000]}", flush=True)
            if wrong and options.bug:
                print(f"{options.bug} was noticed by life {done}; {spent_s:.0f} CPU s")
                return 0
            if done % REPORT_EVERY == 0 or done == len(work):
                print(
                    f"{done} of {len(work)} seeds, {len(failed)} failed;"
                    f" {spent_s / done:.2f} CPU s a seed, {time.monotonic() - begin_s:.0f} s",
                    flush=True,
                )
    if failed:
        print(f"failed: {sorted(failed)}")
        print(f"again: SIM_FIRST={min(failed)} SIM_SEEDS=1 make sim")
    return 1 if failed or options.bug else 0


if __name__ == "__main__":
    sys.exit(main())
