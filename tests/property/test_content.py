"""Content trees against plain bytes: every operation on tiny blocks, so that trees get deep."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dfsfs.base.types import Buffer, ContentRef, Digest, DigestKind
from dfsfs.blocks import LocalStorage, LocalUpload, MemoryStore
from dfsfs.content import ContentReader, ContentWriter, Leaf, inline_ref, patch, put_leaf, walk
from dfsfs.runtime import RealWorld

FANOUTS = (2, 3, 5, 256)


@dataclass
class Case:
    """One storage and one shape of trees."""

    shift: int
    fanout: int
    storage: LocalStorage = field(
        default_factory=lambda: LocalStorage(RealWorld(), MemoryStore(), kind=DigestKind.SHA1)
    )

    def __post_init__(self) -> None:
        self.upload: LocalUpload = self.storage.upload()

    async def write(self, pieces: list[bytes]) -> ContentRef:
        writer = ContentWriter(self.upload, self.shift, fanout=self.fanout, inline_bytes_max=0)
        for piece in pieces:
            await writer.write(piece)
        return await writer.finish()

    def reader(self, ref: ContentRef) -> ContentReader:
        return ContentReader(self.storage, ref, fanout=self.fanout, shift_min=0)

    async def leaves(self, data: bytes, indexes: list[int]) -> dict[int, Leaf | None]:
        width = 1 << self.shift
        return {i: await put_leaf(self.upload, data[i * width : (i + 1) * width]) for i in indexes}

    async def patch(
        self, base: ContentRef, leaves: dict[int, Leaf | None], size: int
    ) -> ContentRef:
        return await patch(
            self.storage,
            self.upload,
            base,
            leaves,
            size,
            self.shift,
            fanout=self.fanout,
            shift_min=0,
        )

    async def digests(self, ref: ContentRef, limit: int) -> list[Digest]:
        found: list[Digest] = []
        after: int | None = None
        while True:
            page = await walk(self.storage, ref, after, limit, fanout=self.fanout, shift_min=0)
            found += page.digests
            assert len(page.digests) < limit + 64
            if page.next is None:
                return found
            assert page.next > (-1 if after is None else after)
            after = page.next


cases = st.builds(Case, shift=st.integers(0, 4), fanout=st.sampled_from(FANOUTS))
# Runs of zeros and of other bytes: holes of all sizes, leaves with zeros at either end.
runs = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([b"\0", b"a", b"\0b", b"\xff\0\0"])), max_size=12
)
contents = runs.map(lambda parts: b"".join((byte * count)[:count] for count, byte in parts))


def run(function: Callable[..., object], *args: object) -> None:
    trio.run(function, *args)  # type: ignore[arg-type]


@given(case=cases, data=contents, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_what_is_written_is_read(case: Case, data: bytes, cuts: list[int]) -> None:
    async def check() -> None:
        edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        pieces = [data[a:b] for a, b in pairwise(edges)]
        ref = await case.write(pieces)
        assert ref == await case.write([data])  # however it is cut
        assert ref.size == len(data)
        reader = case.reader(ref)
        assert bytes(await reader.read(0, len(data) + 10)) == data
        for a in edges:
            for size in (0, 1, 3, 17, len(data)):
                assert bytes(await case.reader(ref).read(a, size)) == data[a : a + size]
                nowait = reader.read_nowait(a, size)
                assert nowait is not None
                assert bytes(nowait) == data[a : a + size]

    run(check)


@given(case=cases, base=contents, data=contents, how=st.sampled_from(["tree", "inline", "hole"]))
def test_a_patch_is_what_writing_afresh_gives(
    case: Case, base: bytes, data: bytes, how: str
) -> None:
    """For any two contents: patching one into the other gives the ref of the other."""

    async def check() -> None:
        old = base
        if how == "inline":
            ref = inline_ref(old)
        elif how == "hole":
            old = bytes(len(base))
            ref = ContentRef(size=len(base), shift=case.shift)
        else:
            ref = await case.write([old])
        width = 1 << case.shift
        padded = old.ljust(len(data), b"\0")[: len(data)]
        changed = [
            i
            for i in range(-(-len(data) // width))
            if padded[i * width : (i + 1) * width] != data[i * width : (i + 1) * width]
        ]
        leaves = await case.leaves(data, changed)
        patched = await case.patch(ref, leaves, len(data))
        assert patched == await case.write([data])

    run(check)


@given(
    case=cases,
    data=contents,
    steps=st.lists(
        st.tuples(st.integers(0, 300), st.binary(max_size=20), st.integers(0, 400)), max_size=6
    ),
)
def test_a_chain_of_patches(case: Case, data: bytes, steps: list[tuple[int, bytes, int]]) -> None:
    """Overwrites beyond the end, growing and shrinking, in any order."""

    async def check() -> None:
        now, ref = data, await case.write([data])
        for offset, piece, size in steps:
            grown = now.ljust(offset + len(piece), b"\0") if piece else now
            now = grown[:offset] + piece + grown[offset + len(piece) :] if piece else now
            width = 1 << case.shift
            touched = range(offset >> case.shift, -(-(offset + len(piece)) // width))
            leaves = await case.leaves(now, list(touched) if piece else [])
            ref = await case.patch(ref, leaves, len(now))
            assert ref == await case.write([now])
            now = now[:size].ljust(size, b"\0")
            ref = await case.patch(ref, {}, size)
            assert ref == await case.write([now])
        assert bytes(await case.reader(ref).read(0, len(now))) == now

    run(check)


@given(case=cases, data=contents)
def test_a_cut_leaf_given_by_the_caller_is_trimmed(case: Case, data: bytes) -> None:
    async def check() -> None:
        width = 1 << case.shift
        leaves = await case.leaves(data, list(range(-(-len(data) // width))))
        for size in {0, 1, len(data) // 2, len(data)}:
            if size <= len(data):
                ref = await case.patch(ContentRef(size=0), leaves, size)
                assert ref == await case.write([data[:size]])

    run(check)


@given(case=cases, data=contents, limit=st.integers(1, 7))
def test_a_walk_names_what_the_tree_needs(case: Case, data: bytes, limit: int) -> None:
    """Exactly: with the walked blocks everything is readable, without any of them it is not."""

    async def check() -> None:
        ref = await case.write([data])
        walked = await case.digests(ref, limit)
        assert walked == await case.digests(ref, 10_000)
        store = MemoryStore()
        for digest in set(walked):
            await store.put(digest, await case.storage.get(digest))
        copy = Case(case.shift, case.fanout, LocalStorage(RealWorld(), store))
        assert bytes(await copy.reader(ref).read(0, len(data))) == data
        leaves = {
            bytes(await case.storage.get(digest))
            for digest in walked
            if not bytes(await case.storage.get(digest)).startswith(b"dfsT")
        }
        width = 1 << case.shift
        cut = (data[at : at + width].rstrip(b"\0") for at in range(0, len(data), width))
        assert leaves == {leaf for leaf in cut if leaf}

    run(check)


sparse = st.dictionaries(
    st.integers(0, ((1 << 62) >> 12) - 1), st.binary(min_size=1, max_size=9), max_size=6
)


@settings(max_examples=50)
@given(pieces=sparse, more=sparse, extra=st.integers(0, 1 << 62))
def test_huge_sparse_files(pieces: dict[int, bytes], more: dict[int, bytes], extra: int) -> None:
    """Sizes near the largest there can be cost a path for each piece, not a list."""

    async def check() -> None:
        case = Case(12, 256)
        size = min(max([extra, *((i + 1) << 12 for i in pieces | more)]), 1 << 62)
        first = {i: await put_leaf(case.upload, data) for i, data in pieces.items()}
        second = {i: await put_leaf(case.upload, data) for i, data in more.items()}
        base = await case.patch(ContentRef(size=0), first, size)
        ref = await case.patch(base, second, size)
        assert ref == await case.patch(ContentRef(size=0), first | second, size)
        reader = case.reader(ref)
        for index, data in (pieces | more).items():
            kept = data.rstrip(b"\0")
            found: Buffer = await reader.read(index << 12, len(data))
            assert bytes(found)[: len(kept)] == kept
        stored = sorted(i for i, d in (pieces | more).items() if d.rstrip(b"\0"))
        assert len(await case.digests(ref, 3)) <= len(stored) * 8

    run(check)
