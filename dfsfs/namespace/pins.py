"""Pin, then act: make explicit what a verb's caller sees, before the verb changes it.

Part of what users see may be implicit: a revived directory, a cut cycle, a conflict name, the copy
of a losing content. Pins are rows that say the same explicitly; joining them changes no name and no
content in the view. The verb that follows then acts on plain rows, and what it did not mention
stays as its caller saw it, on every replica and whatever else arrives there.

Only called when the tree is not ordinary around the names of a verb, so it may be slow.
Reads through the transaction's working set; writes nothing itself.
"""

from collections.abc import Container, Iterable

from dfsfs.base.types import ROOT_INODE, InodeId, LinkId, Origin, Stamp
from dfsfs.crdt import join
from dfsfs.namespace.conflicts import Shown, Slot, conflict_names, copy_inode, siblings
from dfsfs.namespace.fallbacks import note_copy
from dfsfs.namespace.reading import Found, Reader
from dfsfs.namespace.rows import (
    CLASS_MOVED,
    AttributeRow,
    ContentRow,
    LinkRow,
    NodeRow,
    Row,
    TombstoneRow,
)
from dfsfs.namespace.slots import home_link, resolve_slot, slot_links
from dfsfs.namespace.working import HIDDEN, LOSER, LinkState, WorkingSet

_NOT_STAMPED = Stamp(0, Origin(0))


class Pins:
    """The pins of one verb. Collect with `pin_*`, then take `rows`."""

    def __init__(self, work: WorkingSet, reader: Reader, origin: Origin) -> None:
        self._work = work
        self._reader = reader
        self._origin = origin
        self._links: dict[LinkId, LinkRow] = {}
        self._removed: dict[LinkId, None] = {}
        self._contents: dict[InodeId, ContentRow] = {}
        self._nodes: dict[InodeId, NodeRow] = {}
        self._attributes: list[AttributeRow] = []

    def rows(self, stamp: Stamp) -> list[Row]:
        """All pins, stamped; empty if what was touched is explicit already."""
        for link in self._removed:
            self._links.pop(link, None)
        rows: list[Row] = [row._replace(stamp=stamp) for row in self._nodes.values()]
        rows += [row._replace(stamp=stamp) for row in self._links.values()]
        rows += [row._replace(stamp=stamp) for row in self._contents.values()]
        rows += [row._replace(stamp=stamp) for row in self._attributes]
        added = {row.inode for row in self._links.values() if self._work.link(row.link) is None}
        return rows + removals(
            self._work, stamp, self._removed, written=self._contents, added=added
        )

    # -- what a verb touches ------------------------------------------------------------------

    def pin_cycles(self) -> None:
        """Wherever a cycle is cut: pinning one cut may move another."""
        work = self._work
        for inode in sorted(work.irregular.broken):
            line = work.inode(inode)
            if not line.explicit:
                continue
            shown = work.irregular.representative(inode)
            name = self._pin_directory_slot(shown)
            for member in work.irregular.class_of(shown):
                self._pin_link(LinkId(member), name)

    def pin_directory(self, directory: InodeId) -> None:
        """A directory whose names change, and everything above it."""
        work = self._work
        directory = work.irregular.representative(directory)
        while directory != ROOT_INODE:
            members = work.irregular.class_of(directory)
            implicit = [member for member in members if self._is_implicit(member)]
            if implicit:
                name = self._shown_name(self._link(LinkId(directory)))
                if name != self._link(LinkId(directory)).name:
                    implicit = members
                for member in implicit:
                    self._pin_link(LinkId(member), name)
            directory = self._reader.parent(directory)

    def pin_entry(self, found: Found) -> None:
        """A name that is removed, moved or replaced, and what is behind it."""
        self.pin_directory(found.directory)
        if found.is_copy:
            self.pin_copy(found.inode)
        elif self._work.inode(found.inode).is_directory:
            self._pin_directory_slot(found.inode)
        else:
            self.pin_file(found.inode)

    def pin_file(self, inode: InodeId) -> None:
        """A file whose content or set of names changes."""
        self._pin_siblings(inode)
        self._pin_names(inode)

    def pin_home(self, inode: InodeId) -> None:
        """The directories above one name of a file; if revived, that name too."""
        rows = self._work.database.rows(
            "SELECT link FROM link WHERE inode=? AND live=2"
            " UNION ALL SELECT link FROM link WHERE link=? AND live LIMIT 1",
            (inode, inode),
        )
        for (link,) in rows:
            state = self._link(link)
            assert state.directory is not None
            self.pin_directory(state.directory)
            if not state.is_explicit() and state.role != HIDDEN:
                self._pin_link(link, self._shown_name(state))

    def pin_copy(self, inode: InodeId) -> None:
        """A conflict copy becomes a file of its own."""
        original = self._work.database.value("SELECT original FROM copy WHERE inode=?", (inode,))
        assert original is not None
        self.pin_file(original)

    def pin_version(self, inode: InodeId, slot: Slot, writer: str) -> None:
        """A version of a file becomes a conflict copy, whether it is one now or what is shown."""
        copy = copy_inode(inode, slot.dot)
        link = home_link(self._work, inode)
        assert link is not None
        assert link.directory is not None
        self.pin_directory(link.directory)
        name: bytes | None = self._work.database.value(
            "SELECT name FROM alias WHERE link=?", (copy,)
        )
        if name is None:
            name = next(
                name
                for name in conflict_names(self._shown_name(link), slot.dot, writer)
                if self._reader.find(link.directory, name) is None
            )
        self._make_copy(copy, inode, link.directory, name, slot)

    # -- the parts ----------------------------------------------------------------------------

    def _pin_link(self, link: LinkId, name: bytes | None = None) -> None:
        if link in self._links:
            return
        state = self._link(link)
        parent = self._work.irregular.broken.get(state.inode, state.parent)
        shown = state.name if name is None else name
        # Rows never name what is dead: it may be about to be forgotten (see `purge`).
        is_dead = self._work.inode(state.previous).explicit == 0
        previous = ROOT_INODE if is_dead else state.previous
        self._links[link] = LinkRow(
            _NOT_STAMPED, link, state.inode, parent, shown, previous, state.merge_class
        )
        if self._work.inode(state.inode).siblings > 1:
            self._pin_siblings(state.inode)

    def _pin_siblings(self, inode: InodeId) -> None:
        """One content row that replaces all siblings; the copies become files."""
        work = self._work
        if work.inode(inode).siblings < 2 or inode in self._contents:
            return
        slots = work.slots_of(inode)
        shown = siblings(slots)[0]
        vector = seen_vector(slots.values())
        vector.pop(self._origin, None)
        self._contents[inode] = ContentRow(
            _NOT_STAMPED, inode, shown.content, shown.mtime_ns, vector, shown.dot
        )
        self._pin_names(inode)
        for copy, directory, writer in work.database.rows(
            "SELECT inode, directory, writer FROM copy WHERE original=? ORDER BY inode", (inode,)
        ):
            self.pin_directory(directory)
            self._make_copy(copy, inode, directory, self._alias(LinkId(copy)), slots[writer])

    def _make_copy(
        self, copy: InodeId, inode: InodeId, directory: InodeId, name: bytes, slot: Slot
    ) -> None:
        """Content `slot` of `inode` becomes the file `copy`, in all else like `inode`."""
        seen = self._reader.get(inode)
        self._nodes[copy] = NodeRow(
            _NOT_STAMPED, copy, seen.kind, seen.mode, seen.uid, seen.gid, 0, b""
        )
        self._links[LinkId(copy)] = LinkRow(
            _NOT_STAMPED, LinkId(copy), copy, directory, name, ROOT_INODE, CLASS_MOVED
        )
        # The dot stays that of the first write: somebody may be editing the copy elsewhere.
        self._contents[copy] = ContentRow(
            _NOT_STAMPED, copy, slot.content, slot.mtime_ns, {}, slot.dot
        )
        note_copy(self._work.database, inode, slot.stamp, copy)
        self._attributes += [
            AttributeRow(_NOT_STAMPED, copy, field, value)
            for field, value in self._work.database.rows(
                "SELECT field, value FROM attribute"
                " WHERE inode=? AND field>=x'' AND value IS NOT NULL ORDER BY field",
                (inode,),
            )
        ]

    def _pin_names(self, inode: InodeId) -> None:
        """Every contested name a file takes part in becomes explicit."""
        for link, role in self._work.database.rows(
            "SELECT link, role FROM link WHERE inode=? AND role>1 ORDER BY link", (inode,)
        ):
            state = self._link(link)
            if role != HIDDEN:
                self._pin_slot(state)
            elif self._hider(state).inode != inode:
                self._removed[link] = None

    def _pin_directory_slot(self, directory: InodeId) -> bytes:
        state = self._link(LinkId(directory))
        name = self._shown_name(state)
        self._pin_slot(state)
        return name

    def _pin_slot(self, state: LinkState) -> None:
        """The entry of a link is about to change: its name, what it hides, who lost to it."""
        shown_for = self._resolved(state)
        place, shown = next(
            (place, shown) for place, shown in enumerate(shown_for) if shown.link == state.link
        )
        beside = shown_for[1:] if place == 0 else []
        for entry in [shown, *beside]:
            name = self._shown_name(self._link(entry.link))
            for link in entry.members:
                if self._link(link).name != name:
                    self._pin_link(link, name)
            for link in entry.hidden:
                self._removed[link] = None

    def _hider(self, state: LinkState) -> Shown:
        return next(shown for shown in self._resolved(state) if state.link in shown.hidden)

    def _resolved(self, state: LinkState) -> list[Shown]:
        assert state.directory is not None
        return resolve_slot(self._work, slot_links(self._work, state.directory, state.name))

    def _shown_name(self, state: LinkState) -> bytes:
        return self._alias(state.link) if state.role == LOSER else state.name

    def _alias(self, link: LinkId) -> bytes:
        name = self._work.database.value("SELECT name FROM alias WHERE link=?", (link,))
        assert isinstance(name, bytes)
        return name

    def _is_implicit(self, directory: InodeId) -> bool:
        irregular = self._work.irregular
        return directory in irregular.implicit or directory in irregular.broken

    def _link(self, link: LinkId) -> LinkState:
        state = self._work.link(link)
        assert state is not None
        return state


def seen_vector(slots: Iterable[Slot]) -> dict[Origin, int]:
    """Everything written into a file that somebody who sees `slots` has seen."""
    vector: dict[Origin, int] = {}
    for slot in slots:
        join(vector, {slot.stamp.origin: slot.stamp.time})
        join(vector, slot.vector)
    return vector


def removals(
    work: WorkingSet,
    stamp: Stamp,
    links: Iterable[LinkId],
    *,
    written: Container[InodeId] = (),
    added: Container[InodeId] = (),
) -> list[Row]:
    """Tombstones for links as they are now.

    Whoever removes the last link of a file removes the contents it saw, and says which: `written`
    are contents of the same transaction. Inodes in `added` get a new link in it.
    """
    removed: dict[InodeId, list[LinkState]] = {}
    for link in links:
        state = work.link(link)
        assert state is not None
        removed.setdefault(state.inode, []).append(state)
    rows: list[Row] = []
    for inode, states in removed.items():
        vector: dict[Origin, int] | None = None
        line = work.inode(inode)
        live_count = max(line.explicit, 1)  # of a revived file one link is live
        if not line.is_directory and len(states) == live_count and inode not in added:
            vector = seen_vector(work.slots_of(inode).values())
            if inode in written:
                join(vector, {stamp.origin: stamp.time})
        rows += [TombstoneRow(stamp, state.link, state.stamp, vector) for state in states]
    return rows
