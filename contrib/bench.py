"""`make bench`: what dfsfs costs beside a plain directory, in one run, on one machine.

The same work in three places: a local directory, the mount of one node, and the second mount of
three nodes that all run here (so they share its processors, which a real network would not).
Figures are the median of the rounds; a ratio is what is left of the local directory's speed.
Work is generated from a fixed seed. Reads are cold when root can drop the kernel's caches.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from contrib.nodes import local_network, quietly, require

MIB = 1024 * 1024
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    file_bytes: int = 256 * MIB
    random_reads: int = 2_000
    small_files: int = 1_000
    overwrites: int = 300
    tree_files: int = 2_000
    commits: int = 200
    rounds: int = 3


QUICK = Scale(64 * MIB, 500, 200, 100, 500, 50, 1)


class Bench:
    """The work, in one directory. A measure returns figures by name: a rate, or seconds."""

    def __init__(self, directory: Path, inputs: Path, scale: Scale) -> None:
        self._directory = directory
        self._inputs = inputs
        self._scale = scale
        self._dice = random.Random(20)

    def measures(self) -> list[Callable[[], dict[str, float]]]:
        return [self.sequential, self.small_files, self.overwrites, self.untar, self.git_clone]

    def sequential(self) -> dict[str, float]:
        path, size = self._directory / "large", self._scale.file_bytes
        # Not one block twice: equal blocks would be stored once. Made before the clock starts.
        pieces = [self._dice.randbytes(MIB) for _ in range(16)]
        with stopwatch() as write_s:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in range(size // MIB):
                piece = pieces[number % len(pieces)]
                os.write(descriptor, number.to_bytes(8, "big") * 512 + piece[PAGE:])
            os.fsync(descriptor)
            os.close(descriptor)
        drop_caches()
        with stopwatch() as read_s:
            descriptor = os.open(path, os.O_RDONLY)
            while os.read(descriptor, MIB):
                pass
            os.close(descriptor)
        drop_caches()
        offsets = self._dice.sample(range(size // PAGE), self._scale.random_reads)
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        with stopwatch() as random_s:
            for offset in offsets:
                assert len(os.pread(descriptor, PAGE, offset * PAGE)) == PAGE
        os.close(descriptor)
        path.unlink()
        return {
            "sequential write + fsync, MB/s": size / write_s() / 1e6,
            "cold sequential read, MB/s": size / read_s() / 1e6,
            "cold random 4 KiB reads, /s": len(offsets) / random_s(),
        }

    def small_files(self) -> dict[str, float]:
        directory, count = self._directory / "small", self._scale.small_files
        directory.mkdir()
        content = [self._dice.randbytes(PAGE) for _ in range(count)]
        with stopwatch() as create_s:
            for number in range(count):
                descriptor = os.open(
                    directory / f"{number:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL
                )
                os.write(descriptor, content[number])
                os.close(descriptor)
        drop_caches()
        with stopwatch() as stat_s:
            for number in range(count):
                os.stat(directory / f"{number:06}")
        with stopwatch() as delete_s:
            for number in range(count):
                os.unlink(directory / f"{number:06}")
        directory.rmdir()
        return {
            "create 4 KiB files, /s": count / create_s(),
            "cold stat, /s": count / stat_s(),
            "delete, /s": count / delete_s(),
        }

    def overwrites(self) -> dict[str, float]:
        path, count = self._directory / "overwritten", self._scale.overwrites
        path.write_bytes(self._dice.randbytes(16 * MIB))
        descriptor = os.open(path, os.O_RDWR)
        pages = [self._dice.randbytes(PAGE) for _ in range(count)]
        with stopwatch() as seconds:
            for page in pages:
                os.pwrite(descriptor, page, self._dice.randrange(16 * MIB // PAGE) * PAGE)
                os.fsync(descriptor)
        os.close(descriptor)
        path.unlink()
        return {"4 KiB overwrite + fsync, /s": count / seconds()}

    def untar(self) -> dict[str, float]:
        target = self._directory / "tree"
        target.mkdir()
        with stopwatch() as seconds:
            command("tar", "-xf", self._inputs / "tree.tar", "-C", target)
        shutil.rmtree(target)
        return {f"untar {self._scale.tree_files} files, s": seconds()}

    def git_clone(self) -> dict[str, float]:
        target = self._directory / "clone"
        with stopwatch() as seconds:
            command("git", "clone", "-q", "--no-local", self._inputs / "repository", target)
        shutil.rmtree(target)
        return {"git clone, s": seconds()}


# -- inputs ---------------------------------------------------------------------------------------


def make_inputs(directory: Path, scale: Scale) -> None:
    """A tar file and a git repository, the same in every run."""
    dice = random.Random(2)
    with tarfile.open(directory / "tree.tar", "w") as tar:
        for name, content in tree_files(dice, scale.tree_files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), 1_700_000_000, 0o644
            tar.addfile(info, BytesIO(content))
    repository = directory / "repository"
    command("git", "init", "-q", "--bare", repository)
    stream = fast_import_stream(dice, scale)
    subprocess.run(["git", "-C", repository, "fast-import", "--quiet"], input=stream, check=True)
    command("git", "-C", repository, "symbolic-ref", "HEAD", "refs/heads/main")


def tree_files(dice: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents as in a source tree: a few directories deep, mostly a few KiB."""
    for number in range(count):
        size = min(int(dice.lognormvariate(8.3, 1.2)), 512 * 1024)
        yield f"d{number % 17}/e{number % 101}/file{number}.txt", text(dice, size)


def text(dice: random.Random, size: int) -> bytes:
    return dice.randbytes((size + 1) // 2).hex().encode()[:size]


def fast_import_stream(dice: random.Random, scale: Scale) -> bytes:
    files = list(tree_files(dice, scale.tree_files // 2))
    parts: list[bytes] = []
    for number in range(scale.commits):
        message = b"commit %d" % number
        parts.append(
            b"commit refs/heads/main\ncommitter Bench <bench@example.org> %d +0000\ndata %d\n%s\n"
            % (1_700_000_000 + number, len(message), message)
        )
        chosen = files if number == 0 else dice.sample(files, 5)
        for name, content in chosen:
            changed = content + b"%d\n" % number
            parts.append(
                b"M 100644 inline %s\ndata %d\n%s\n" % (name.encode(), len(changed), changed)
            )
    return b"".join(parts)


# -- running --------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything, one round")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value")
    parser.add_argument("--only", metavar="WORD", help="measures whose name contains it")
    parser.add_argument(
        "--base",
        type=Path,
        default=Path("/var/tmp"),
        help="a directory on the disk to measure, not a tmpfs [%(default)s]",
    )
    arguments = parser.parse_args()
    require(["git", "tar", "fusermount3"])
    scale = QUICK if arguments.quick else Scale()
    results: dict[str, dict[str, float]] = {}
    with local_network(arguments.base) as alone, local_network(arguments.base) as three:
        inputs = alone.directory / "inputs"
        inputs.mkdir()
        make_inputs(inputs, scale)
        local = alone.directory / "local"
        local.mkdir()
        results["local"] = measure(local, inputs, scale, arguments.only)
        results["one node"] = measure(
            mounted(alone.start("alone", mount=True).mountpoint), inputs, scale, arguments.only
        )
        alone.end()
        three.start("first", mount=True)
        second = mounted(three.start("second", mount=True).mountpoint)
        three.start("third", mount=False)
        results["second of three"] = measure(second, inputs, scale, arguments.only)
    print(json.dumps(results, indent=2) if arguments.json else report(results, scale))


def mounted(mountpoint: Path | None) -> Path:
    assert mountpoint is not None
    return mountpoint


def measure(directory: Path, inputs: Path, scale: Scale, only: str | None) -> dict[str, float]:
    """Every figure's median over the rounds."""
    figures: dict[str, list[float]] = {}
    bench = Bench(directory, inputs, scale)
    for work in bench.measures():
        if only is None or only in work.__name__:
            for _ in range(scale.rounds):
                for name, figure in work().items():
                    figures.setdefault(name, []).append(figure)
    return {name: statistics.median(values) for name, values in figures.items()}


def report(results: dict[str, dict[str, float]], scale: Scale) -> str:
    places = list(results)
    cold = "cold" if os.geteuid() == 0 else "NOT cold: only root can drop caches"
    lines = [
        f"{os.cpu_count()} processors for all; median of {scale.rounds} rounds; reads are {cold}",
        "",
        f"{'':34}" + "".join(f"{place:>24}" for place in places),
    ]
    for name, local in results["local"].items():
        cells = [f"{local:>24.5g}"]
        for place in places[1:]:
            figure = results[place][name]
            ratio = local / figure if name.endswith(", s") else figure / local
            cells.append(f"{figure:>16.5g} ({ratio:4.0%})")
        lines.append(f"{name:34}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yields a function that tells the seconds between entry and exit."""
    begun = time.perf_counter()
    ended: list[float] = []
    yield lambda: ended[0]
    ended.append(time.perf_counter() - begun)


def drop_caches() -> None:
    """Make the next read a cold one, if we may: the kernel's own caches and those of mounts."""
    if os.geteuid() == 0:
        quietly("sync")
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def command(*words: str | Path) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
