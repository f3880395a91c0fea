"""The reference model of the namespace: the tree as a pure function of the rows, all at once.

The oracle of the property tests. It is written to be read, next to doc/decisions/0004, and shares
with the product only the row types and the pure arithmetic of names (conflict_names, copy_inode):
not the rules. It recomputes everything from scratch and so cannot forget anything.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dfsfs.base.types import EMPTY_CONTENT, ROOT_INODE, ContentRef, FileKind, Origin, Stamp
from dfsfs.namespace.conflicts import conflict_names, copy_inode
from dfsfs.namespace.rows import (
    AttributeRow,
    ContentRow,
    Field,
    LinkRow,
    NodeRow,
    Row,
    TombstoneRow,
    TouchRow,
    key,
    order,
    unpack_owner,
)

DIRECTORY, REGULAR = FileKind.DIRECTORY, FileKind.REGULAR


def join_all(rows: Iterable[Row]) -> dict[object, Row]:
    """The greatest row of each key."""
    kept: dict[object, Row] = {}
    for row in rows:
        at = key(row)
        if at not in kept or order(row) > order(kept[at]):
            kept[at] = row
    return kept


@dataclass
class Entry:
    """One thing shown in a directory."""

    inode: int
    kind: int
    link: int
    stamp: Stamp
    plain: bytes  # the name it claims
    content: ContentRef = EMPTY_CONTENT
    members: list[int] = field(default_factory=list)  # of a directory
    is_copy: bool = False


class View:
    """The tree of a set of rows."""

    def __init__(self, rows: Iterable[Row], node_name: Callable[[Origin], str]) -> None:
        self.node_name = node_name
        self.nodes: dict[int, NodeRow] = {}
        self.links: dict[int, LinkRow] = {}
        self.tombstones: dict[int, TombstoneRow] = {}
        self.contents: dict[int, dict[int, ContentRow]] = defaultdict(dict)
        self.attributes: dict[int, dict[int | bytes, AttributeRow]] = defaultdict(dict)
        self.touches: dict[int, TouchRow] = {}
        for row in join_all(rows).values():
            match row:
                case NodeRow():
                    self.nodes[row.inode] = row
                case LinkRow():
                    self.links[row.link] = row
                case TombstoneRow():
                    self.tombstones[row.link] = row
                case ContentRow():
                    self.contents[row.inode][row.stamp.origin] = row
                case AttributeRow():
                    self.attributes[row.inode][row.field] = row
                case TouchRow():
                    self.touches[row.inode] = row
        # A link whose inode is not here yet is not there.
        self.links = {at: row for at, row in self.links.items() if row.inode in self.nodes}
        self.of_inode: dict[int, list[int]] = defaultdict(list)
        for at, row in self.links.items():
            self.of_inode[row.inode].append(at)
        self.siblings = {inode: self._siblings(inode) for inode in self.contents}
        self.live: set[int] = set()  # links
        self.broken: dict[int, int] = {}
        self.parent: dict[int, int] = {}  # effective, of directories
        self._find_live_files()
        self._cut_cycles()
        self._find_live_directories()
        self.directories: dict[int, dict[bytes, Entry]] = {}
        self.representative: dict[int, int] = {}
        self.nlink: dict[int, int] = defaultdict(int)
        self._show_everything()

    def is_directory(self, inode: int) -> bool:
        return inode == ROOT_INODE or (inode in self.nodes and self.nodes[inode].kind == DIRECTORY)

    # -- rule 1, 2: files ----------------------------------------------------------------------

    def explicit(self, link: int) -> bool:
        tombstone = self.tombstones.get(link)
        return tombstone is None or tombstone.seen < self.links[link].stamp

    def _siblings(self, inode: int) -> list[ContentRow]:
        slots = self.contents[inode]
        found = [
            row
            for writer, row in slots.items()
            if not any(
                other.vector.get(Origin(writer), -1) >= row.stamp.time
                for other_writer, other in slots.items()
                if other_writer != writer
            )
        ]
        return sorted(found, key=lambda row: (row.dot, row.stamp), reverse=True)

    def _find_live_files(self) -> None:
        for inode, links in self.of_inode.items():
            if self.is_directory(inode):
                continue
            explicit = [link for link in links if self.explicit(link)]
            self.live.update(explicit)
            if explicit:
                continue
            last = max(links, key=lambda link: (self.tombstones[link].stamp, link))
            vector = self.tombstones[last].vector
            if vector is None or any(
                row.stamp.time > vector.get(row.stamp.origin, -1)
                for row in self.siblings.get(inode, [])
            ):
                self.live.add(last)

    # -- rule 3: cycles ------------------------------------------------------------------------

    def _cut_cycles(self) -> None:
        rows = {
            inode: self.links[inode]
            for inode, node in self.nodes.items()
            if node.kind == DIRECTORY and inode in self.links and self.links[inode].inode == inode
        }
        self.directory_links = rows

        def climb(start: int) -> tuple[list[int], int | None]:
            path: list[int] = []
            at: int = start
            while at in rows and at not in path:
                path.append(at)
                at = rows[at].parent
            return path, at

        rooted: set[int] = {ROOT_INODE}
        cycles = set()
        for inode in rows:
            path, end = climb(inode)
            if end == ROOT_INODE:
                rooted.add(inode)
            elif end in path:
                cycles.add(frozenset(path[path.index(end) :]))
        self.parent = {inode: row.parent for inode, row in rows.items()}
        for cycle in cycles:
            cut = max(cycle, key=lambda inode: (rows[inode].stamp, inode))
            previous = rows[cut].previous
            self.broken[cut] = previous if previous in rooted else ROOT_INODE
        self.parent.update(self.broken)

    # -- rule 4: directories -------------------------------------------------------------------

    def _find_live_directories(self) -> None:
        start = [inode for inode in self.directory_links if self.explicit(inode)]
        start += [self.links[link].parent for link in self.live]
        while start:
            inode = start.pop()
            if inode in self.directory_links and inode not in self.live:
                self.live.add(inode)
                start.append(self.parent[inode])

    # -- rules 5 to 8: names -------------------------------------------------------------------

    def _show_everything(self) -> None:
        children: dict[int, list[int]] = defaultdict(list)
        for link in self.live:
            row = self.links[link]
            children[self.parent[link] if link in self.directory_links else row.parent].append(link)
        # What hangs from a directory that is not here yet is shown there, out of sight.
        tops = [parent for parent in children if parent not in self.directory_links]
        work: list[tuple[int, list[int]]] = [(top, [top]) for top in {ROOT_INODE, *tops}]
        while work:
            shown, members = work.pop()
            entries = self._show([link for member in members for link in children[member]])
            self.directories[shown] = self._name(shown, entries)
            for entry in self.directories[shown].values():
                if entry.kind == DIRECTORY:
                    for member in entry.members:
                        self.representative[member] = entry.inode
                    work.append((entry.inode, entry.members))
                    self.nlink[shown] += 1

    def _show(self, links: list[int]) -> list[tuple[bytes, list[Entry]]]:
        slots: dict[bytes, list[int]] = defaultdict(list)
        for link in links:
            slots[self.links[link].name].append(link)
        return [
            (name, self._show_directories(name, slot) + self._show_files(name, slot))
            for name, slot in slots.items()
        ]

    def _show_directories(self, name: bytes, slot: list[int]) -> list[Entry]:
        groups: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for link in slot:
            if self.is_directory(self.links[link].inode):
                merge_class = self.links[link].merge_class
                groups[bool(merge_class), merge_class or link].append(link)
        entries = []
        for members in groups.values():
            first = min(members, key=lambda inode: (self.nodes[inode].stamp, inode))
            stamp, last = max((self.links[link].stamp, link) for link in members)
            entry = Entry(first, DIRECTORY, first, stamp, name, members=sorted(members))
            entries.append((stamp, last, entry))
        return [entry for _, _, entry in sorted(entries, key=lambda item: item[:2], reverse=True)]

    def _show_files(self, name: bytes, slot: list[int]) -> list[Entry]:
        files = [link for link in slot if not self.is_directory(self.links[link].inode)]
        shown: list[Entry] = []
        inodes: set[int] = set()
        looks: set[object] = set()
        for link in sorted(files, key=lambda link: (self.links[link].stamp, link), reverse=True):
            inode = self.links[link].inode
            look = self._look(inode)
            if inode in inodes or (look is not None and look in looks):
                continue
            inodes.add(inode)
            looks.add(look)
            self.nlink[inode] += 1
            entry = Entry(inode, self.nodes[inode].kind, link, self.links[link].stamp, name)
            if entry.kind == REGULAR and self.siblings.get(inode):
                entry.content = self.siblings[inode][0].content
            shown.append(entry)
        return shown

    def _look(self, inode: int) -> object:
        node = self.nodes[inode]
        if node.kind != REGULAR:
            return (node.kind, node.target, node.rdev)
        contents = {row.content for row in self.siblings.get(inode, [])} or {EMPTY_CONTENT}
        return (node.kind, contents.pop()) if len(contents) == 1 else None

    def _name(self, directory: int, slots: list[tuple[bytes, list[Entry]]]) -> dict[bytes, Entry]:
        named = {name: entries[0] for name, entries in slots}
        nameless = [entry for _, entries in slots for entry in entries[1:]]
        for _, entries in slots:
            for entry in entries:
                nameless += self._copies(entry)
        for entry in sorted(nameless, key=lambda entry: (entry.is_copy, entry.stamp, entry.link)):
            writer = self.node_name(entry.stamp.origin)
            for name in conflict_names(entry.plain, entry.stamp, writer):
                if name not in named:
                    named[name] = entry
                    break
        return named

    def _copies(self, entry: Entry) -> list[Entry]:
        found = self.siblings.get(entry.inode, [])
        if entry.kind != REGULAR or len(found) < 2:
            return []
        live = [link for link in self.of_inode[entry.inode] if link in self.live]
        if entry.link != max(live, key=lambda link: (self.links[link].stamp, link)):
            return []
        copies = []
        seen = {found[0].content}
        for row in found[1:]:
            inode = copy_inode(entry.inode, row.dot)  # type: ignore[arg-type]
            if row.content not in seen and inode not in self.nodes:
                copies.append(
                    Entry(inode, REGULAR, inode, row.dot, entry.plain, row.content, is_copy=True)
                )
            seen.add(row.content)
        return copies

    # -- what stat shows -----------------------------------------------------------------------

    def mtime_ns(self, inode: int) -> int:
        """The newest of birth, content or touch, and an explicit time."""
        node = self.nodes.get(inode)
        sources = [(node.stamp, node.stamp.time * 1000)] if node else [(Stamp(0, Origin(0)), 0)]
        if self.is_directory(inode):
            if inode in self.touches:
                touch = self.touches[inode].stamp
                sources.append((touch, touch.time * 1000))
        elif self.siblings.get(inode) and node is not None and node.kind == REGULAR:
            shown = self.siblings[inode][0]
            sources.append((shown.dot, shown.mtime_ns))
        explicit = self.attributes[inode].get(Field.MTIME)
        if explicit is not None:
            sources.append((explicit.stamp, int(explicit.value)))  # type: ignore[arg-type]
        return max(sources)[1]

    def ctime_ns(self, inode: int) -> int:
        """The greatest stamp of its rows, tombstones apart."""
        rows: list[Row] = [self.links[link] for link in self.of_inode[inode]]
        rows += self.contents[inode].values()
        rows += self.attributes[inode].values()
        rows += [row for row in (self.nodes.get(inode), self.touches.get(inode)) if row]
        return max([row.stamp.time for row in rows], default=0) * 1000

    def owner(self, inode: int) -> tuple[int, int, int]:
        """Mode, uid and gid."""
        node = self.nodes.get(inode)
        mode, uid, gid = (node.mode, node.uid, node.gid) if node else (0o755, 0, 0)
        if Field.MODE in self.attributes[inode]:
            mode = int(self.attributes[inode][Field.MODE].value)  # type: ignore[arg-type]
        if Field.OWNER in self.attributes[inode]:
            uid, gid = unpack_owner(self.attributes[inode][Field.OWNER].value)  # type: ignore[arg-type]
        return mode, uid, gid

    def tree(self) -> dict[bytes, tuple[object, ...]]:
        """Every path from the root, with all that replicas must agree on."""
        shown: dict[bytes, tuple[object, ...]] = {}
        work = [(int(ROOT_INODE), b"")]
        while work:
            directory, path = work.pop()
            for name, entry in self.directories[directory].items():
                here = path + b"/" + name
                assert here not in shown
                shown[here] = self.stat(entry)
                if entry.kind == DIRECTORY:
                    work.append((entry.inode, here))
        return shown

    def stat(self, entry: Entry) -> tuple[object, ...]:
        """What a tree says of an entry."""
        if entry.is_copy:
            return (entry.kind, entry.inode, 1, entry.content, b"")
        inode = entry.inode
        nlink = self.nlink[inode] + (2 if entry.kind == DIRECTORY else 0)
        return (
            entry.kind,
            inode,
            nlink,
            entry.content,
            self.nodes[inode].target,
            self.owner(inode),
            self.mtime_ns(inode),
            self.ctime_ns(inode),
        )
