"""Start of a block store is recovery: make the index and the segment files agree.

Whatever happened before, kill -9, power cut or a damaged disk, these steps end in a store that
serves only blocks whose records are whole as far as a header can tell (the bytes are verified when
first read):
1. An index that cannot be used is set aside and a new one built from the segments. Small blocks
   live in the index only: those that the old one still gives are taken over, verified. Until that
   is done the new one counts as damaged: a start that is interrupted begins anew.
2. Records past `synced` may not have reached the disk before a power cut: they are verified; if one
   is torn, its row is dropped. One that the disk cannot read now keeps its row: later it may.
3. Records past `indexed` are added (a kill between append and commit; a power cut that took back
   the last commits). Only whole, verified ones count; what follows the last one is cut off.
4. Rows of segments whose file is missing or shorter than it was are dropped.
So steps 2 and 3 read at most what was written since the last flush, about two segments.

Blocks: runs in a thread, alone with the index and the files.
"""

import logging
from pathlib import Path

from dfsfs.base.errors import Corrupt, DfsError
from dfsfs.base.types import Digest, digest_matches
from dfsfs.blocks.index import SMALL, VERSION, Index
from dfsfs.blocks.records import HEADER_BYTES
from dfsfs.blocks.segments import SegmentFile, SegmentFiles, sync_directory
from dfsfs.runtime import Database

log = logging.getLogger(__name__)

INDEX_NAME = "index.db"
_SALVAGE_PAGE = 64
_INDEX_BATCH = 1024


def recover(directory: Path) -> tuple[Index, SegmentFiles]:
    """Open the store in `directory`, made if needed, in a consistent state.

    Raises:
        Misconfigured: the index is of another version of this program.
        Full, DfsError: the disk fails.
    """
    try:
        (directory / "segments").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DfsError(f"cannot make {directory}: {error.strerror}") from error
    # Flushing a file does not flush the names on the way to it.
    for made in (directory, directory.parent):
        sync_directory(made)
    files = SegmentFiles(directory / "segments")
    path = directory / INDEX_NAME
    if not path.exists() and (files.numbers() or Database.asides(path)):
        log.warning("%s is gone: building a new one", path)
        return _rebuild(path, files), files
    if Database.distrust_mark(path).exists():
        return _rebuild(path, files), files
    try:
        index = Index(path)
        _reconcile(index, files)
    except Corrupt as error:
        log.warning("block index is unusable (%s): building a new one", error)
        return _rebuild(path, files), files
    return index, files


def _reconcile(index: Index, files: SegmentFiles) -> None:
    """Steps 2 to 4."""
    present = set(files.numbers())
    for number in sorted(index.segments.keys() - present - {SMALL}):
        if index.segments[number].blocks:
            log.warning("segment %d is gone with %d blocks", number, index.segments[number].blocks)
            for digest, location in index.in_segment(number, 0):
                index.lose(digest, location)
        index.reclaimed((), [number])
    for number in sorted(present):
        _reconcile_segment(index, files, number)


def _reconcile_segment(index: Index, files: SegmentFiles, number: int) -> None:
    row = index.segments.get(number)
    synced, indexed = (row.synced, row.indexed) if row else (0, 0)
    with files.using(number) as file:
        size = file.size()
        if size == indexed == synced:
            return
        if size < indexed:
            log.warning("segment %d: %d bytes are gone", number, indexed - size)
            size = indexed = _whole_records_end(file)
            for digest, location in index.in_segment(number, 0):
                if location.position >= size:
                    index.lose(digest, location)
        synced = min(synced, size)
        good = {
            record.position: record
            for record in file.scan(synced, verify=True)
            if not record.removed
        }
        for digest, location in index.in_segment(number, synced):
            if location.position not in good and file.is_readable(
                location.position, HEADER_BYTES + location.length
            ):
                log.warning("segment %d: the block at %d is torn", number, location.position)
                index.lose(digest, location)
        found = [
            (record.digest, record.position, record.length)
            for record in good.values()
            if record.position >= indexed
        ]
        end = max((at + HEADER_BYTES + length for _, at, length in found), default=indexed)
        if file.size() > end:
            log.info("segment %d: cutting a torn tail of %d bytes", number, file.size() - end)
            file.truncate(end)
        file.sync()
        index.add_records(number, end, found)
        index.note_synced(number, end, now=True)


def _whole_records_end(file: SegmentFile) -> int:
    """Where the last record ends that the file holds as a whole."""
    end = 0
    for record in file.scan(0, verify=False):
        end = record.position + HEADER_BYTES + record.length
    return end


def _rebuild(path: Path, files: SegmentFiles) -> Index:
    """Step 1. The bytes of the last two segments are verified, older ones when first read."""
    # Moved, not deleted: it may be all that is left of small blocks.
    Database.set_aside(path)
    Database.mark_distrusted(path)
    sync_directory(path.parent)
    index = Index(path)
    numbers = files.numbers()
    for number in numbers:
        verify = number in numbers[-2:]
        with files.using(number) as file:
            batch: list[tuple[Digest, int, int]] = []
            end = 0
            for record in file.scan(0, verify=verify):
                end = record.position + HEADER_BYTES + record.length
                if not record.removed:
                    batch.append((record.digest, record.position, record.length))
                if len(batch) >= _INDEX_BATCH:
                    index.add_records(number, end, batch)
                    batch = []
            index.add_records(number, end, batch)
            file.truncate(end)
            file.sync()
            index.note_synced(number, end, now=True)
    taken = sum(_salvage_small(aside, index) for aside in Database.asides(path))
    index.sync()
    Database.distrust_mark(path).unlink(missing_ok=True)
    blocks = sum(row.blocks for row in index.segments.values())
    log.warning("new block index: %d blocks, %d of them small ones saved", blocks, taken)
    return index


def _salvage_small(aside: Path, index: Index) -> int:
    """Take over the small blocks that a damaged index still gives, verified; returns how many."""
    taken = 0
    after = b""
    try:
        old = Database(aside, schema="", version=VERSION, cache_bytes=1 << 20)
        try:
            while rows := old.rows(
                "SELECT digest, data FROM block JOIN small ON small.id = block.position"
                " WHERE segment = 0 AND digest > ? ORDER BY digest LIMIT ?",
                (after, _SALVAGE_PAGE),
            ):
                for digest, data in rows:
                    if index.find(digest) is None and digest_matches(digest, data):
                        index.add_small(digest, data)
                        taken += 1
                after = rows[-1][0]
        finally:
            old.close()
    except Corrupt as error:
        log.warning("%s: cannot read further: %s", aside, error)
    return taken
