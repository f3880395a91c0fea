"""The verbs over a real namespace: what they commit, wait for, and tell the kernel."""

import os
import random
import stat

import pytest
import trio
import trio.testing

from dfsfs.base.errors import (
    BadHandle,
    Corrupt,
    Exists,
    Full,
    Invalid,
    IsDirectory,
    NameTooLong,
    NoAttribute,
    NotDirectory,
    NotFound,
    NotPermitted,
    NotSupported,
    Stale,
)
from dfsfs.base.limits import READER_PATIENCE_S, READER_SETTLE_S, SHARED_FILE_S
from dfsfs.base.types import ROOT_INODE, Buffer, Digest, FileKind
from dfsfs.content import ContentWriter, inline_ref
from dfsfs.namespace import AttributeChanges, Change
from dfsfs.vfs import Caller, Filesystem, SetAttributes
from tests.unit.vfs.conftest import BLOCK, ROOT, Bench

USER = Caller(1000, 1000)


async def test_every_change_of_names_waits_until_it_is_visible(bench: Bench) -> None:
    fs = bench.filesystem
    calls = bench.publication.visible_calls
    seen = 0
    directory = await fs.mkdir(ROOT_INODE, b"d", 0o755, ROOT)
    opened, value = await fs.create(directory.inode, b"f", 0o644, os.O_WRONLY, ROOT)
    for call in (
        fs.mknod(ROOT_INODE, b"n", stat.S_IFIFO | 0o600, 0, ROOT),
        fs.symlink(ROOT_INODE, b"s", b"target", ROOT),
        fs.link(value.inode, ROOT_INODE, b"l"),
        fs.rename(ROOT_INODE, b"l", ROOT_INODE, b"m"),
        fs.setattr(value.inode, SetAttributes(mode=0o600)),
        fs.setxattr(value.inode, b"user.a", b"1"),
        fs.removexattr(value.inode, b"user.a"),
        fs.unlink(ROOT_INODE, b"m"),
        fs.unlink(directory.inode, b"f"),
        fs.rmdir(ROOT_INODE, b"d"),
    ):
        seen = len(calls)
        await call
        assert calls[seen:] == [bench.namespace.position]
    seen = len(calls)
    await fs.release(opened.number)
    assert len(calls) == seen


async def test_writing_waits_for_nobody_and_closing_does(bench: Bench) -> None:
    fs = bench.filesystem
    opened, value = await fs.create(ROOT_INODE, b"f", 0o644, os.O_WRONLY, ROOT)
    bench.publication.gate = trio.Event()
    await fs.write(opened.number, 0, b"x" * 3 * BLOCK)
    assert bench.namespace.get(value.inode).size == 0
    assert fs.getattr(value.inode).size == 3 * BLOCK
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.flush, opened.number)
        with trio.fail_after(30):
            while bench.namespace.get(value.inode).size == 0:
                await trio.testing.wait_all_tasks_blocked(0.001)
        # Still waiting for others, and writing goes on.
        await fs.write(opened.number, 0, b"y")
        assert bench.publication.durable_calls == []
        bench.publication.gate.set()
    await fs.fsync(opened.number)
    assert bench.publication.durable_calls == [bench.namespace.position]
    await fs.release(opened.number)
    assert await bench.bytes_of(value.inode) == b"y" + b"x" * (3 * BLOCK - 1)


async def test_a_clean_close_commits_nothing(bench: Bench) -> None:
    inode = await bench.put(b"f", b"data")
    before = bench.namespace.position
    opened = await bench.filesystem.open(inode, os.O_RDWR, ROOT)
    await bench.filesystem.flush(opened.number)
    await bench.filesystem.release(opened.number)
    assert bench.namespace.position == before


async def test_truncation_at_open_is_committed_by_the_close(bench: Bench) -> None:
    inode = await bench.put(b"f", b"data")
    opened = await bench.filesystem.open(inode, os.O_WRONLY | os.O_TRUNC, ROOT)
    # Others go on seeing the old version, whole, until the new one is closed.
    assert bench.namespace.get(inode).size == 4
    assert bench.filesystem.getattr(inode).size == 0
    await bench.filesystem.flush(opened.number)
    assert bench.namespace.get(inode).size == 0
    await bench.filesystem.release(opened.number)


async def test_failures_come_out_of_flush_and_nothing_is_lost_before_the_release(
    bench: Bench,
) -> None:
    fs = bench.filesystem
    data = random.Random(1).randbytes(2 * BLOCK)
    opened, value = await fs.create(ROOT_INODE, b"f", 0o644, os.O_RDWR, ROOT)
    bench.storage.failure = Full("no space")
    await fs.write(opened.number, 0, data)
    for call in (fs.flush, fs.fsync, fs.flush):
        with pytest.raises(Full):
            await call(opened.number)
    assert bytes(await fs.read(opened.number, 0, 3 * BLOCK)) == data
    bench.storage.failure = None
    await fs.flush(opened.number)
    await fs.release(opened.number)
    assert await bench.bytes_of(value.inode) == data


@pytest.mark.announce("bytes written were lost")
async def test_what_cannot_be_stored_is_given_up_with_the_last_handle(bench: Bench) -> None:
    inode = await bench.put(b"f", b"old")
    opened = await bench.filesystem.open(inode, os.O_RDWR, ROOT)
    bench.storage.failure = Full("no space")
    await bench.filesystem.write(opened.number, 0, b"x" * 2 * BLOCK)
    await bench.filesystem.release(opened.number)
    bench.storage.failure = None
    assert ("pages", inode, True) in bench.kernel.take()
    assert await bench.bytes_of(inode) == b"old"


async def test_what_was_written_after_the_last_flush_is_committed_by_the_release(
    bench: Bench,
) -> None:
    inode = await bench.put(b"f", b"old")
    opened = await bench.filesystem.open(inode, os.O_RDWR, ROOT)
    await bench.filesystem.flush(opened.number)
    await bench.filesystem.write(opened.number, 0, b"map")
    await bench.filesystem.release(opened.number)
    assert await bench.bytes_of(inode) == b"map"


async def test_a_file_without_a_name_is_not_committed(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"old")
    opened = await fs.open(inode, os.O_RDWR, ROOT)
    await fs.unlink(ROOT_INODE, b"f")
    position = bench.namespace.position
    await fs.write(opened.number, 0, b"new")
    await fs.flush(opened.number)
    await fs.fsync(opened.number)
    assert bytes(await fs.read(opened.number, 0, 10)) == b"new"
    assert fs.getattr(inode).nlink == 0
    assert {inode for inode, _ in fs.contents_in_use()} == {inode}
    await fs.release(opened.number)
    assert bench.namespace.position == position
    assert list(fs.contents_in_use()) == []


async def test_a_name_taken_elsewhere(bench: Bench) -> None:
    bench.elsewhere.create(ROOT_INODE, b"f", kind=FileKind.REGULAR, mode=0o644, uid=0, gid=0)
    bench.push()
    with pytest.raises(Exists):
        await bench.filesystem.create(ROOT_INODE, b"f", 0o644, os.O_EXCL | os.O_RDWR, ROOT)
    with pytest.raises(Stale):
        await bench.filesystem.create(ROOT_INODE, b"f", 0o644, os.O_RDWR, ROOT)


async def test_the_kernel_is_told_what_others_changed_and_only_that(bench: Bench) -> None:
    fs, kernel = bench.filesystem, bench.kernel
    inode = await bench.put(b"f", b"data")
    other = await bench.put(b"unknown", b"data")
    fs.forget(other, 1)
    await fs.setattr(inode, SetAttributes(mode=0o600))
    await fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"g")
    assert [note for note in kernel.take() if note[0] != "attributes"] == []
    bench.pull()
    bench.elsewhere.write(inode, inline_ref(b"new"), mtime_ns=1)
    bench.elsewhere.write(other, inline_ref(b"new"), mtime_ns=1)
    bench.elsewhere.rename(ROOT_INODE, b"g", ROOT_INODE, b"h")
    changes = bench.push()
    notes = kernel.take()
    assert ("pages", inode, False) in notes
    assert ("entry", ROOT_INODE, b"g", False) in notes
    assert ("entry", ROOT_INODE, b"h", False) in notes
    assert not any(other in note for note in notes), "the kernel knows nothing of it"
    await fs.invalidated(changes)
    assert kernel.settles == 1
    bench.elsewhere.set_attributes(inode, AttributeChanges(mode=0o640))
    bench.push()
    assert ("attributes", inode) in kernel.take()


async def test_local_changes_that_no_kernel_asked_for_are_told_to_it(bench: Bench) -> None:
    inode = await bench.put(b"f", b"data")
    bench.kernel.take()
    bench.namespace.write(inode, inline_ref(b"by the library"), mtime_ns=1)
    bench.namespace.rename(ROOT_INODE, b"f", ROOT_INODE, b"g")
    notes = bench.kernel.take()
    assert ("pages", inode, False) in notes
    assert ("entry", ROOT_INODE, b"f", False) in notes


async def test_what_a_waiting_handler_has_locked_is_asked_for_as_busy(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"data")
    bench.pull()
    bench.kernel.take()
    bench.publication.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.mkdir, ROOT_INODE, b"d", 0o755, ROOT)
        nursery.start_soon(fs.setattr, inode, SetAttributes(mode=0o600))
        await trio.testing.wait_all_tasks_blocked()
        bench.elsewhere.unlink(ROOT_INODE, b"f")
        bench.push()
        bench.publication.gate.set()
    assert ("entry", ROOT_INODE, b"f", True) in bench.kernel.take()


async def test_an_answer_that_waited_is_true_when_it_is_given(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"data")
    bench.pull()
    bench.publication.gate = trio.Event()
    modes: list[int] = []

    async def link() -> None:
        modes.append((await fs.link(inode, ROOT_INODE, b"l")).mode)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link)
        await trio.testing.wait_all_tasks_blocked()
        bench.elsewhere.set_attributes(inode, AttributeChanges(mode=0o604))
        bench.push()
        bench.publication.gate.set()
    assert modes == [0o604]


async def test_bytes_written_here_win_over_those_from_elsewhere(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"old")
    bench.pull()
    opened = await fs.open(inode, os.O_RDWR, ROOT)
    await fs.write(opened.number, 0, b"new")
    bench.kernel.take()
    bench.elsewhere.write(inode, inline_ref(b"elsewhere"), mtime_ns=1)
    bench.push()
    assert not any(note[0] == "pages" for note in bench.kernel.take())
    assert bytes(await fs.read(opened.number, 0, 100)) == b"new"
    await fs.flush(opened.number)
    await fs.release(opened.number)
    assert await bench.bytes_of(inode) == b"new"


async def _write_elsewhere(bench: Bench, inode: int, data: bytes) -> list[Change]:
    upload = bench.storage.upload()
    writer = ContentWriter(upload, 12)
    await writer.write(data)
    content = await writer.finish()
    bench.elsewhere.write(bench.namespace.get(inode).inode, content, mtime_ns=1)  # type: ignore[arg-type]
    changes = bench.push()
    upload.close()
    return changes


async def test_a_block_that_nobody_has_is_an_error_and_not_a_missing_file(bench: Bench) -> None:
    """Promise 12: EIO; ENOENT would say that the file is not there."""
    fs = bench.filesystem
    inode = await bench.put(b"f", b"x" * 3 * BLOCK)
    for digest in bench.store.page(None, 100):
        await bench.store.remove(digest)
    handle = await fs.open(inode, os.O_RDONLY, ROOT)
    with pytest.raises(Corrupt, match="no block"):
        await fs.read(handle.number, 0, BLOCK)
    await fs.release(handle.number)


async def test_versions_of_readers(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    fs = bench.filesystem
    old, new, newer = b"o" * 10 * BLOCK, b"n" * 12 * BLOCK, b"m" * 11 * BLOCK
    inode = await bench.put(b"f", old)
    bench.pull()
    reader = await fs.open(inode, os.O_RDONLY, ROOT)
    assert not reader.direct
    assert bytes(await fs.read(reader.number, 0, BLOCK)) == old[:BLOCK]
    bench.kernel.take()
    await _write_elsewhere(bench, inode, new)
    assert bench.kernel.take() == [("attributes", inode)], "its pages are being read"
    second = await fs.open(inode, os.O_RDONLY, ROOT)
    assert second.direct, "the page cache has the old version"
    assert bytes(await fs.read(second.number, 0, BLOCK)) == new[:BLOCK]
    await _write_elsewhere(bench, inode, newer)
    assert bytes(await fs.read(second.number, BLOCK, 20 * BLOCK)) == new[BLOCK:]
    assert bytes(await fs.read(reader.number, BLOCK, 20 * BLOCK)) == old[BLOCK:]
    await trio.sleep(READER_SETTLE_S * 2)
    assert ("pages", inode, True) in bench.kernel.take()
    for handle in (reader, second):
        assert bytes(await fs.read(handle.number, 0, 20 * BLOCK)) == newer
        await fs.release(handle.number)


async def test_a_read_that_waits_long_for_its_blocks_keeps_the_version_of_its_handle(
    bench: Bench, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 6: its last request may be answered long after it was asked. Seed 60 showed it."""
    fs = bench.filesystem
    old, new = b"o" * 2 * BLOCK, b"n" * 12 * BLOCK
    inode = await bench.put(b"f", old)
    bench.pull()
    reader = (await fs.open(inode, os.O_RDONLY, ROOT)).number
    read = bench.storage.read

    async def slow(digest: Digest, offset: int, size: int) -> Buffer:
        await trio.sleep(2 * READER_SETTLE_S)
        return await read(digest, offset, size)

    monkeypatch.setattr(bench.storage, "read", slow)
    monkeypatch.setattr(bench.storage, "read_nowait", lambda digest, offset, size: None)
    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read_all, fs, reader, old)
        await trio.sleep(1)
        await _write_elsewhere(bench, inode, new)
    assert trio.current_time() - start_s >= 2 * READER_SETTLE_S
    assert not await fs.read(reader, len(old), 20 * BLOCK), "the end of what it has read"
    await trio.sleep(2 * READER_SETTLE_S)
    assert bytes(await fs.read(reader, 0, 20 * BLOCK)) == new
    await fs.release(reader)


async def _read_all(fs: Filesystem, number: int, data: bytes) -> None:
    assert bytes(await fs.read(number, 0, 20 * BLOCK)) == data


async def test_whoever_reads_is_shown_at_once_what_is_appended(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """As `tail -f` does. Nobody waits for such a reader: no byte he may have read has changed."""
    fs = bench.filesystem
    inode = await bench.put(b"f", b"one\n")
    bench.pull()
    begun, at_end = [(await fs.open(inode, os.O_RDONLY, ROOT)).number for _ in range(2)]
    assert bytes(await fs.read(begun, 0, 2)) == b"on"
    assert bytes(await fs.read(at_end, 0, 100)) == b"one\n"
    start_s = trio.current_time()
    for text in (b"one\ntwo\n", b"one\ntwo\nthree\n"):
        bench.elsewhere.write(inode, inline_ref(text), mtime_ns=1)
        bench.kernel.take()
        await fs.invalidated(bench.push())
        assert ("pages", inode, False) in bench.kernel.take()
        assert bytes(await fs.read(begun, 2, 100)) == text[2:]
        assert bytes(await fs.read(at_end, 4, 100)) == text[4:]
        assert not (await fs.open(inode, os.O_RDONLY, ROOT)).direct
    assert trio.current_time() == start_s
    bench.elsewhere.write(inode, inline_ref(b"One\ntwo\nthree\nfour\n"), mtime_ns=1)
    bench.push()
    assert bytes(await fs.read(begun, 0, 100)) == text, "that is another version"


async def test_what_is_appended_is_shown_when_the_page_with_the_old_end_is_gone(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """Else the kernel would show zeros after the old end. Blocks are read if refs do not tell."""
    fs = bench.filesystem
    old = b"o" * 3 * BLOCK + b"end"
    inode = await bench.put(b"f", old)
    bench.pull()
    reader = (await fs.open(inode, os.O_RDONLY, ROOT)).number
    assert bytes(await fs.read(reader, 0, 5)) == old[:5]
    for text in (old + b"more", old + b"more" * BLOCK):
        size = fs.getattr(inode).size
        bench.kernel.take()
        changes = await _write_elsewhere(bench, inode, text)
        assert fs.getattr(inode).size == size, "while the pages are there"
        await fs.invalidated(changes)
        assert ("pages", inode, False) in bench.kernel.take()
        assert fs.getattr(inode).size == len(text)
        assert bytes(await fs.read(reader, 5, 10 * len(text))) == text[5:]
        await fs.read(reader, 0, 5)  # in the middle again
    start_s = trio.current_time()
    await fs.invalidated(await _write_elsewhere(bench, inode, b"p" * 2 * len(text)))
    assert trio.current_time() - start_s == pytest.approx(READER_PATIENCE_S), "not the same bytes"
    assert bytes(await fs.read(reader, 5, BLOCK)) == text[5 : 5 + BLOCK]
    await fs.release(reader)


async def test_a_file_that_changes_often_has_one_task_that_waits_for_its_readers(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """Promise 16: as `tail -f` of what another mount appends to."""
    fs = bench.filesystem
    inode = await bench.put(b"f", b"o" * 10 * BLOCK)
    bench.pull()
    reader = await fs.open(inode, os.O_RDONLY, ROOT)
    assert await fs.read(reader.number, 0, 10 * BLOCK)
    before = trio.lowlevel.current_statistics().tasks_living
    for turn in range(100):
        await _write_elsewhere(bench, inode, b"%d" % turn * 10 * BLOCK)
        await trio.sleep(READER_SETTLE_S / 200)
    assert trio.lowlevel.current_statistics().tasks_living <= before + 1
    bench.kernel.take()
    await trio.sleep(READER_SETTLE_S * 2)
    assert ("pages", inode, True) in bench.kernel.take()
    assert bytes(await fs.read(reader.number, 0, 4)) == b"9999"
    await fs.release(reader.number)
    assert trio.lowlevel.current_statistics().tasks_living <= before


async def test_the_page_cache_is_given_up_with_the_last_reader_of_an_old_version(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"o" * 10 * BLOCK)
    bench.pull()
    reader = await fs.open(inode, os.O_RDONLY, ROOT)
    await fs.read(reader.number, 0, BLOCK)
    await _write_elsewhere(bench, inode, b"n" * 10 * BLOCK)
    bench.kernel.take()
    await fs.release(reader.number)
    assert bench.kernel.notes == [("pages", inode, True)]
    again = await fs.open(inode, os.O_RDONLY, ROOT)
    assert again.direct, "it changed elsewhere while it was read here, and may again"
    await fs.release(again.number)
    await trio.sleep(SHARED_FILE_S * 2)
    again = await fs.open(inode, os.O_RDONLY, ROOT)
    assert again.direct, "the kernel may not have forgotten its pages yet"
    assert not again.keep_pages
    await fs.release(again.number)
    bench.kernel.take()  # now it has
    again = await fs.open(inode, os.O_RDONLY, ROOT)
    assert not again.direct
    assert again.keep_pages
    await fs.release(again.number)


async def test_directories(bench: Bench) -> None:
    fs = bench.filesystem
    for number in range(10):
        await bench.put(b"%d" % number, b"x")
    handle = fs.opendir(ROOT_INODE)
    names = []
    for entry in fs.readdir(handle, 0):
        names.append(entry.name)
        if len(names) == 5:
            position = entry.position
            break
    await fs.unlink(ROOT_INODE, b"0")
    await fs.unlink(ROOT_INODE, b"7")
    await bench.put(b"new", b"x")
    names += [entry.name for entry in fs.readdir(handle, position)]
    assert sorted(names) == sorted([b".", b"..", *(b"%d" % n for n in range(10) if n != 7)])
    assert b"new" in [entry.name for entry in fs.readdir(handle, 0)]
    await fs.fsyncdir(handle)
    assert bench.publication.durable_calls == [bench.namespace.position]
    fs.releasedir(handle)
    with pytest.raises(BadHandle):
        list(fs.readdir(handle, 0))
    with pytest.raises(NotDirectory):
        fs.opendir(await bench.put(b"file", b""))


async def test_groups_of_setgid_directories(bench: Bench) -> None:
    fs = bench.filesystem
    parent = await fs.mkdir(ROOT_INODE, b"d", 0o2775, Caller(0, 50))
    inner = await fs.mkdir(parent.inode, b"d", 0o755, USER)
    assert (inner.gid, inner.mode) == (50, 0o2755)
    link = await fs.symlink(parent.inode, b"l", b"x", USER)
    assert (link.uid, link.gid) == (1000, 50)


async def test_extended_attributes(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"data")
    await fs.setxattr(inode, b"user.a", b"1", create=True)
    with pytest.raises(Exists):
        await fs.setxattr(inode, b"user.a", b"2", create=True)
    with pytest.raises(NotSupported):
        await fs.setxattr(inode, b"system.posix_acl_access", b"")
    with pytest.raises(NotPermitted):
        await fs.setxattr(inode, b"user.dfs.key", b"")
    assert fs.listxattr(inode, ROOT) == [b"user.a"]
    assert (await fs.virtual_xattr(inode, b"user.dfs.key")).endswith(b":4")
    with pytest.raises(NoAttribute):
        await fs.virtual_xattr(ROOT_INODE, b"user.dfs.key")


async def test_errors(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"data")
    with pytest.raises(NameTooLong):
        fs.lookup(ROOT_INODE, b"x" * 256)
    with pytest.raises(NotFound):
        fs.lookup(ROOT_INODE, b"missing")
    with pytest.raises(Invalid):
        await fs.rename(ROOT_INODE, b"f", ROOT_INODE, b"g", 4)
    with pytest.raises(Invalid):
        await fs.mknod(ROOT_INODE, b"x", stat.S_IFDIR, 0, ROOT)
    with pytest.raises(Invalid):
        fs.readlink(inode)
    with pytest.raises(IsDirectory):
        await fs.open(ROOT_INODE, os.O_RDONLY, ROOT)
    reader = await fs.open(inode, os.O_RDONLY, ROOT)
    with pytest.raises(BadHandle):
        await fs.write(reader.number, 0, b"x")
    await fs.release(reader.number)
    for call in (fs.read(reader.number, 0, 1), fs.flush(reader.number), fs.release(reader.number)):
        with pytest.raises(BadHandle):
            await call


async def test_access(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"data", mode=0o640)
    assert fs.access(inode, os.R_OK | os.W_OK, ROOT)
    assert not fs.access(inode, os.X_OK, ROOT)
    assert not fs.access(inode, os.R_OK, USER)
    assert fs.access(inode, os.R_OK, Caller(1000, 1000, frozenset({0})))
    assert not fs.access(inode, os.W_OK, Caller(1000, 0))
    assert fs.access(ROOT_INODE, os.X_OK, ROOT)


async def test_statfs(bench: Bench) -> None:
    before = bench.filesystem.statfs()
    await bench.put(b"f", b"data")
    after = bench.filesystem.statfs()
    assert after.files == before.files + 1
    assert (after.capacity_bytes, after.free_bytes) == (1000, 400)


async def test_append_is_at_the_end_whatever_the_kernel_believes(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"four")
    opened = await fs.open(inode, os.O_WRONLY | os.O_APPEND, ROOT)
    await fs.write(opened.number, 0, b"+one")
    assert fs.write_nowait(opened.number, 2, b"+two")
    await fs.flush(opened.number)
    await fs.release(opened.number)
    assert await bench.bytes_of(inode) == b"four+one+two"


async def test_an_older_flush_never_undoes_a_newer_one(bench: Bench) -> None:
    """Two flushes settle out of order; what is named in the end is the newer content."""
    fs = bench.filesystem
    opened, value = await fs.create(ROOT_INODE, b"f", 0o644, os.O_RDWR, ROOT)
    first, second = b"1" * 2 * BLOCK, b"2" * 2 * BLOCK
    await fs.write(opened.number, 0, first)
    bench.storage.settle_gate = gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.flush, opened.number)
        with trio.fail_after(30):
            while bench.storage.settling == 0:
                await trio.testing.wait_all_tasks_blocked(0.001)
        bench.storage.settle_gate = None
        await fs.write(opened.number, 0, second)
        bench.publication.gate = trio.Event()
        nursery.start_soon(fs.flush, opened.number)
        with trio.fail_after(30):
            while bench.namespace.get(value.inode).size == 0:
                await trio.testing.wait_all_tasks_blocked(0.001)
        await fs.write(opened.number, 0, b"3")  # so that the buffer stays
        newer = bench.namespace.get(value.inode).content
        gate.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert bench.namespace.get(value.inode).content == newer
        bench.publication.gate.set()
    await fs.flush(opened.number)
    await fs.release(opened.number)
    assert await bench.bytes_of(value.inode) == b"3" + second[1:]


async def test_gc_is_told_of_open_files_without_a_name(bench: Bench) -> None:
    fs = bench.filesystem
    inode = await bench.put(b"f", b"data")
    opened = await fs.open(inode, os.O_RDONLY, ROOT)
    await fs.unlink(ROOT_INODE, b"f")
    assert inode in [number for number, _ in bench.namespace.contents(None, 100).contents]
    await fs.release(opened.number)
    assert inode not in [number for number, _ in bench.namespace.contents(None, 100).contents]
