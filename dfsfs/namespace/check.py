"""All invariants of a namespace database: what tests, simulation and `dfs fsck` ask.

Derived columns are compared with what the rules give when they are applied to all rows at once;
this shares the pure outcomes of `conflicts` with the incremental way, and nothing else. It reads
everything into memory and is slow on purpose; nothing is repaired.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from dfsfs.base.limits import PATCHES_PACKED_BYTES_MAX
from dfsfs.base.types import (
    ROOT_INODE,
    ContentRef,
    FileKind,
    InodeId,
    LinkId,
    Origin,
    Stamp,
    is_digest,
)
from dfsfs.crdt import covers, join
from dfsfs.namespace.conflicts import (
    Candidate,
    Nameless,
    assign_names,
    break_cycles,
    copy_inode,
    distinct,
    resolve,
    sameness,
    siblings,
)
from dfsfs.namespace.rows import decode_vector, is_name
from dfsfs.namespace.working import ALONE, HIDDEN, KEEPS, LOSER, Irregular, read_slots, unpack_total
from dfsfs.runtime import Database


def check(
    database: Database, irregular: Irregular, node_name: Callable[[Origin], str]
) -> list[str]:
    """Every violated invariant, as a sentence."""
    malformed = list(_malformed_contents(database))
    if malformed:  # no view can be made of them
        return malformed
    checker = _Checker(database, irregular, node_name)
    return [
        *checker.check_rows(),
        *checker.check_links(),
        *checker.check_inodes(),
        *checker.check_exceptions(),
        *checker.check_reachable(),
    ]


def check_snapshot(database: Database, node_name: Callable[[Origin], str]) -> list[str]:
    """`check` of a moment's view, for a thread: what the loop's connection does goes on."""
    with database.snapshot() as seen:
        return check(seen, Irregular(seen), node_name)


def _malformed_contents(database: Database) -> Iterator[str]:
    for inode, size, root, inline in database.rows("SELECT inode, size, root, inline FROM content"):
        if root is not None and not is_digest(root):
            yield f"a content of inode {inode} has a bad digest"
        if inline is not None and root is None and len(inline) != size:
            yield f"the inline content of inode {inode} has the wrong size"
        if root is not None and len(inline or b"") > PATCHES_PACKED_BYTES_MAX:
            yield f"a content of inode {inode} has too many patches"


class _Checker:
    """Everything as it should be, computed once."""

    def __init__(
        self, database: Database, irregular: Irregular, node_name: Callable[[Origin], str]
    ) -> None:
        self._database = database
        self._irregular = irregular
        self._node_name = node_name
        self.inodes: dict[InodeId, dict[str, Any]] = self._table("inode", "inode")
        self.links: dict[LinkId, dict[str, Any]] = self._table("link", "link")
        self.tombstones: dict[LinkId, dict[str, Any]] = self._table("tombstone", "link")
        self.siblings = {
            inode: siblings(read_slots(database, inode))
            for inode, line in self.inodes.items()
            if line["kind"] == FileKind.REGULAR
        }
        self.broken = break_cycles(
            {
                inode: (link["parent"], self._stamp(link), link["previous"])
                for inode, link in self._directory_links()
            }
        )
        self.live: dict[LinkId, int] = {}
        self._find_live()
        self.roles: dict[LinkId, int] = {}
        self.places: dict[LinkId, InodeId] = {}
        self.merged: dict[InodeId, InodeId] = {}
        self.losers: dict[InodeId, list[Nameless]] = defaultdict(list)
        self._find_names()

    def _table(self, table: str, key: str) -> dict[Any, dict[str, Any]]:
        names = [row[1] for row in self._database.rows(f"PRAGMA table_info({table})")]
        found = {}
        for row in self._database.rows(f"SELECT * FROM {table}"):
            line = dict(zip(names, row, strict=True))
            found[line[key]] = line
        return found

    def _stamp(self, line: dict[str, Any]) -> Stamp:
        return Stamp(line["time"], line["origin"])

    def _is_directory(self, inode: InodeId) -> bool:
        return inode in self.inodes and self.inodes[inode]["kind"] == FileKind.DIRECTORY

    def _directory_links(self) -> Iterator[tuple[InodeId, dict[str, Any]]]:
        for inode in self.inodes:
            link = self.links.get(LinkId(inode))
            if self._is_directory(inode) and link is not None and link["inode"] == inode:
                yield inode, link

    def _is_explicit(self, link: LinkId) -> bool:
        tombstone = self.tombstones.get(link)
        if tombstone is None:
            return True
        seen = Stamp(tombstone["seen_time"], tombstone["seen_origin"])
        return seen < self._stamp(self.links[link])

    def _parent(self, link: LinkId) -> InodeId:
        line = self.links[link]
        return self.broken.get(line["inode"], InodeId(line["parent"]))

    # -- the view, all at once ------------------------------------------------------------------

    def _find_live(self) -> None:
        of_inode: dict[InodeId, list[LinkId]] = defaultdict(list)
        for link, line in self.links.items():
            inode = line["inode"]
            if (
                inode in self.inodes
                and self.inodes[inode]["kind"]
                and not self._is_directory(inode)
            ):
                of_inode[inode].append(link)
        self.explicit = {
            inode: sum(map(self._is_explicit, links)) for inode, links in of_inode.items()
        }
        for inode, links in of_inode.items():
            if self.explicit[inode]:
                self.live.update({link: 1 for link in links if self._is_explicit(link)})
                continue
            last = max(links, key=lambda link: (self._stamp(self.tombstones[link]), link))
            vector = self.tombstones[last]["vector"]
            found = self.siblings.get(inode, [])
            seen = None if vector is None else decode_vector(vector)
            if seen is None or any(not covers(seen, slot.stamp) for slot in found):
                self.live[last] = 2
        work = [self._parent(link) for link in self.live]
        for inode, _ in self._directory_links():
            if self._is_explicit(LinkId(inode)):
                self.live[LinkId(inode)] = 1
                work.append(self._parent(LinkId(inode)))
        known = {inode for inode, _ in self._directory_links()}
        while work:
            inode = work.pop()
            if inode in known and LinkId(inode) not in self.live:
                self.live[LinkId(inode)] = 2
                work.append(self._parent(LinkId(inode)))

    def _find_names(self) -> None:
        children: dict[InodeId, list[LinkId]] = defaultdict(list)
        for link in self.live:
            children[self._parent(link)].append(link)
        known = {inode for inode, _ in self._directory_links()}
        work = [(parent, [parent]) for parent in children if parent not in known]
        while work:
            shown, members = work.pop()
            slots: dict[bytes, list[LinkId]] = defaultdict(list)
            for member in members:
                for link in children[member]:
                    self.places[link] = shown
                    slots[self.links[link]["name"]].append(link)
            for name, links in slots.items():
                for inode, group in self._settle_slot(shown, name, links):
                    work.append((inode, group))

    def _settle_slot(
        self, shown_in: InodeId, name: bytes, links: list[LinkId]
    ) -> Iterator[tuple[InodeId, list[InodeId]]]:
        self.roles.update(dict.fromkeys(links, HIDDEN))
        for place, shown in enumerate(resolve([self._candidate(link) for link in links])):
            self.roles[shown.link] = (ALONE if len(links) == 1 else KEEPS) if place == 0 else LOSER
            if place > 0:
                claim = Nameless(False, shown.stamp, shown.link, shown.inode, name)
                self.losers[shown_in].append(claim)
            if shown.kind == FileKind.DIRECTORY:
                group = [InodeId(member) for member in shown.members]
                self.merged.update({m: shown.inode for m in group if m != shown.inode})
                yield shown.inode, group

    def _candidate(self, link: LinkId) -> Candidate:
        line = self.links[link]
        inode = line["inode"]
        node = self.inodes[inode]
        same: object = (node["kind"], node["target"], node["rdev"])
        if node["kind"] == FileKind.REGULAR:
            contents = {sameness(slot.content) for slot in self.siblings[inode]}
            contents = contents or {sameness(ContentRef(0))}
            same = (node["kind"], next(iter(contents))) if len(contents) == 1 else None
        return Candidate(
            link, inode, self._stamp(line), node["kind"], line["class"], self._stamp(node), same
        )

    # -- comparing ------------------------------------------------------------------------------

    def check_rows(self) -> Iterator[str]:
        """Rows are well-formed, and none is above its origin's have-vector.

        But for rows of a snapshot, until what came after it is here too.
        """
        have: dict[Origin, int] = dict(self._database.rows("SELECT origin, time FROM have"))
        ((own, position, counter),) = self._database.rows(
            "SELECT origin, position, counter FROM state"
        )
        have[own] = max(position, have.get(own, 0))
        join(have, dict(self._database.rows("SELECT origin, time FROM reach")))
        for table, time, origin in _STAMPED:
            for writer, newest in self._database.rows(
                f"SELECT {origin}, max({time}) FROM {table} WHERE {time}>0 GROUP BY {origin}"
            ):
                if newest > have.get(writer, 0):
                    yield f"{table}: a row of origin {writer} is newer than what is held of it"
        for inode in self.inodes:
            if inode >> 40 == own and inode & ((1 << 40) - 1) > counter:
                yield f"inode {inode} was never given out"
        for link, line in self.links.items():
            if not is_name(line["name"]):
                yield f"link {link} has a bad name"

    def check_links(self) -> Iterator[str]:
        """Liveness, place and role of every link."""
        for link, line in self.links.items():
            found = (line["live"], line["directory"], line["role"])
            wanted = (self.live.get(link, 0), self.places.get(link), self.roles.get(link, 0))
            if found != wanted:
                yield f"link {link} has (live, directory, role) {found} instead of {wanted}"

    def check_inodes(self) -> Iterator[str]:
        """The derived columns of every inode, and the totals."""
        shown: Counter[InodeId] = Counter()
        children: Counter[InodeId] = Counter()
        directories = 1
        for link in self.live:
            inode = self.links[link]["inode"]
            children[self._parent(link)] += 1
            if self.roles[link] != HIDDEN:
                shown[self.places[link] if self._is_directory(inode) else inode] += 1
                directories += self._is_directory(inode)
        files = size = 0
        for inode, line in self.inodes.items():
            if not line["kind"]:
                continue
            found: tuple[object, ...]
            wanted: tuple[object, ...]
            if self._is_directory(inode):
                live = inode == ROOT_INODE or LinkId(inode) in self.live
                wanted = (int(live), shown[inode], children[inode])
                found = (line["explicit"], line["nlink"], line["children"])
            else:
                found = (
                    line["explicit"],
                    line["nlink"],
                    line["siblings"],
                    line["writer"],
                    line["size"],
                )
                content = self._content(inode)
                wanted = (self.explicit.get(inode, 0), shown[inode], *content)
                files += bool(shown[inode])
                size += content[2] if shown[inode] else 0
            if found != wanted:
                yield f"inode {inode} has {found} instead of {wanted}"
        counted = (self._irregular.files, self._irregular.directories, self._irregular.bytes)
        ((*numbers, total),) = self._database.rows("SELECT files, directories, bytes FROM state")
        stored = (*numbers, unpack_total(total))
        if not (counted == stored == (files, directories, size)):
            yield f"totals are {counted}, stored {stored}, counted {(files, directories, size)}"

    def _content(self, inode: InodeId) -> tuple[int, Any, int]:
        found = self.siblings.get(inode)
        if not found:
            return (0, None, 0)
        return (len(distinct(found)), found[0].stamp.origin, found[0].content.size)

    def check_exceptions(self) -> Iterator[str]:
        """Merged directories, cut cycles, conflict copies and names; tables and their mirrors."""
        rows = self._database.rows
        for what, mirror, table, wanted in (
            ("merged", self._irregular.merged, rows("SELECT * FROM merged"), self.merged),
            ("broken", self._irregular.broken, rows("SELECT * FROM broken"), self.broken),
        ):
            if not (mirror == dict(table) == wanted):
                yield f"{what} is {mirror}, stored {table}, instead of {wanted}"
        implicit = {
            inode for inode, _ in self._directory_links() if self.live.get(LinkId(inode)) == 2
        }
        if implicit != self._irregular.implicit:
            yield f"implicit directories are {self._irregular.implicit} instead of {implicit}"
        copies = dict(self._copies())
        found = {row[0]: row[1:] for row in rows("SELECT * FROM copy")}
        if found != copies:
            yield f"conflict copies are {found} instead of {copies}"
        claims = self.losers
        for inode, (_, _, directory, name, time, origin) in copies.items():
            claim = Nameless(True, Stamp(time, origin), LinkId(inode), inode, name)
            claims[directory].append(claim)
        taken = {
            (self.places[link], self.links[link]["name"])
            for link, role in self.roles.items()
            if role in (ALONE, KEEPS)
        }
        named = {
            (directory, name, claim.link, claim.inode, int(claim.is_copy))
            for directory, listed in claims.items()
            for name, claim in assign_names(
                listed, partial(_is_taken, taken, directory), self._node_name
            ).items()
        }
        aliases = set(rows("SELECT directory, name, link, inode, is_copy FROM alias"))
        if aliases != named:
            yield f"conflict names are {sorted(aliases)} instead of {sorted(named)}"

    def _copies(self) -> Iterator[tuple[InodeId, tuple[Any, ...]]]:
        homes: dict[InodeId, LinkId] = {}
        for link in self.live:
            inode = self.links[link]["inode"]
            best = homes.setdefault(inode, link)
            if (self._stamp(self.links[link]), link) > (self._stamp(self.links[best]), best):
                homes[inode] = link
        for inode, found in self.siblings.items():
            home = homes.get(inode)
            if home is None or self.roles[home] == HIDDEN:
                continue
            for slot in distinct(found)[1:]:
                copy = copy_inode(inode, slot.dot)
                if not self.inodes.get(copy, {"kind": 0})["kind"]:
                    place = (self.places[home], self.links[home]["name"])
                    yield copy, (inode, slot.stamp.origin, *place, *slot.dot)

    def check_reachable(self) -> Iterator[str]:
        """From every shown link the way up ends at the root, or at an inode not here yet."""
        for link, role in self.roles.items():
            passed: set[InodeId] = set()
            inode = self.places[link]
            while (
                inode != ROOT_INODE and self._is_directory(inode) and LinkId(inode) in self.places
            ):
                if inode in passed:
                    yield f"link {link} is in a cycle of directories"
                    break
                passed.add(inode)
                inode = self.places[LinkId(inode)]
            if role != HIDDEN and self.links[link]["inode"] == ROOT_INODE:
                yield "the root has a link"


def _is_taken(taken: set[tuple[InodeId, bytes]], directory: InodeId, name: bytes) -> bool:
    return (directory, name) in taken


_STAMPED = (
    ("inode", "time", "origin"),
    ("inode", "touch_time", "touch_origin"),
    ("link", "time", "origin"),
    ("tombstone", "time", "origin"),
    ("content", "time", "writer"),
    ("attribute", "time", "origin"),
)
