"""What was asked of the nodes of a simulation, what they answered, and what they showed meanwhile.

`Call` is one file operation of a program on one node: when it began, when it returned, and with
what. `Observer` watches one node's tree at every commit, and learns from it which content replaced
or removed which, where somebody saw it. The checkers judge a run by these two alone: they know
neither rows nor stamps, so they do not share the mistakes of what they judge.

What a program writes in one piece is a *unit* and begins with a label of its own. So the bytes of
every read can be judged: they are whole units, one after the other.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import trio

from dfsfs.base.types import EMPTY_CONTENT, ROOT_INODE, ContentRef, FileKind, InodeId
from dfsfs.namespace import Change, Inode, Namespace

WRITING = ("write", "create", "append")
LABEL_BYTES_MAX = 64

Tree = dict[str, str]
"""What a directory tree shows: path -> kind, and what is in it."""


@dataclass(slots=True)
class Call:
    """One operation. `end` None: it never returned, because its node crashed.

    `start` and `end` count the events of the history: many happen at one instant of simulated time.
    """

    node: str
    verb: str
    path: str
    number: int = 0
    start: int = 0
    start_s: float = 0.0
    end: int | None = None
    end_s: float = 0.0
    synced: bool = False  # its program calls fsync before close
    inode: InodeId | None = None  # of the file it opened
    written: ContentRef | None = None  # what `write` wrote
    read: ContentRef | None = None  # what `read` returned
    error: str = ""  # the class of the error it raised
    epochs: dict[str, int] = field(default_factory=dict)  # connected nodes: see Simulation.epochs
    end_epochs: dict[str, int] = field(default_factory=dict)  # the same when it returned

    @property
    def acknowledged(self) -> bool:
        """Whether the caller was told that it is done."""
        return self.end is not None and not self.error

    def took_place_before(self, other: "Call") -> bool:
        """Whether this one had ended when the other began."""
        return self.end is not None and self.end < other.start

    @property
    def company(self) -> set[str]:
        """The nodes that were connected all the time, to share what was written with."""
        return {node for node, epoch in self.epochs.items() if self.end_epochs.get(node) == epoch}


class History:
    """All calls of a simulation, in the order in which they began, and what replaced what."""

    def __init__(self) -> None:
        self._events = itertools.count(1)
        self.calls: list[Call] = []
        self.replaced: dict[ContentRef, set[ContentRef | None]] = {}
        """A content some node showed, and what a call there put into its place (None: nothing)."""
        self.nameless: dict[tuple[str, InodeId], list[int]] = {}
        """When a file's last name went, as a node saw it."""
        self.commits: dict[tuple[str, InodeId], list[tuple[int, ContentRef]]] = {}
        """What each node's own calls made of a file, and when."""
        self.broken: list[str] = []  # what was found wrong at once
        self.separations = 0  # how often two nodes lost each other
        self.lost_states: list[tuple[str, int]] = []
        """A node whose state was lost, or went back in time, and when."""
        self._units: dict[bytes, tuple[int, bytes]] = {}
        self._files: dict[InodeId, list[Call]] = defaultdict(list)  # calls that opened to write
        self.power_cuts: list[tuple[int, frozenset[str]]] = []
        """When machines lost power, and the nodes on them."""
        self._returned: list[Call] = []
        self._returns = trio.lowlevel.ParkingLot()  # of those who wait for a call to return

    def event(self) -> int:
        """The number of something that happens now."""
        return next(self._events)

    def power_cut(self, nodes: Iterable[str]) -> None:
        """Note that the machines of these nodes lose power now."""
        self.power_cuts.append((self.event(), frozenset(nodes)))
        self.separations += 1

    def begin(self, call: Call) -> Call:
        """Note a call that begins now."""
        call.number, call.start, call.start_s = len(self.calls), self.event(), trio.current_time()
        self.calls.append(call)
        return call

    def end(self, call: Call, error: str = "") -> None:
        """Note that a call returns now."""
        call.end, call.end_s, call.error = self.event(), trio.current_time(), error
        self._returned.append(call)
        self._returns.unpark_all()

    async def write_returned(self, node: str) -> None:
        """Wait until a write on a node is acknowledged, and no moment longer."""
        seen = len(self._returned)
        while not any(
            call.node == node and call.verb in WRITING and call.acknowledged
            for call in self._returned[seen:]
        ):
            await self._returns.park()

    def acknowledged(self, *verbs: str) -> Iterator[Call]:
        """Calls of these verbs that returned without an error."""
        return (call for call in self.calls if call.verb in verbs and call.acknowledged)

    def lost_its_name(self, call: Call) -> bool:
        """Whether the file went away, on the caller's own node, during the call."""
        assert call.end is not None
        if call.inode is None:
            return False
        events = self.nameless.get((call.node, call.inode), ())
        return any(call.start < event < call.end for event in events)

    def committed(self, call: Call) -> list[ContentRef]:
        """What the file became, by calls on the same node, while this call was under way."""
        assert call.end is not None
        if call.inode is None:
            return []
        commits = self.commits.get((call.node, call.inode), ())
        return [content for event, content in commits if call.start < event < call.end]

    def opens(self, call: Call, inode: InodeId) -> None:
        """Note that a call has opened a file."""
        call.inode = inode
        if call.verb in WRITING:
            self._files[inode].append(call)

    def has_rival(self, call: Call) -> bool:
        """Whether another call wrote the same file at the same time."""
        return call.inode is not None and any(
            other is not call
            and not other.took_place_before(call)
            and not call.took_place_before(other)
            for other in self._files[call.inode]
        )

    def lost_with_its_node(self, call: Call) -> bool:
        """Whether the only node that was sure to have what a call wrote has lost it."""
        assert call.end is not None
        return not call.company and any(
            node == call.node and call.end < event for node, event in self.lost_states
        )

    def powerless(self, nodes: Iterable[str], after: Call, before: int | None = None) -> bool:
        """Whether power was cut of all these nodes at once after a call, and before an event.

        Then they may have lost what it wrote, unless that was fsynced (promise 11).
        """
        assert after.end is not None
        return not after.synced and any(
            after.end < event and (before is None or event < before) and cut.issuperset(nodes)
            for event, cut in self.power_cuts
        )

    # -- bytes --------------------------------------------------------------------------------

    def unit(self, label: bytes, data: bytes) -> bytes:
        """Note that `label` and `data` will be written in one piece; returns that piece."""
        piece = label + data
        self._units[label] = (len(piece), hashlib.blake2b(piece).digest())
        return piece

    def was_read(self, call: Call, data: bytes) -> None:
        """Judge what a call has read (promises 6 and 15)."""
        if not self._units or self._is_whole(data):
            return
        # Two programs that write one file at one time may mix their bytes, as in POSIX; a conflict
        # copy of such a file has them as well.
        if not any(self.has_rival(other) for calls in self._files.values() for other in calls):
            self.broken.append(f"{call.node} read bytes from {call.path} that nobody wrote so")

    def _is_whole(self, data: bytes) -> bool:
        start = 0
        while start < len(data):
            end = data.find(b"\n", start, start + LABEL_BYTES_MAX) + 1
            size, digest = self._units.get(data[start:end], (0, b""))
            if hashlib.blake2b(data[start : start + size]).digest() != digest:
                return False
            start += size
        return True

    def successors(self, content: ContentRef) -> set[ContentRef | None]:
        """Everything that came to stand where `content` stood, over any number of steps."""
        found: set[ContentRef | None] = set()
        waiting = [content]
        while waiting:
            for after in self.replaced.get(waiting.pop(), ()):
                if after not in found:
                    found.add(after)
                    if after is not None:
                        waiting.append(after)
        return found


class Observer:
    """Compares what one node shows before and after each of its commits."""

    def __init__(self, name: str, namespace: Namespace, history: History) -> None:
        self._name = name
        self._namespace = namespace
        self._history = history
        self._shown = shown_files(namespace)
        namespace.subscribe(self._changed)

    def _changed(self, change: Change) -> None:
        before, self._shown = self._shown, shown_files(self._namespace)
        history, event = self._history, self._history.event()
        for inode in before.keys() - self._shown.keys():
            history.nameless.setdefault((self._name, inode), []).append(event)
        if not change.local:
            return
        for inode, content in self._shown.items():
            if before.get(inode) != content:
                commits = history.commits.setdefault((self._name, inode), [])
                commits.append((event, content))
        gone = set(before.values()) - set(self._shown.values()) - {EMPTY_CONTENT}
        if len(gone) > 1:
            history.broken.append(f"{self._name}: one call took away {len(gone)} contents")
        for inode, content in before.items():
            if content in gone:
                history.replaced.setdefault(content, set()).add(self._shown.get(inode))


def shown_files(namespace: Namespace) -> dict[InodeId, ContentRef]:
    """The content of every regular file that has a name."""
    return {
        inode.inode: inode.content for _, inode in walk(namespace) if inode.kind is FileKind.REGULAR
    }


def walk(namespace: Namespace) -> Iterator[tuple[bytes, Inode]]:
    """Every path below the root and what it is; parents first, names in order."""
    waiting = [(b"", ROOT_INODE)]
    while waiting:
        path, directory = waiting.pop()
        for name, inode, kind in namespace.names(directory):
            below = path + b"/" + name
            yield below, namespace.get(inode)
            if kind is FileKind.DIRECTORY:
                waiting.append((below, inode))


def tree_of(namespace: Namespace) -> Tree:
    """Everything a user sees of the tree but times: equal on two nodes that agree."""
    return {path.decode(errors="surrogateescape"): _told(inode) for path, inode in walk(namespace)}


def _told(inode: Inode) -> str:
    told = f"{inode.kind.name.lower()} {inode.inode:x} {inode.mode:o} nlink {inode.nlink}"
    if inode.kind is FileKind.REGULAR:
        content = inode.content
        data = (content.inline or b"")[-24:] + (content.root or b"")
        return f"{told} {content.size} bytes {data[:48].hex()}"
    return f"{told} {inode.target!r}" if inode.kind is FileKind.SYMLINK else told
