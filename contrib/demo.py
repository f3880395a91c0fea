"""`make demo`: three peers on this machine, two of them mounted, and one that dies.

Copies a real directory tree in through one mount, compares it through the other, kills the first
node with SIGKILL, reads everything again, says what it did, and leaves nothing behind.
"""

import argparse
import os
import subprocess
import sysconfig
import time
from pathlib import Path

from contrib.nodes import LocalNetwork, LocalNode, local_network, require, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tree",
        nargs="?",
        type=Path,
        default=Path(sysconfig.get_path("stdlib")),
        help="the directory to copy [%(default)s]",
    )
    tree = parser.parse_args().tree.resolve()
    require(["cp", "diff", "find", "fusermount3"])
    with local_network() as network:
        demonstrate(network, tree)
    say("ended the nodes, unmounted, and removed their directories")


def demonstrate(network: LocalNetwork, tree: Path) -> None:
    started = time.monotonic()
    one = network.start("one", mount=True)
    two = network.start("two", mount=True)
    three = network.start("three", mount=False)
    assert one.mountpoint is not None
    assert two.mountpoint is not None
    say(f"three peers in {since(started)}: one and two are mounted, three only stores")
    for node in (one, two, three):
        say(f"    {node.name:5}  {node.address}  {node.mountpoint or ''}")

    copied, compared = one.mountpoint / tree.name, two.mountpoint / tree.name
    started = time.monotonic()
    run("cp", "-a", "--", tree, one.mountpoint)
    count = len(run("find", tree, "-printf", "x"))
    say(f"copied {tree} ({count} files and directories) into the mount of one in {since(started)}")

    same_content(tree, compared, "through the mount of two")
    same_metadata(copied, compared)
    say("mode, owner, size, time, name and link target are equal on both mounts")

    network.kill(one)
    say(f"killed one (kill -9 {one.pid}), through which everything had been written")
    same_content(tree, compared, "through the mount of two, without one")
    report(network, two)


def same_content(tree: Path, other: Path, where: str) -> None:
    started = time.monotonic()
    run("diff", "-r", "--no-dereference", "--", tree, other)
    say(f"read it back {where}: every byte equal, in {since(started)}")


def same_metadata(left: Path, right: Path) -> None:
    first, second = metadata(left), metadata(right)
    if first != second:
        different = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
        raise SystemExit(
            f"metadata differs: {different[:3]}, {len(first)} and {len(second)} entries"
        )


def metadata(directory: Path) -> list[bytes]:
    """What find(1) tells of every entry, by name."""
    form = "%m %U %G %s %T@ %y %P %l\\0"
    found = subprocess.run(
        ["find", directory, "-printf", form], check=True, capture_output=True, cwd=os.sep
    )
    return sorted(found.stdout.split(b"\0"))


def report(network: LocalNetwork, node: LocalNode) -> None:
    status = network.status(node.state)
    storage, files = status["storage"], status["files"]
    say(
        f"{node.name} knows {files['files']} files in {files['directories']} directories and stores"
        f" {storage['block_count']} blocks, {storage['block_bytes'] / 2**20:.0f} MiB"
    )


def since(started: float) -> str:
    return f"{time.monotonic() - started:.1f} s"


def say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    main()
