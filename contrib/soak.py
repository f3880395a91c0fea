"""Mixed load on three nodes for as long as you like; memory must stay flat, bounds must hold.

    make soak ARGS="--seconds 3600"

First what can be full is filled: some ten thousand files, so that caches of names, inodes and pages
of databases are what they will be. Then two mounts write, overwrite, append, rename, link, list,
read and remove, while blocks that nothing refers to are collected after a minute and all others
verified again and again. Every few seconds the resident memory of each node is read.

The verdict: after a tenth of the time no node's memory may grow by more than `GROWTH_MAX` from one
twelfth of the rest to the last (medians: what is in flight comes and goes), nothing in
`dfs status` may be beyond its bound, no background duty may fail, and every call must succeed.
Ends with status 1 otherwise.
"""

import argparse
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contrib.nodes import LocalNetwork, LocalNode, local_network

SAMPLE_S = 5.0
POINTS = 12  # in which the verdict looks at the time after warming up
GROWTH_MAX = 0.05
BEYOND_MAX = 2.0  # how far, for a moment, of what is given back when it has grown
GIVEN_BACK = ("_log_bytes", "garbage_bytes")
FILES = 64  # of each mount, that come and go
SIZES = (0, 100, 4_096, 60_000, 700_000, 4_000_000)
FILL_SIZES = (4_000, 4_000, 6_000)  # in the row, in the row, in a small block
DIRECTORY_FILES = 250
OPTIONS = ("--gc-grace", "60", "--scrub-period", "10m")

Act = Callable[[], object]


class Load:
    """One program on one mount that also reads what the others write."""

    def __init__(self, mountpoint: Path, own: str, other: str, rate: float) -> None:
        self._mountpoint = mountpoint
        self._own = own
        self._other = other
        self._rate = rate
        self._dice = random.Random(own)
        self.calls = 0
        self.failures: list[str] = []

    def fill(self, count: int, stop: threading.Event) -> None:
        """Make files that stay."""
        for number in range(count):
            if stop.is_set():
                return
            directory = self._mountpoint / f"{self._own}-stays" / str(number // DIRECTORY_FILES)
            if number % DIRECTORY_FILES == 0:
                directory.mkdir(parents=True)
            size = FILL_SIZES[number % len(FILL_SIZES)]
            (directory / str(number)).write_bytes(self._dice.randbytes(size))

    def run(self, stop: threading.Event) -> None:
        """Do this and that, about `rate` times a second."""
        due_s = time.monotonic()
        while not stop.is_set():
            due_s = max(due_s + 1 / self._rate, time.monotonic() - 1.0)
            if stop.wait(max(0.0, due_s - time.monotonic())):
                return
            act = self._choose()
            self.calls += 1
            try:
                act()
            except (FileNotFoundError, FileExistsError):
                continue  # the other was quicker
            except OSError as error:
                self.failures.append(f"{self._own}: {error}")
                return

    def _choose(self) -> Act:
        dice = self._dice
        path = self._path(self._own)
        acts: list[tuple[float, Act]] = [
            (0.30, lambda: path.write_bytes(dice.randbytes(dice.choice(SIZES)))),
            (0.10, lambda: self._append(path)),
            (0.05, lambda: self._overwrite(path)),
            (0.08, lambda: path.rename(self._path(self._own))),
            (0.02, lambda: path.with_suffix(".link").hardlink_to(path)),
            (0.02, lambda: path.with_suffix(".link").unlink()),
            (0.03, lambda: os.setxattr(path, "user.soak", dice.randbytes(50))),
            (0.20, lambda: self._path(self._other).read_bytes()),
            (0.05, lambda: self._look(f"{self._other}-stays")),
            (0.05, lambda: [entry.stat() for entry in os.scandir(self._mountpoint)]),
            (0.10, path.unlink),
        ]
        chances = [chance for chance, _ in acts]
        return dice.choices([act for _, act in acts], chances)[0]

    def _path(self, whose: str) -> Path:
        return self._mountpoint / f"{whose}{self._dice.randrange(FILES)}"

    def _append(self, path: Path) -> None:
        with path.open("ab") as stream:
            stream.write(self._dice.randbytes(1000))
            stream.flush()
            os.fsync(stream.fileno())

    def _overwrite(self, path: Path) -> None:
        with path.open("r+b") as stream:
            stream.seek(self._dice.randrange(1_000_000))
            stream.write(self._dice.randbytes(5000))

    def _look(self, tree: str) -> None:
        directories = list((self._mountpoint / tree).iterdir())
        for path in self._dice.choice(directories).iterdir():
            path.stat()


def resident_bytes(node: LocalNode) -> int:
    """VmRSS of its process."""
    for line in Path(f"/proc/{node.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{node.name} has ended")


def complaints(name: str, status: dict[str, Any]) -> dict[str, str]:
    """What of a node's status should not be, by what it is about."""
    found = {
        f"{name}: {bound}": f"is {now}, its bound is {most}"
        for bound, (now, most) in status["bounded"].items()
        if most and now > most * (BEYOND_MAX if bound.endswith(GIVEN_BACK) else 1)
    }
    found |= {
        f"{name}: {worker['name']}": f"failed: {worker['last_failure']}"
        for worker in status["workers"]
        if worker["failures"]
    }
    return found


def growth(samples: list[int]) -> float:
    """From the first twelfth of the samples to the last, by their medians."""
    width = max(1, len(samples) // POINTS)
    return statistics.median(samples[-width:]) / statistics.median(samples[:width]) - 1


def watch(network: LocalNetwork, seconds: float) -> tuple[list[list[int]], dict[str, str]]:
    """Sample each node; print a line at each of the points. Samples by node, and complaints."""
    samples: list[list[int]] = [[] for _ in network.nodes]
    found: dict[str, str] = {}
    begin_s = time.monotonic()
    point_s = 0.0
    while (past_s := time.monotonic() - begin_s) < seconds:
        for node, sizes in zip(network.nodes, samples, strict=True):
            sizes.append(resident_bytes(node))
        if past_s >= point_s:
            point_s += max(SAMPLE_S, seconds / POINTS)
            text = "  ".join(f"{sizes[-1] / 2**20:7.1f}" for sizes in samples)
            print(f"{past_s:7.0f} s   {text} MiB", flush=True)
            for node in network.nodes:
                found |= complaints(node.name, network.status(node.state))
        time.sleep(SAMPLE_S)
    return samples, found


def main() -> None:
    """Fill, run the load, watch, judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=50.0, help="calls a second of each mount")
    parser.add_argument("--files", type=int, default=12_000, help="made first, on each mount")
    arguments = parser.parse_args()
    with local_network() as network:
        loads: list[Load] = []
        for name, other in (("a", "b"), ("b", "a"), ("c", "")):
            node = network.start(name, *OPTIONS, mount=bool(other))
            if node.mountpoint is not None:
                loads.append(Load(node.mountpoint, name, other, arguments.rate))
        stop = threading.Event()
        try:
            begin_s = time.monotonic()
            join([threading.Thread(target=x.fill, args=(arguments.files, stop)) for x in loads])
            print(f"filled in {time.monotonic() - begin_s:.0f} s", flush=True)
            threads = [threading.Thread(target=load.run, args=(stop,)) for load in loads]
            for thread in threads:
                thread.start()
            samples, found = watch(network, arguments.seconds)
        finally:
            stop.set()
        for thread in threads:
            thread.join()
    said = [f"{what} {why}" for what, why in found.items()]
    said += [failure for load in loads for failure in load.failures]
    grown = [growth(sizes[len(sizes) // 10 :]) for sizes in samples]
    shown = "  ".join(f"{each:+.1%}" for each in grown)
    print(f"{sum(load.calls for load in loads)} calls; growth since warm: {shown}", *said, sep="\n")
    sys.exit(bool(said) or max(grown) > GROWTH_MAX)


def join(threads: list[threading.Thread]) -> None:
    """Run threads to their end."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
