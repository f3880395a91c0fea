"""Mixed load on three nodes for as long as you like; memory must stay flat.

    python -m contrib.soak --seconds 3600

Writes, overwrites, appends, renames, reads and removals on two mounts. Every few seconds the
resident memory of each node is read; after a third of the time (caches are warm) none may grow by
more than `GROWTH_MAX`. Prints one line for each sample, and ends with status 1 if one did.
"""

import argparse
import os
import random
import sys
import threading
import time
from pathlib import Path

from contrib.nodes import LocalNode, local_network

SAMPLE_S = 5.0
GROWTH_MAX = 0.25
FILES = 64
SIZES = (0, 100, 4_096, 60_000, 700_000, 4_000_000)


def load(mountpoint: Path, others: Path, name: str, stop: threading.Event) -> None:
    """One program on one mount that also reads and removes what the others wrote."""
    dice = random.Random(name)
    while not stop.is_set():
        path = mountpoint / f"{name}{dice.randrange(FILES)}"
        other = others / f"{'b' if name == 'a' else 'a'}{dice.randrange(FILES)}"
        try:
            act = dice.random()
            if act < 0.4:
                path.write_bytes(dice.randbytes(dice.choice(SIZES)))
            elif act < 0.5:
                with path.open("ab") as stream:
                    stream.write(dice.randbytes(1000))
                    stream.flush()
                    os.fsync(stream.fileno())
            elif act < 0.6:
                path.rename(mountpoint / f"{name}{dice.randrange(FILES)}")
            elif act < 0.9:
                other.read_bytes()
            else:
                path.unlink()
        except FileNotFoundError:
            continue


def resident_bytes(node: LocalNode) -> int:
    """VmRSS of its process."""
    for line in Path(f"/proc/{node.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{node.name} has ended")


def main() -> None:
    """Run the load and watch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    seconds: float = parser.parse_args().seconds
    with local_network() as network:
        nodes = [network.start(name, mount=name != "c") for name in "abc"]
        a, b = nodes[0].mountpoint, nodes[1].mountpoint
        assert a is not None
        assert b is not None
        stop = threading.Event()
        threads = [
            threading.Thread(target=load, args=(a, a, "a", stop)),
            threading.Thread(target=load, args=(b, b, "b", stop)),
        ]
        for thread in threads:
            thread.start()
        samples: list[list[int]] = []
        begin_s = time.monotonic()
        try:
            while time.monotonic() - begin_s < seconds:
                time.sleep(SAMPLE_S)
                samples.append([resident_bytes(node) for node in nodes])
                text = "  ".join(f"{size / 2**20:7.1f}" for size in samples[-1])
                print(f"{time.monotonic() - begin_s:7.0f} s   {text} MiB", flush=True)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    warm = samples[len(samples) // 3 :]
    grown = [max(sizes) / sizes[0] - 1 for sizes in zip(*warm, strict=True)]
    print("growth since warm: " + "  ".join(f"{growth:+.0%}" for growth in grown))
    sys.exit(any(growth > GROWTH_MAX for growth in grown))


if __name__ == "__main__":
    main()
