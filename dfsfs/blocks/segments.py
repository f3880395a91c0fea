"""Segment files: where blocks lie on disk, and the only file calls of `blocks`.

A segment is a sequence of records (`dfsfs.blocks.records`), appended once and never moved; the
space of a removed record is given back by punching a hole, that of a segment without live records
by unlinking it. This module knows nothing of the index and of which records are live.

Concurrency: `SegmentFile` methods that end in `_nowait` run on the loop and never wait for the
disk; all others block and belong in a thread, where one file serves many threads at a time.
`SegmentFiles` is used on the loop alone; it closes files nobody uses, so whoever hands a file to a
thread holds it (`using`) until the thread is done.

OSError ends here: no space, quota and file size limit are `Full`, a failing read is `Corrupt`, the
rest is `DfsError`.
"""

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dfsfs.base.errors import Corrupt, DfsError, Full
from dfsfs.base.limits import PUT_BATCH_COUNT_MAX, SEGMENT_FILES_OPEN_MAX
from dfsfs.base.types import Buffer, Digest, digest_matches
from dfsfs.base.units import MIB
from dfsfs.blocks.records import HEADER_BYTES, MAGIC, REMOVED, STATE_OFFSET, decode_header

log = logging.getLogger(__name__)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <linux/falloc.h>
_HOLE_UNIT = 4096  # a hole can only be made of whole pages
_SEARCH_BYTES = MIB
_SUFFIX = ".seg"

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

assert PUT_BATCH_COUNT_MAX * 2 <= 1024  # IOV_MAX: a batch is one writev of headers and data


class FoundRecord(NamedTuple):
    """A record met by a scan."""

    digest: Digest
    position: int
    length: int
    removed: bool


class SegmentFile:
    """One segment; opened when first used, closed by `SegmentFiles`."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.users = 0  # threads that may be using the descriptor
        self._descriptor = -1
        self._opening = threading.Lock()

    def open(self, *, create: bool = False) -> int:
        """The descriptor; opens the file when it is not yet open."""
        with self._opening:
            if self._descriptor < 0:
                flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
                try:
                    self._descriptor = os.open(self.path, flags, 0o600)
                    # What the kernel read ahead would be in the page cache without having been
                    # verified; whole blocks are read at a time as it is.
                    os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                except OSError as error:
                    raise self._failed("open", error) from error
            return self._descriptor

    def close_nowait(self) -> None:
        """Close the descriptor; the next use opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_nowait(self, offset: int, size: int) -> bytearray | None:
        """Bytes that are in the page cache, all of them, or None."""
        if self._descriptor < 0:
            return None
        data = bytearray(size)
        try:
            # Page cache only: EAGAIN or a short count when some page is missing (preadv2(2)).
            count = os.preadv(self._descriptor, [data], offset, os.RWF_NOWAIT)
        except OSError:  # EAGAIN; or EOPNOTSUPP, EIO: the blocking read finds out which
            return None
        return data if count == size else None

    def read(self, offset: int, size: int) -> bytes:
        """Exactly these bytes.

        Raises:
            Corrupt: the disk cannot give them, or the file ends before.
        """
        try:
            descriptor = self.open()
        except DfsError as error:  # the file is gone or cannot be opened: others may have the block
            raise Corrupt(str(error)) from error
        try:
            data = os.pread(descriptor, size, offset)
            while len(data) < size:
                more = os.pread(descriptor, size - len(data), offset + len(data))
                if not more:
                    raise Corrupt(f"{self.path} ends at {offset + len(data)}, needed {size} more")
                data += more
        except OSError as error:
            raise Corrupt(f"cannot read {self.path} at {offset}: {error}") from error
        return data

    def read_verified(self, digest: Digest, offset: int, size: int) -> bytes:
        """A whole block.

        Raises:
            Corrupt: the bytes do not match `digest`, or cannot be read.
        """
        data = self.read(offset, size)
        if not digest_matches(digest, data):
            raise Corrupt(f"{self.path} at {offset}: bytes do not match their digest")
        return data

    def read_cold(self, digest: Digest, offset: int, size: int) -> bytes:
        """A whole block as the disk has it: pages that are clean are read again.

        Raises:
            Corrupt: the bytes do not match `digest`, or cannot be read.
        """
        with suppress(OSError, DfsError):  # advice; the read below finds out what is wrong
            os.posix_fadvise(self.open(), offset, size, os.POSIX_FADV_DONTNEED)
        return self.read_verified(digest, offset, size)

    def append(self, end: int, buffers: Sequence[Buffer]) -> None:
        """Write all `buffers` at `end`; on failure the file ends at `end` as before.

        Raises:
            Full: no space. DfsError: the disk failed.
        """
        descriptor = self.open(create=True)
        try:
            _write_all(descriptor, buffers, end)
        except OSError as error:
            try:
                os.ftruncate(descriptor, end)
            except OSError as second:  # what lies past `end` is not indexed: recovery sorts it out
                log.warning("cannot cut %s back to %d: %s", self.path, end, second)
            raise self._failed("write", error) from error

    def sync(self) -> None:
        """Wait until what was appended is on stable storage."""
        try:
            os.fdatasync(self.open())
        except OSError as error:
            raise self._failed("flush", error) from error

    def size(self) -> int:
        """Bytes from the start to the end of the file, holes included."""
        try:
            return os.fstat(self.open()).st_size
        except OSError as error:
            raise self._failed("examine", error) from error

    def truncate(self, size: int) -> None:
        """Cut a torn tail."""
        try:
            os.ftruncate(self.open(), size)
        except OSError as error:
            raise self._failed("cut", error) from error

    def discard(self, records: Sequence[tuple[int, int]]) -> None:
        """Mark records (position, length) removed and give the pages of their data to the disk.

        Headers stay, so that a scan finds the way from record to record.
        """
        for position, length in records:
            try:
                os.pwrite(self.open(), REMOVED, position + STATE_OFFSET)
            except OSError as error:
                raise self._failed("write", error) from error
            start = -(-(position + HEADER_BYTES) // _HOLE_UNIT) * _HOLE_UNIT
            stop = (position + HEADER_BYTES + length) // _HOLE_UNIT * _HOLE_UNIT
            if start < stop:
                self._punch(start, stop - start)

    def _punch(self, start: int, size: int) -> None:
        if _fallocate(self.open(), _PUNCH_HOLE_KEEP_SIZE, start, size) != 0:
            # Not every file system can: the space comes back when the whole segment goes.
            log.debug("no hole in %s: %s", self.path, os.strerror(ctypes.get_errno()))

    def unlink(self) -> None:
        """Remove the file; idempotent."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("remove", error) from error

    def scan(self, start: int, *, verify: bool) -> Iterator[FoundRecord]:
        """Records from `start` on, live and removed ones; noise between records is skipped.

        So is what the disk cannot read. With `verify` only records whose bytes match their digest
        count (removed ones are not read).
        """
        position, size = start, self.size()
        while position + HEADER_BYTES < size:
            header = decode_header(self._readable(position, HEADER_BYTES))
            if header is not None and position + HEADER_BYTES + header.length <= size:
                data_at = position + HEADER_BYTES
                if (
                    header.removed
                    or not verify
                    or digest_matches(header.digest, self._readable(data_at, header.length))
                ):
                    yield FoundRecord(header.digest, position, header.length, header.removed)
                    position = data_at + header.length
                    continue
            position = self._find_magic(position + 1, size)

    def _find_magic(self, start: int, size: int) -> int:
        """Where the next record may begin, or `size`."""
        while start < size:
            data = self._readable(start, min(_SEARCH_BYTES, size - start))
            found = data.find(MAGIC)
            if found >= 0:
                return start + found
            # A disk that fails takes its time for each try: not one for each of its sectors.
            start += max(len(data) - len(MAGIC) + 1, 1) if data else _SEARCH_BYTES
        return size

    def is_readable(self, offset: int, size: int) -> bool:
        """Whether the disk gives these bytes, right or wrong."""
        return len(self._readable(offset, size)) == size

    def _readable(self, offset: int, size: int) -> bytes:
        """These bytes, or none if the disk cannot give them."""
        try:
            return self.read(offset, size)
        except Corrupt as error:
            log.warning("%s", error)
            return b""

    def _failed(self, verb: str, error: OSError) -> DfsError:
        kind = Full if error.errno in _NO_SPACE else DfsError
        return kind(f"cannot {verb} {self.path}: {error.strerror}")


class SegmentFiles:
    """The segments of one directory, with a bounded number of them open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[int, SegmentFile] = {}  # in order of first use

    def numbers(self) -> list[int]:
        """Every segment on disk, ascending. Blocks."""
        names = (path.stem for path in self.directory.glob(f"*{_SUFFIX}"))
        return sorted(int(name) for name in names if name.isdecimal())

    def peek(self, number: int) -> SegmentFile | None:
        """The segment if it was used lately."""
        return self._files.get(number)

    @contextmanager
    def using(self, number: int) -> Iterator[SegmentFile]:
        """Keep a segment from being closed while a thread uses it."""
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = SegmentFile(self.path(number), number)
        file.users += 1
        try:
            yield file
        finally:
            file.users -= 1
            if len(self._files) > SEGMENT_FILES_OPEN_MAX:
                self._close_idle()

    def path(self, number: int) -> Path:
        """Where a segment is."""
        return self.directory / f"{number:08d}{_SUFFIX}"

    def sync_directory(self) -> None:
        """Wait until created and removed segments are on stable storage. Blocks."""
        sync_directory(self.directory)

    def forget(self, number: int) -> None:
        """Close a segment that was unlinked."""
        file = self._files.get(number)
        if file is not None and file.users == 0:
            self._files.pop(number).close_nowait()

    def room_bytes(self) -> tuple[int, int]:
        """(free, whole) bytes of the disk, as unprivileged users count them. A quick call."""
        try:
            found = os.statvfs(self.directory)
        except OSError as error:
            raise DfsError(f"cannot examine {self.directory}: {error.strerror}") from error
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    @property
    def open_count(self) -> int:
        """Segments that are open."""
        return len(self._files)

    def close(self) -> None:
        """Close every file no thread is using."""
        for file in self._files.values():
            if file.users == 0:
                file.close_nowait()
        self._files = {number: file for number, file in self._files.items() if file.users}

    def _close_idle(self) -> None:
        for number, file in list(self._files.items()):
            if len(self._files) <= SEGMENT_FILES_OPEN_MAX:
                return
            if file.users == 0:
                file.close_nowait()
                del self._files[number]


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on stable storage. Blocks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DfsError(f"cannot flush {path}: {error.strerror}") from error


def _write_all(descriptor: int, buffers: Sequence[Buffer], offset: int) -> None:
    left = list(buffers)
    while left:
        count = os.pwritev(descriptor, left, offset)
        offset += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if left and count:  # a short write: the next one says why
            left[0] = memoryview(left[0])[count:]
