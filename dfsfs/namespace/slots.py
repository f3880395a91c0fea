"""Where live links are shown and under which name: the view's rules about names.

    5. A live link is in the directory users see in place of its effective parent.
    6. Directories made under one name are one; its representative shows the children of all.
    7. Of different things under one name one keeps it, the others get conflict names; the same
       thing twice is shown once (conflicts.resolve).
    8. Contents nobody replaced are shown beside the file, under the link written last.

Work goes slot by slot, a slot being all links of one name in one shown directory. Merging
directories moves children between shown directories and thereby makes more slots to look at, always
further down; so it ends. Only merging costs more than the slots touched.
"""

from dfsfs.base.types import FileKind, InodeId, LinkId, Stamp
from dfsfs.namespace.conflicts import (
    CONFLICT_MARK,
    Candidate,
    Nameless,
    Shown,
    assign_names,
    copy_inode,
    distinct,
    resolve,
    sameness,
    siblings,
)
from dfsfs.namespace.liveness import effective_parent
from dfsfs.namespace.working import (
    ALONE,
    DEAD,
    HIDDEN,
    KEEPS,
    LOSER,
    UNKNOWN_KIND,
    LinkState,
    WorkingSet,
)


def settle_names(work: WorkingSet) -> None:
    """Bring `directory` and `role` of links, merged directories, copies and aliases up to date."""
    for link in work.touched:
        _settle_place(work, work.links[link])
    while work.slots:
        directory, name = next(iter(work.slots))
        del work.slots[directory, name]
        _settle_slot(work, directory, name)
    for inode in work.copies:
        _settle_copies(work, inode)
    for directory in work.aliases:
        _settle_aliases(work, directory)


# -- places ---------------------------------------------------------------------------------------


def _settle_place(work: WorkingSet, state: LinkState) -> None:
    """Move a link to the slot it belongs in; who is shown there is decided later."""
    directory = None
    if state.live:
        directory = work.irregular.representative(effective_parent(work, state))
    before = state.place
    after = None if directory is None else (directory, state.name)
    if before == after:
        if after is not None and state.role > ALONE:  # its stamp or class may count now
            work.slots[after] = None
        work.flush_link(state)
        return
    if before is not None:
        if state.role == LOSER:
            work.aliases[before[0]] = None
        _uncount(work, state)
        work.slots[before] = None
        work.entries[before] = None
    state.directory = directory
    state.place = after
    state.role = DEAD
    if after is not None:
        state.role = ALONE
        _count(work, state)
        work.slots[after] = None
        work.entries[after] = None
    elif state.inode in work.irregular.merged:  # dead, and so is all below it
        _record_merge(work, state.inode, state.inode)
    work.flush_link(state)
    _note_role_change(work, state)


def _count(work: WorkingSet, state: LinkState) -> None:
    """Count a link that is shown now: a name of a file, or a directory in its parent."""
    if state.role != HIDDEN:
        _add_shown(work, state, 1)


def _uncount(work: WorkingSet, state: LinkState) -> None:
    if state.role != HIDDEN:
        _add_shown(work, state, -1)


def _add_shown(work: WorkingSet, state: LinkState, count: int) -> None:
    line = work.inode(state.inode)
    if line.is_directory:
        assert state.directory is not None
        work.inode(state.directory).nlink += count
        work.irregular.directories += count
    else:
        line.nlink += count


def _note_role_change(work: WorkingSet, state: LinkState) -> None:
    if work.inode(state.inode).siblings > 1:
        work.copies[state.inode] = None


# -- slots ----------------------------------------------------------------------------------------


def _settle_slot(work: WorkingSet, directory: InodeId, name: bytes) -> None:
    links = slot_links(work, directory, name)
    if CONFLICT_MARK in name:
        work.aliases[directory] = None  # it may take a name from, or leave it to, a conflict copy
    if len(links) == 1:
        _set_role(work, links[0], ALONE)
        if links[0].inode in work.irregular.merged:
            _set_representative(work, links[0].inode, links[0].inode)
        return
    for place, shown in enumerate(resolve_slot(work, links)):
        for state in links:
            if state.link == shown.link:
                _set_role(work, state, KEEPS if place == 0 else LOSER)
            elif state.link in shown.members or state.link in shown.hidden:
                _set_role(work, state, HIDDEN)
        if shown.kind == FileKind.DIRECTORY:
            for member in shown.members:
                _set_representative(work, InodeId(member), shown.inode)


def slot_links(work: WorkingSet, directory: InodeId, name: bytes) -> list[LinkState]:
    """All live links that claim `name` in a shown directory, in order."""
    found = []
    for (link,) in work.database.rows(
        "SELECT link FROM link WHERE directory=? AND name=? ORDER BY link", (directory, name)
    ):
        state = work.link(link)
        assert state is not None
        found.append(state)
    return found


def resolve_slot(work: WorkingSet, links: list[LinkState]) -> list[Shown]:
    """Who is shown for the links of one slot."""
    return resolve([_candidate(work, state) for state in links])


def _candidate(work: WorkingSet, state: LinkState) -> Candidate:
    line = work.inode(state.inode)
    same: object = None
    if line.kind == FileKind.REGULAR:
        contents = {sameness(slot.content) for slot in siblings(work.slots_of(state.inode))}
        if len(contents) < 2:
            same = (line.kind, next(iter(contents), _NO_CONTENT))
    elif not line.is_directory:
        same = (line.kind, line.target, line.rdev)
    birth = Stamp(line.time, line.origin)
    return Candidate(
        state.link, state.inode, state.stamp, line.kind, state.merge_class, birth, same
    )


_NO_CONTENT = (0, None, None)  # sameness of EMPTY_CONTENT


def _set_role(work: WorkingSet, state: LinkState, role: int) -> None:
    if state.role == role:
        if role == LOSER:
            assert state.directory is not None
            work.aliases[state.directory] = None  # its stamp may be another
        return
    assert state.directory is not None
    if LOSER in (state.role, role):
        work.aliases[state.directory] = None
    if HIDDEN in (state.role, role):
        _uncount(work, state)
        state.role = role
        _count(work, state)
    state.role = role
    work.entries[state.directory, state.name] = None
    work.flush_link(state)
    _note_role_change(work, state)


# -- merged directories ---------------------------------------------------------------------------


def _set_representative(work: WorkingSet, member: InodeId, representative: InodeId) -> None:
    before = work.irregular.representative(member)
    if before == representative:
        return
    _record_merge(work, member, representative)
    moved = 0
    for link, parent in work.database.rows(
        "SELECT link, parent FROM link WHERE directory=?", (before,)
    ):
        if work.irregular.broken.get(link, parent) == member:
            state = work.link(link)
            assert state is not None
            _rehome(work, state, representative)
            moved += 1
    if moved:
        for (name,) in work.database.rows(
            "SELECT name FROM link WHERE directory=? GROUP BY name HAVING count(*) > 1",
            (representative,),
        ):
            work.slots[representative, name] = None
    for inode in (member, before, representative):
        work.directories[inode] = None
    for directory in (before, representative):
        work.aliases[directory] = None
        for (original,) in work.database.rows(
            "SELECT original FROM copy WHERE directory=?", (directory,)
        ):
            work.copies[original] = None


def _rehome(work: WorkingSet, state: LinkState, directory: InodeId) -> None:
    assert state.place is not None
    before, after = state.place, (directory, state.name)
    if state.role > ALONE:
        work.slots[before] = None
    if before in work.slots or CONFLICT_MARK in state.name:  # what is due there is due here
        work.slots[after] = None
    _uncount(work, state)
    state.directory = directory
    state.place = after
    state.role = ALONE
    _count(work, state)
    work.flush_link(state)
    _note_role_change(work, state)


def _record_merge(work: WorkingSet, member: InodeId, representative: InodeId) -> None:
    work.irregular.merge(member, representative)
    if member == representative:
        work.database.execute("DELETE FROM merged WHERE member=?", (member,))
    else:
        work.database.execute("INSERT OR REPLACE INTO merged VALUES(?,?)", (member, representative))


# -- conflict copies and their names --------------------------------------------------------------


def _settle_copies(work: WorkingSet, original: InodeId) -> None:
    wanted: dict[InodeId, tuple[object, ...]] = {}
    line = work.inode(original)
    home = home_link(work, original) if line.siblings > 1 else None
    if home is not None and line.kind == FileKind.REGULAR and home.role != HIDDEN:
        for slot in distinct(siblings(work.slots_of(original)))[1:]:
            inode = copy_inode(original, slot.dot)
            if work.inode(inode).kind == UNKNOWN_KIND:  # else somebody made it a file already
                place = (home.directory, home.name)
                wanted[inode] = (original, slot.stamp.origin, *place, *slot.dot)
    before = {
        row[0]: row[1:]
        for row in work.database.rows(
            "SELECT inode, original, writer, directory, name, time, origin FROM copy"
            " WHERE original=?",
            (original,),
        )
    }
    for inode in sorted(before.keys() | wanted.keys()):
        old, new = before.get(inode), wanted.get(inode)
        if old == new:
            continue
        work.attributes[inode] = None
        if old is not None:
            work.aliases[old[2]] = None
            work.database.execute("DELETE FROM copy WHERE inode=?", (inode,))
        if new is not None:
            work.contents[inode] = None
            work.aliases[new[2]] = None  # type: ignore[index]  # the directory
            work.database.execute("INSERT INTO copy VALUES(?,?,?,?,?,?,?)", (inode, *new))


def home_link(work: WorkingSet, inode: InodeId) -> LinkState | None:
    """The live link of a file that was written last: its copies are shown beside that one."""
    link = work.database.value(
        "SELECT link FROM (SELECT link, time, origin FROM link WHERE link=?1 AND inode=?1 AND live"
        " UNION ALL SELECT link, time, origin FROM link WHERE inode=?1 AND inode<>link AND live)"
        " ORDER BY time DESC, origin DESC, link DESC LIMIT 1",
        (inode,),
    )
    return None if link is None else work.link(link)


def _settle_aliases(work: WorkingSet, directory: InodeId) -> None:
    database = work.database

    def is_taken(name: bytes) -> bool:
        row = database.row(
            "SELECT 1 FROM link WHERE directory=? AND name=? AND role IN (1, 2)", (directory, name)
        )
        return row is not None

    wanted = {
        name: (claim.link, claim.inode, int(claim.is_copy))
        for name, claim in assign_names(_claims(work, directory), is_taken, work.node_name).items()
    }
    before = {
        row[0]: row[1:]
        for row in database.rows(
            "SELECT name, link, inode, is_copy FROM alias WHERE directory=?", (directory,)
        )
    }
    for name in sorted(before.keys() | wanted.keys()):
        if before.get(name) == wanted.get(name):
            continue
        work.entries[directory, name] = None
        if name in before:
            database.execute("DELETE FROM alias WHERE directory=? AND name=?", (directory, name))
        if name in wanted:
            database.execute(
                "INSERT INTO alias(directory, name, link, inode, is_copy) VALUES(?,?,?,?,?)",
                (directory, name, *wanted[name]),
            )


def _claims(work: WorkingSet, directory: InodeId) -> list[Nameless]:
    claims = []
    for link, inode, name, time, origin in work.database.rows(
        "SELECT link, inode, name, time, origin FROM link WHERE directory=? AND role=3",
        (directory,),
    ):
        stamp = Stamp(time, origin)
        for member in work.irregular.members.get(inode, ()):
            state = work.link(LinkId(member))
            assert state is not None
            stamp = max(stamp, state.stamp)
        claims.append(Nameless(False, stamp, link, inode, name))
    for inode, name, time, origin in work.database.rows(
        "SELECT inode, name, time, origin FROM copy WHERE directory=?", (directory,)
    ):
        claims.append(Nameless(True, Stamp(time, origin), inode, inode, name))
    return claims


def rename_aliases(work: WorkingSet) -> None:
    """Make all conflict names again: nodes are called differently now."""
    for (directory,) in work.database.rows("SELECT DISTINCT directory FROM alias"):
        _settle_aliases(work, directory)
