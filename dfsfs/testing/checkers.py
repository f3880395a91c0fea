"""What must be true of a network: pure questions to its nodes and its history.

Each returns sentences about what is wrong, so an empty list is good. They are the oracle of the
simulation; those about trees and copies need a network at rest, see `Simulation.converge`.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from dfsfs.base.errors import DfsError
from dfsfs.base.types import ContentRef, Digest, FileKind, digest_text
from dfsfs.cluster.placement import replica_set
from dfsfs.content import ContentReader
from dfsfs.testing.history import Call, History, shown_files, walk
from dfsfs.testing.simnode import READ_BYTES, SimNode

REMOVING = ("unlink", "rename", "rmdir")
PAGE = 512


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


def missing_copies(nodes: Sequence[SimNode]) -> list[str]:
    """Blocks that a node which should have them, and runs, has not (promise 10)."""
    running = {node.identity.node_id: node for node in nodes}
    digests = {digest for node in nodes for digest in _stored(node)}
    problems = []
    for digest in sorted(digests):
        candidates = nodes[0].node.members.candidates
        problems += [
            f"{digest_text(digest)[:20]} is not on {running[home].name}"
            for home in replica_set(digest, candidates, nodes[0].config.replicas)
            if home in running and not running[home].node.store.has(digest)
        ]
    return problems


def _stored(node: SimNode) -> Iterator[Digest]:
    after: Digest | None = None
    while page := node.node.store.page(after, PAGE):
        yield from page
        after = page[-1]


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
    if history.lost_its_name(call):
        return ""
    if not commits:
        return "it was never committed"
    if call.written not in commits and not history.has_rival(call):
        return "other bytes were committed"
    if commits[-1] not in shown and commits[-1] not in history.replaced:
        return "what it committed is gone"
    return ""


def stale_reads(history: History) -> list[str]:
    """Reads that missed a write closed before on a connected mount (promises 4 and 6)."""
    problems = []
    writes = list(history.acknowledged("write", "create"))
    removals = [call for call in history.calls if call.verb in REMOVING]
    for read in history.calls:
        if read.verb != "read" or read.end is None:
            continue
        for write in writes:
            if write.path == read.path and _must_see(read, write):
                why = _stale(history, read, write, removals)
                if why:
                    problems.append(
                        f"{read.node} read {read.path} at {read.start_s:.3f} s: {why} what"
                        f" {write.node} had closed at {write.end_s:.3f} s ({write.number})"
                    )
    return problems


def _must_see(read: Call, write: Call) -> bool:
    if not write.took_place_before(read):
        return False
    if write.node == read.node:
        return True
    epoch = write.epochs.get(read.node)
    return epoch is not None and epoch == read.epochs.get(write.node)


def _stale(history: History, read: Call, write: Call, removals: Sequence[Call]) -> str:
    assert write.written is not None
    if read.read is not None:
        older = write.written in history.successors(read.read)
        return "older than" if older and read.read not in history.successors(write.written) else ""
    if read.error != "NotFound":
        return ""
    for removal in removals:  # any of them may have moved it, or a directory above it
        if not read.took_place_before(removal) and not removal.took_place_before(write):
            return ""
    return "nothing, not"


def slow_calls(history: History, longest_s: float) -> list[str]:
    """Calls that took longer than anything may (promise 16)."""
    return [
        f"{call.node} {call.verb} {call.path} took {call.end_s - call.start_s:.1f} s"
        for call in history.calls
        if call.end is not None and call.end_s - call.start_s > longest_s
    ]


def shared_exclusive_creates(history: History) -> list[str]:
    """Names that two connected mounts both created with O_EXCL at one time (promise 5)."""
    creates = list(history.acknowledged("create"))
    return [
        f"{one.node} and {other.node} both created {one.path} at {other.start_s:.3f} s"
        for one, other in combinations(creates, 2)
        if one.path == other.path
        and one.node != other.node
        and not one.took_place_before(other)
        and _connected_throughout(one, other)
    ]


def _connected_throughout(one: Call, other: Call) -> bool:
    """Whether the mounts of two calls were connected from the first's begin to the second's end."""
    epochs = {call.get(node) for call, node in (
        (one.epochs, other.node), (one.end_epochs, other.node),
        (other.epochs, one.node), (other.end_epochs, one.node),
    )}  # fmt: skip
    return len(epochs) == 1 and None not in epochs
