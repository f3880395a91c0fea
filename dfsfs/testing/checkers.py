"""What must be true of a network: pure questions to its nodes and its history.

Each returns sentences about what is wrong, so an empty list is good. They are the oracle of the
simulation; those about trees need a network at rest, see `Simulation.converge`. Where blocks are is
judged in `dfsfs/testing/copies.py`.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise

from dfsfs.base.errors import DfsError, NotFound
from dfsfs.base.types import EMPTY_CONTENT, ROOT_INODE, ContentRef, FileKind, InodeId
from dfsfs.content import ContentReader
from dfsfs.namespace import CONFLICT_MARK, Namespace
from dfsfs.testing.history import Call, History, shown_files, walk
from dfsfs.testing.simnode import READ_BYTES, SimNode

REMOVING = ("unlink", "rename", "rmdir")
TAKING = {"unlink": 0, "rmdir": 0, "rename": 0}
"""Verbs that end a name, and which of their paths that is."""
MAKING = {"create": 0, "write": 0, "append": 0, "mkdir": 0, "link": 1, "rename": 1}
"""Verbs that may begin a name, and which of their paths that is."""
EXCLUSIVE = ("create", "mkdir", "link")
"""Those of them that fail if there is such a name."""


# -- at rest --------------------------------------------------------------------------------------


def different_rows(nodes: Sequence[SimNode]) -> list[str]:
    """Nodes that hold rows others have not got."""
    return [
        f"{one.name} and {other.name} hold different rows"
        for one, other in pairwise(nodes)
        if one.node.namespace.have() != other.node.namespace.have()
    ]


def different_trees(nodes: Sequence[SimNode]) -> list[str]:
    """Nodes that show another tree (promise 13)."""
    problems = []
    for one, other in pairwise(nodes):
        mine, theirs = one.tree(), other.tree()
        problems += [
            f"{path}: {one.name} shows {mine.get(path)}, {other.name} {theirs.get(path)}"
            for path in sorted(mine.keys() | theirs.keys())
            if mine.get(path) != theirs.get(path)
        ]
    return problems


def broken_trees(nodes: Sequence[SimNode]) -> list[str]:
    """Trees that are not valid, or do not follow from their rows."""
    return [f"{node.name}: {problem}" for node in nodes for problem in node.node.namespace.check()]


async def unreadable(nodes: Sequence[SimNode]) -> list[str]:
    """Files that a node shows and cannot read, wherever their blocks are."""
    problems = []
    for node in nodes:
        for path, inode in list(walk(node.node.namespace)):
            if inode.kind is not FileKind.REGULAR:
                continue
            reader = ContentReader(node.node.cluster.storage, inode.content)
            size = 0
            try:
                while piece := await reader.read(size, READ_BYTES):
                    size += len(piece)
            except DfsError as error:
                problems.append(f"{node.name} cannot read {path!r}: {error}")
                continue
            if size != inode.size:
                problems.append(f"{node.name}: {path!r} has {size} bytes, not {inode.size}")
    return problems


# -- over a history -------------------------------------------------------------------------------


def lost_writes(history: History, nodes: Sequence[SimNode]) -> list[str]:
    """Closed writes that nobody shows, and that nobody who had seen them replaced (promise 13).

    A file whose last name went while it was being written takes its bytes with it, as in POSIX; two
    programs that write one file at one time may mix their bytes, as in POSIX.
    """
    shown = {content for node in nodes for content in shown_files(node.node.namespace).values()}
    problems = []
    for call in history.acknowledged("write", "create"):
        why = _lost(history, call, shown)
        if why:
            problems.append(
                f"{call.node} {call.verb} {call.path} at {call.start_s:.3f} s"
                f" ({call.number}): {why}"
            )
    return problems


def _lost(history: History, call: Call, shown: set[ContentRef]) -> str:
    assert call.written is not None
    if not call.written.size:
        return ""
    commits = history.committed(call)
    if call.written in shown or call.written in history.replaced:
        return ""
    if history.lost_its_name(call) or _may_be_lost(history, call):
        return ""
    if not commits:
        return "it was never committed"
    if call.written not in commits and not history.has_rival(call):
        return "other bytes were committed"
    if commits[-1] not in shown and commits[-1] not in history.replaced:
        return "what it committed is gone"
    return ""


def _may_be_lost(history: History, call: Call) -> bool:
    return history.lost_with_its_node(call) or history.powerless({call.node} | call.company, call)


def older_than_synced(history: History, nodes: Sequence[SimNode]) -> list[str]:
    """Fsynced versions of which a power cut of all nodes left neither them nor what replaced them.

    What replaced one may have been lost, if it was not fsynced itself; then the one that was must
    be there (promise 11).
    """
    shown = {content for node in nodes for content in shown_files(node.node.namespace).values()}
    return [
        f"{call.node} {call.path} fsynced at {call.end_s:.3f} s ({call.number}) is lost"
        for call in history.acknowledged("write")
        if call.synced and call.written in history.replaced
        if not ({call.written} | history.successors(call.written)) & {*shown, None, EMPTY_CONTENT}
    ]


def stale_reads(history: History) -> list[str]:
    """Reads that missed a write closed before on a connected mount (promises 4 and 6)."""
    problems = []
    writes = list(history.acknowledged("write", "create"))
    removals = [call for call in history.calls if call.verb in REMOVING]
    for read in history.calls:
        if read.verb != "read" or read.end is None:
            continue
        for write in writes:
            if write.path == read.path and _must_see(history, read, write):
                why = _stale(history, read, write, removals)
                if why:
                    problems.append(
                        f"{read.node} read {read.path} at {read.start_s:.3f} s: {why} what"
                        f" {write.node} had closed at {write.end_s:.3f} s ({write.number})"
                    )
    return problems


def _must_see(history: History, read: Call, write: Call) -> bool:
    if write.node == read.node:
        # After a power cut it may have lost it, until it is connected with somebody who has not.
        holders = {read.node} | (write.company & read.epochs.keys())
        if history.powerless(holders, write, read.start):
            return False
    return _was_known(write, read)


def _was_known(earlier: Call, later: Call) -> bool:
    """Whether the node of a call knew what an earlier one had done (promise 4)."""
    if not earlier.took_place_before(later):
        return False
    epoch = earlier.epochs.get(later.node)
    return earlier.node == later.node or (
        epoch is not None and epoch == later.epochs.get(earlier.node)
    )


def _stale(history: History, read: Call, write: Call, removals: Sequence[Call]) -> str:
    assert write.written is not None
    if read.read is not None:
        older = write.written in history.successors(read.read)
        return "older than" if older and read.read not in history.successors(write.written) else ""
    if read.error != "NotFound":
        return ""
    # Any of them may have moved it, or a directory above it; also one made before, that came later
    # from a node that was not connected.
    for removal in removals:
        if not read.took_place_before(removal) and not _was_known(removal, write):
            return ""
    return "nothing, not"


def slow_calls(history: History, longest_s: float) -> list[str]:
    """Calls that took longer than anything may (promise 16)."""
    return [
        f"{call.node} {call.verb} {call.path} took {call.end_s - call.start_s:.1f} s"
        for call in history.calls
        if call.end is not None and call.end_s - call.start_s > longest_s
    ]


def shared_wins(history: History) -> list[str]:
    """Names that two connected mounts both made, or both took away, at one time (promise 5).

    Unless in the meantime somebody did the opposite, or their company changed.
    """
    done = [call for call in history.calls if call.verb in TAKING or call.verb in MAKING]
    return [
        f"{one.node} {one.verb} and {other.node} {other.verb}: both won {path} at"
        f" {other.start_s:.3f} s"
        for verbs, opposite in ((_exclusive(), TAKING), (TAKING, MAKING))
        for path, one, other in _rivals(done, verbs)
        if _same_company(one, other)
        and not any(_may_undo(call, opposite, path, one, other) for call in done)
    ]


def _exclusive() -> dict[str, int]:
    return {verb: MAKING[verb] for verb in EXCLUSIVE}


def _rivals(calls: Sequence[Call], verbs: dict[str, int]) -> list[tuple[str, Call, Call]]:
    """Calls on different nodes that had overlapped and both succeeded on one path."""
    linked = any(call.verb == "link" and call.acknowledged for call in calls)
    won = [
        call
        for call in calls
        if call.verb in verbs and call.acknowledged and not _may_do_nothing(call, linked)
    ]
    by_path: dict[str, list[Call]] = {}
    for call in won:
        by_path.setdefault(_path(call, verbs), []).append(call)
    return [
        (path, one, other)
        for path, rivals in by_path.items()
        for one, other in combinations(rivals, 2)
        if one.node != other.node and not one.took_place_before(other)
    ]


def _may_do_nothing(call: Call, linked: bool) -> bool:
    """Whether it may have been a rename of a file to another name of itself, which changes nothing.

    `linked`: there are files of several names.
    """
    return call.verb == "rename" and (linked or _path(call, TAKING) == _path(call, MAKING))


def _path(call: Call, verbs: dict[str, int]) -> str:
    """The path a call is about; those of two have a space between."""
    first, _, second = call.path.partition(" /")
    return f"/{second}" if verbs[call.verb] else first


def _same_company(one: Call, other: Call) -> bool:
    """Whether two mounts were connected all the time, and nobody came or went meanwhile."""
    return (
        other.node in one.epochs
        and one.epochs.get(other.node) == other.end_epochs.get(one.node)
        and one.epochs == one.end_epochs
        and other.epochs == other.end_epochs
    )


def _may_undo(call: Call, verbs: dict[str, int], path: str, one: Call, other: Call) -> bool:
    """Whether a call may have undone what one of two did to the path before the other did it."""
    if call in (one, other) or call.verb not in verbs:
        return False
    if not any(
        not call.took_place_before(first) and not last.took_place_before(call)
        for first, last in ((one, other), (other, one))
    ):
        return False
    # A directory above it may have been moved as well.
    return call.verb == "rename" or _path(call, verbs) == path


def wrong_conflicts(history: History, nodes: Sequence[SimNode]) -> list[str]:
    """Where what `dfs conflicts` lists is not what happened.

    It lists every name that says so and no other, the two versions are two, and there are none if
    all were connected all the time.
    """
    problems: list[str] = []
    for node in nodes:
        namespace = node.node.namespace
        listed = {(c.directory, c.name): c for c in namespace.conflicts(None, 1 << 20)}
        shown = {
            (directory, name)
            for directory in _directories(node)
            for name, _, _ in namespace.names(directory)
            if CONFLICT_MARK in name
        }
        problems += [
            f"{node.name} lists {name!r} as a conflict, and does not show it"
            for _, name in sorted(listed.keys() - shown)
        ]
        problems += [
            f"{node.name} shows {name!r}, and does not list it as a conflict"
            for _, name in sorted(shown - listed.keys())
        ]
    for (directory, name), conflict in listed.items():  # the same on all nodes, as trees are
        copy, original = _shown(namespace, directory, name), conflict.original
        other = _shown(namespace, directory, original)
        if copy is not None and other == copy:
            problems.append(f"{name!r} and {original!r} are the same")
        if not history.separations:
            problems.append(f"{name!r} is a conflict, though nobody was ever apart")
    return problems


def _shown(namespace: Namespace, directory: InodeId, name: bytes) -> ContentRef | None:
    """The content of a file that has some."""
    try:
        inode = namespace.lookup(directory, name)
    except NotFound:
        return None
    return inode.content if inode.kind is FileKind.REGULAR and inode.size else None


def _directories(node: SimNode) -> list[InodeId]:
    namespace = node.node.namespace
    return [ROOT_INODE, *(i.inode for _, i in walk(namespace) if i.kind is FileKind.DIRECTORY)]
