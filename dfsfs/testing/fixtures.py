"""Bytes to write and small disks to fill."""

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path


def some_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that nothing compresses: the same for equal seeds."""
    return random.Random(seed).randbytes(size)


@contextlib.contextmanager
def disk_at(directory: Path, size_bytes: int) -> Iterator[Path]:
    """An ext4 of its own at a directory that is made for it; needs root."""
    directory.mkdir()
    image = directory.with_suffix(".image")
    with image.open("wb") as stream:
        stream.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)
