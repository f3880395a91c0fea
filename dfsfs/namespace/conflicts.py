"""What is shown when several things were done apart: the deterministic outcomes.

Who keeps a contested name, which contents of a file are siblings, what a conflict copy is called
and numbered. All of it is a function of rows alone, so every replica decides alike.
Pure: no SQL, no clock. The only text that does not come from rows is the writer's node name.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from dfsfs.base.codec import encode
from dfsfs.base.limits import NAME_BYTES_MAX
from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind, InodeId, LinkId, Origin, Stamp
from dfsfs.base.units import US_PER_S

CONFLICT_MARK = b" (conflict from "
_WRITER_BYTES_MAX = 64
_DATE_BYTES = 32  # ", 2026-11-22 10-15-03 99999)" and room
_EXTENSION_BYTES_MAX = 32  # a longer "extension" is part of the name
_YEAR_US_MAX = 253_402_300_799 * US_PER_S  # the end of year 9999, as far as datetime goes


class Slot(NamedTuple):
    """One writer's content of a file."""

    stamp: Stamp
    content: ContentRef
    mtime_ns: int
    vector: Mapping[Origin, int]
    dot: Stamp


class Candidate(NamedTuple):
    """A live link that claims a name."""

    link: LinkId
    inode: InodeId
    stamp: Stamp
    kind: int
    merge_class: int  # directories
    birth: Stamp  # directories
    same: object  # files: equal for two that show the same thing; None: equal to nothing


class Shown(NamedTuple):
    """One thing shown for a contested name; the first one keeps it."""

    link: LinkId  # of a merged directory: its representative
    inode: InodeId
    kind: int
    stamp: Stamp
    members: tuple[LinkId, ...]  # a merged directory: all of them; else the link alone
    hidden: tuple[LinkId, ...]  # files not shown, because they are the same


def resolve(candidates: Sequence[Candidate]) -> list[Shown]:
    """Who is shown under a name, and who beside it.

    Directories come before files, later links before earlier ones. Directories of one merge class
    are one, represented by the one made first; of files that are the same the latest is shown.
    """
    groups: dict[tuple[str, int], list[Candidate]] = {}
    files = []
    for candidate in candidates:
        if candidate.kind == FileKind.DIRECTORY:
            mergeable = candidate.merge_class != 0
            key = ("class", candidate.merge_class) if mergeable else ("alone", candidate.link)
            groups.setdefault(key, []).append(candidate)
        else:
            files.append(candidate)
    merged = sorted(groups.values(), key=lambda group: max(map(_latest, group)), reverse=True)
    return [_directory(group) for group in merged] + _files(files)


def _latest(candidate: Candidate) -> tuple[Stamp, LinkId]:
    return (candidate.stamp, candidate.link)


def _directory(group: list[Candidate]) -> Shown:
    first = min(group, key=lambda candidate: (candidate.birth, candidate.link))
    members = tuple(sorted(candidate.link for candidate in group))
    stamp = max(candidate.stamp for candidate in group)
    return Shown(first.link, first.inode, first.kind, stamp, members, ())


def _files(candidates: list[Candidate]) -> list[Shown]:
    kept: list[Candidate] = []
    hidden: list[list[LinkId]] = []
    by_inode: dict[InodeId, int] = {}
    by_sameness: dict[object, int] = {}
    for candidate in sorted(candidates, key=_latest, reverse=True):
        at = by_inode.get(candidate.inode)
        if at is None and candidate.same is not None:
            at = by_sameness.get(candidate.same)
        if at is not None:
            hidden[at].append(candidate.link)
            continue
        by_inode[candidate.inode] = len(kept)
        if candidate.same is not None:
            by_sameness[candidate.same] = len(kept)
        kept.append(candidate)
        hidden.append([])
    return [
        Shown(file.link, file.inode, file.kind, file.stamp, (file.link,), tuple(duplicates))
        for file, duplicates in zip(kept, hidden, strict=True)
    ]


def siblings(slots: Mapping[Origin, Slot]) -> list[Slot]:
    """Contents that no other content has replaced, the one to show first.

    They are ordered by when they were first written: writing one again, as pins do, does not make
    it win.
    """
    found = [
        slot
        for writer, slot in slots.items()
        if not any(
            other.vector.get(writer, 0) >= slot.stamp.time
            for other_writer, other in slots.items()
            if other_writer != writer
        )
    ]
    found.sort(key=lambda slot: (slot.dot, slot.stamp), reverse=True)
    return found


def distinct(found: Iterable[Slot]) -> list[Slot]:
    """The siblings without those that equal an earlier one."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for slot in found:
        key = sameness(slot.content)
        if key not in seen:
            seen.add(key)
            kept.append(slot)
    return kept


def sameness(content: ContentRef) -> tuple[object, ...]:
    """Equal for equal contents. What a tree's leaves store follows from its root."""
    return (content.size, content.root, content.inline)


def copy_inode(inode: InodeId, dot: Stamp) -> InodeId:
    """The inode number of the conflict copy that shows content `dot` of `inode`."""
    digest = hashlib.blake2b(encode([inode, dot.time, dot.origin]), digest_size=8).digest()
    return InodeId((int.from_bytes(digest, "big") >> 1) | (ROOT_INODE + 1))


def break_cycles(
    parents: Mapping[InodeId, tuple[InodeId, Stamp, InodeId]],
) -> dict[InodeId, InodeId]:
    """Where the directories go whose link rows, taken together, make cycles.

    `parents` gives of every directory its parent, the stamp of that row and the parent before. In
    each cycle the directory moved last goes back to where it came from, if that hangs from the root
    without help, else to the root.
    """
    rooted: dict[InodeId, bool] = {ROOT_INODE: True}
    cycles = []
    for start in parents:
        path: list[InodeId] = []
        at: dict[InodeId, int] = {}
        directory = start
        while directory in parents and directory not in rooted and directory not in at:
            at[directory] = len(path)
            path.append(directory)
            directory = parents[directory][0]
        if directory in at:
            cycles.append(path[at[directory] :])
        end = rooted.get(directory, False)
        for passed in path:
            rooted[passed] = end
    broken = {}
    for cycle in cycles:
        last = max(cycle, key=lambda directory: (parents[directory][1], directory))
        previous = parents[last][2]
        broken[last] = previous if rooted.get(previous, False) else ROOT_INODE
    return broken


def conflict_names(name: bytes, stamp: Stamp, writer: str) -> Iterator[bytes]:
    """Names for a conflict copy of `name`, the nicest first: `a (conflict from N, DATE).txt`."""
    seconds = min(stamp.time, _YEAR_US_MAX) // US_PER_S
    date = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H-%M-%S").encode()
    source = _cut(writer.replace("/", "_").replace("\0", "_").encode(), _WRITER_BYTES_MAX)
    stem, dot, extension = name.rpartition(b".")
    if not stem or len(extension) > _EXTENSION_BYTES_MAX:
        stem, dot, extension = name, b"", b""
    room = NAME_BYTES_MAX - len(CONFLICT_MARK) - len(source) - _DATE_BYTES - len(dot + extension)
    front = _cut(stem, room) + CONFLICT_MARK + source + b", " + date
    back = b")" + dot + extension
    yield front + back
    number = 2
    while True:
        yield front + b" %d" % number + back
        number += 1


def _cut(text: bytes, length: int) -> bytes:
    """At most `length` bytes, without leaving half of a UTF-8 character at the end."""
    if len(text) <= length:
        return text
    for back in range(min(4, length)):  # a character has at most four bytes
        if text[length - back] & 0xC0 != 0x80:
            return text[: length - back]
    return text[:length]


class Nameless(NamedTuple):
    """A thing shown in a directory that needs a conflict name."""

    is_copy: bool
    stamp: Stamp
    link: LinkId  # of a copy: its inode
    inode: InodeId
    name: bytes  # the one it claims


def assign_names(
    claims: Iterable[Nameless],
    is_taken: Callable[[bytes], bool],
    node_name: Callable[[Origin], str],
) -> dict[bytes, Nameless]:
    """Name everything in a directory that cannot have its own name, around those that are taken."""
    assigned: dict[bytes, Nameless] = {}
    for claim in sorted(claims):
        for name in conflict_names(claim.name, claim.stamp, node_name(claim.stamp.origin)):
            if name not in assigned and not is_taken(name):
                assigned[name] = claim
                break
    return assigned
