"""Reading directories that change meanwhile."""

import ctypes
import os
from pathlib import Path

NAMES = 5000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = _libc.telldir.argtypes = _libc.closedir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_NAME_OFFSET = 19  # of d_name in struct dirent


def test_removing_while_reading_misses_nothing_and_repeats_nothing(directory: Path) -> None:
    names = {f"{number:05}" for number in range(NAMES)}
    for name in names:
        os.close(os.open(directory / name, os.O_CREAT | os.O_WRONLY))
    seen: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
            if len(seen) % 10 == 0:
                os.close(os.open(directory / f"new{len(seen)}", os.O_CREAT | os.O_WRONLY))
    assert len(seen) == len(set(seen))
    assert names <= set(seen)
    left = set(os.listdir(directory))
    assert left == {f"new{number}" for number in range(10, len(seen) + 1, 10)} - set(seen)


def test_positions_stay_valid(directory: Path) -> None:
    for number in range(3000):
        os.close(os.open(directory / f"{number:04}", os.O_CREAT | os.O_WRONLY))
    stream = _libc.opendir(os.fsencode(directory))
    assert stream
    order: list[tuple[int, bytes]] = []
    while True:
        position = _libc.telldir(stream)
        entry = _libc.readdir(stream)
        if not entry:
            break
        order.append((position, ctypes.string_at(entry + _NAME_OFFSET)))
    assert len(order) == 3002  # with . and ..
    os.unlink(directory / "0000")
    for position, name in (order[2999], order[700], order[1], order[2500]):
        _libc.seekdir(stream, position)
        assert ctypes.string_at(_libc.readdir(stream) + _NAME_OFFSET) == name
    _libc.closedir(stream)


def test_a_listing_shows_what_stat_shows(directory: Path) -> None:
    (directory / "inner").mkdir()
    (directory / "file").write_bytes(b"12345")
    os.symlink("file", directory / "link")
    assert {name.name for name in os.scandir(directory)} == {"inner", "file", "link"}
    for entry in os.scandir(directory):
        assert entry.inode() == os.lstat(entry.path).st_ino
    with (directory / "file").open("ab", buffering=0) as file:
        file.write(b"678")
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
        assert sizes["file"] == 8


def test_rewinding_looks_again(directory: Path) -> None:
    (directory / "one").touch()
    handle = os.open(directory, os.O_RDONLY)
    assert os.listdir(handle) == ["one"]
    (directory / "two").touch()
    assert sorted(os.listdir(handle)) == ["one", "two"]
    os.close(handle)
