"""What a power cut leaves of a directory: a disk model under a simulated node.

The node uses real SQLite and real files; what they hold is what the page cache of its machine would
hold. A `Disk` remembers beside it what is on stable storage: of each file the bytes it had when it
was flushed last, of each directory the names it had when *it* was flushed last. A power cut leaves
a state in between, chosen by dice, file by file:

- what was written since the last flush is lost, kept, or kept in part, in pages or sectors;
- a file that grew or shrank since has the old size, the new one, or, if it grew, one in between;
- names made, moved or removed since the last flush of their directory are there or not. Names that
  concern one file go together, so a rename is atomic, as on every journaling file system; but
  flushing a file does not flush its name, which is less than ext4 gives and all that POSIX says.

Flushes are seen where they happen, `fsync` and `fdatasync` of Python and SQLite's own through a VFS
that passes everything on to the real one: so no code under test knows of it, and a flush somebody
forgets is one this model has never seen.

Not modelled: that of two versions written since the last flush the older one reaches the disk.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from dfsfs.base.units import KIB
from dfsfs.runtime import Database

PAGE = 4096
SECTOR = 512
KEPT_CHANCES = (0.0, 0.0, 0.2, 0.8, 1.0)  # of what was not flushed; one is drawn for each file

Flushed = Callable[[str, bool], None]
"""Told of a path that is about to be flushed, and whether it is a directory."""


class Disk:
    """The disk of one simulated machine, below one directory. Owned by the simulation."""

    def __init__(self, directory: Path) -> None:
        """What is in the directory now is on stable storage."""
        self.directory = directory
        self.flushes = 0
        self._files: dict[int, bytes] = {}  # by inode number: bytes on stable storage
        self._names: dict[Path, dict[str, int]] = {}  # by directory, relative: names there
        for path, names in _tree(directory).items():
            self._names[path] = names
            for name, inode in names.items():
                if not (directory / path / name).is_dir():
                    self._files[inode] = (directory / path / name).read_bytes()

    def flushed(self, path: Path, *, is_directory: bool) -> None:
        """A path below this directory was flushed."""
        self.flushes += 1
        if is_directory:
            self._names[path.relative_to(self.directory)] = _names(path)
        elif path.exists():
            self._files[path.stat().st_ino] = path.read_bytes()

    def move(self, directory: Path) -> None:
        """Copy the directory, as it is, to a new place: from now on this is the disk's."""
        shutil.copytree(self.directory, directory, ignore=shutil.ignore_patterns("*-shm"))
        new = {
            inode: (directory / path / name).stat().st_ino
            for path, names in _tree(self.directory).items()
            for name, inode in names.items()
        }
        # What only a power cut would bring back has no number in the new place.
        self._files = {new.get(inode, -abs(inode)): data for inode, data in self._files.items()}
        self._names = {
            path: {name: new.get(inode, -abs(inode)) for name, inode in names.items()}
            for path, names in self._names.items()
        }
        self.directory = directory

    def power_cut(self, directory: Path, dice: random.Random) -> None:
        """Put what a power cut leaves into a new place: from now on this is the disk's."""
        self._restore(Path(), directory, dice)
        self.__init__(directory)  # type: ignore[misc]  # what is left is on stable storage

    def _restore(self, path: Path, target: Path, dice: random.Random) -> None:
        target.mkdir()
        source = self.directory / path
        now = _names(source) if source.is_dir() else {}
        for name, inode in sorted(_surviving(self._names.get(path, {}), now, dice).items()):
            current = next((source / each for each in sorted(now) if now[each] == inode), None)
            if (current is not None and current.is_dir()) or path / name in self._names:
                self._restore(path / name, target / name, dice)
                continue
            stable = self._files.get(inode, b"")
            # Of a file that was unlinked nobody knows what was written since its last flush.
            written = stable if current is None else current.read_bytes()
            restored = target / name
            restored.touch(mode=0o600)
            restored.write_bytes(_mixed(stable, written, dice))


def _tree(directory: Path) -> dict[Path, dict[str, int]]:
    """Names in a directory and in all below it."""
    found = {Path(): _names(directory)}
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            found[path.relative_to(directory)] = _names(path)
    return found


def _names(directory: Path) -> dict[str, int]:
    """Names and inode numbers; memory that SQLite shares through a file is never on a disk."""
    with os.scandir(directory) as entries:
        return {entry.name: entry.inode() for entry in entries if not entry.name.endswith("-shm")}


def _surviving(stable: dict[str, int], now: dict[str, int], dice: random.Random) -> dict[str, int]:
    """Names after a power cut: each change since the last flush happened or did not."""
    changed = {name for name in stable.keys() | now.keys() if stable.get(name) != now.get(name)}
    names = {name: inode for name, inode in stable.items() if name not in changed}
    while changed:
        group: set[str] = set()  # names that hang together through the files they stand for
        waiting = [min(changed)]
        while waiting:
            name = waiting.pop()
            group.add(name)
            inodes = {stable.get(name), now.get(name)} - {None}
            waiting += [
                other for other in changed - group if inodes & {stable.get(other), now.get(other)}
            ]
        changed -= group
        kept = now if dice.random() < dice.choice(KEPT_CHANCES) else stable
        names |= {name: kept[name] for name in sorted(group) if name in kept}
    return names


def _mixed(stable: bytes, written: bytes, dice: random.Random) -> bytes:
    """What is left of a file that was `stable` when it was flushed and is `written` now."""
    chance = dice.choice(KEPT_CHANCES)
    unit = dice.choice((PAGE, SECTOR))
    between = dice.randint(min(len(stable), len(written)), len(written))
    size = dice.choice((len(stable), len(written), between))
    if stable == written or chance == 0.0:
        return stable
    if chance == 1.0:
        return written
    left = bytearray(stable[:size].ljust(size, b"\0"))
    for start in range(0, min(size, len(written)), unit):
        end = min(start + unit, size, len(written))
        if left[start:end] != written[start:end] and dice.random() < chance:
            left[start:end] = written[start:end]
    return bytes(left)


# -- seeing flushes -------------------------------------------------------------------------------

_BASE = "unix"
_JOURNALS = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL


class _WatchedFile(apsw.VFSFile):
    """A file of SQLite that tells when it is flushed."""

    def __init__(self, name: str | apsw.URIFilename, flags: list[int], flushed: Flushed) -> None:
        self._path = name if isinstance(name, str) else name.filename()
        self._flushed = flushed
        # As in os_unix.c: the first flush of a new journal flushes its name, too.
        self._name_is_due = bool(flags[0] & _JOURNALS) and not os.path.exists(self._path)
        super().__init__(_BASE, name, flags)

    def xSync(self, flags: int) -> None:  # SQLite's name
        """Flush, and say so."""
        self._flushed(self._path, False)
        super().xSync(flags)
        if self._name_is_due:
            self._name_is_due = False
            self._flushed(os.path.dirname(self._path), True)


class _WatchedVfs(apsw.VFS):
    """SQLite's own door to the disk, with somebody at it."""

    def __init__(self, flushed: Flushed) -> None:
        self._flushed = flushed
        super().__init__("watched", _BASE, makedefault=True)

    def xOpen(  # SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        """Open a file; those without a name are nobody's."""
        if name is None:
            return apsw.VFSFile(_BASE, name, flags)
        return _WatchedFile(name, flags, self._flushed)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # SQLite's name
        """Unlink a file, and flush its directory if so asked."""
        super().xDelete(filename, syncdir)
        if syncdir:
            self._flushed(os.path.dirname(filename), True)


@contextmanager
def watched_flushes(flushed: Flushed) -> Iterator[None]:
    """Within the block `flushed` is told before every flush of this process.

    Databases opened within must be closed within.
    """
    fsync, fdatasync = os.fsync, os.fdatasync

    def told(flush: Callable[[int], None]) -> Callable[[int], None]:
        def tell(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            flushed(path, os.path.isdir(path))
            flush(descriptor)

        return tell

    # The first database of a process puts a shim over the door that it finds: not over this one,
    # which goes again, and would leave every later database without any.
    Database(None, schema="", version=1, cache_bytes=KIB).close()
    vfs = _WatchedVfs(flushed)
    os.fsync, os.fdatasync = told(fsync), told(fdatasync)  # type: ignore[assignment]  # put back below
    try:
        yield
    finally:
        os.fsync, os.fdatasync = fsync, fdatasync
        vfs.unregister()
