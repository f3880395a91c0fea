"""Which links are live, and where directories hang: the view's rules that names play no part in.

    1. A link is explicitly live unless its tombstone saw its present row.
    2. A file without such a link is revived under the link removed last, if it has content that the
       remover had not seen: an edit beats a delete.
    3. Directory rows that make a cycle are cut at the one moved last (conflicts.break_cycles).
    4. A directory is live if its link is, or if anything live is in it.

Rules 1, 2 and 4 cost what the update touched; 4 goes up as far as something changes. Rule 3 looks
upwards from each directory that moved, and at all directories only when that shows a cycle or
while one is being cut.
"""

from collections import deque

from dfsfs.base.types import ROOT_INODE, FileKind, InodeId, LinkId, Stamp
from dfsfs.crdt import covers
from dfsfs.namespace.conflicts import break_cycles, distinct, siblings
from dfsfs.namespace.rows import decode_vector
from dfsfs.namespace.working import (
    DEAD,
    EXPLICIT,
    IMPLICIT,
    UNKNOWN_KIND,
    InodeState,
    LinkState,
    WorkingSet,
)


def settle_liveness(work: WorkingSet) -> None:
    """Bring `live` of links and `children`, `explicit`, `writer` of inodes up to date."""
    for inode in work.arrived:  # links that came before their inode count from now on
        for link in _links_of(work, inode):
            work.link(link)
            work.touched[link] = None
    by_inode: dict[InodeId, list[LinkState]] = {inode: [] for inode in work.arrived}
    for inode in work.written:
        by_inode[inode] = []
    for link in work.touched:
        state = work.links[link]
        by_inode.setdefault(state.inode, []).append(state)
    directories: list[InodeId] = []
    for inode, links in by_inode.items():
        line = work.inode(inode)
        if line.is_directory:
            directories.append(inode)
        elif line.kind != UNKNOWN_KIND:
            _settle_file(work, line, links)
    _settle_directories(work, directories)


def _links_of(work: WorkingSet, inode: InodeId) -> list[LinkId]:
    rows = work.database.rows(
        "SELECT link FROM link WHERE link=?1 AND inode=?1"
        " UNION ALL SELECT link FROM link WHERE inode=?1 AND inode<>link",
        (inode,),
    )
    return [link for (link,) in rows]


# -- files ----------------------------------------------------------------------------------------


def _settle_file(work: WorkingSet, file: InodeState, links: list[LinkState]) -> None:
    if file.inode in work.written and file.kind == FileKind.REGULAR:
        _settle_content(work, file)
    elif file.inode in work.arrived and file.kind == FileKind.REGULAR:
        _settle_content(work, file)  # content rows that came before their inode
    was_explicit = file.explicit
    for state in links:
        explicit = state.is_explicit()
        file.explicit += explicit - (state.live == EXPLICIT)
        if explicit:
            state.live = EXPLICIT
        elif state.live == EXPLICIT:
            state.live = DEAD
    if file.explicit == 0:
        _revive(work, file, links)
    elif was_explicit == 0:
        _set_revived(work, file, None)
    if file.siblings > 1:
        work.copies[file.inode] = None


def _settle_content(work: WorkingSet, file: InodeState) -> None:
    found = siblings(work.slots_of(file.inode))
    if not found:
        return
    had_siblings = file.siblings > 1
    work.contents[file.inode] = None
    work.attributes[file.inode] = None
    file.writer = found[0].stamp.origin
    file.size = found[0].content.size
    file.siblings = 1 if len(found) == 1 else len(distinct(found))
    if had_siblings or file.siblings > 1:
        work.copies[file.inode] = None
    for directory, name in work.database.rows(  # it may be the same as another, or no longer
        "SELECT directory, name FROM link WHERE inode=? AND role>1", (file.inode,)
    ):
        work.slots[directory, name] = None


def _revive(work: WorkingSet, file: InodeState, links: list[LinkState]) -> None:
    work.flush_links(links)
    removed = work.database.rows(
        "SELECT t.time, t.origin, t.link, t.vector FROM link l JOIN tombstone t ON t.link=l.link"
        " WHERE l.link=?1 AND l.inode=?1 UNION ALL"
        " SELECT t.time, t.origin, t.link, t.vector FROM link l JOIN tombstone t ON t.link=l.link"
        " WHERE l.inode=?1 AND l.inode<>l.link",
        (file.inode,),
    )
    if not removed:
        return
    _, _, link, vector = max(removed, key=lambda row: row[:3])
    unseen = vector is None  # nobody meant to remove the last link
    if vector is not None:
        seen = decode_vector(vector)
        unseen = any(not covers(seen, slot.stamp) for slot in siblings(work.slots_of(file.inode)))
    _set_revived(work, file, link if unseen else None)


def _set_revived(work: WorkingSet, file: InodeState, link: LinkId | None) -> None:
    for (before,) in work.database.rows(
        "SELECT link FROM link WHERE inode=? AND live=2", (file.inode,)
    ):
        state = work.link(before)
        assert state is not None
        if state.live == IMPLICIT and before != link:
            state.live = DEAD
            work.touched[before] = None
    if link is not None:
        state = work.link(link)
        assert state is not None
        state.live = IMPLICIT
        work.touched[link] = None


# -- directories ----------------------------------------------------------------------------------


def _settle_directories(work: WorkingSet, directories: list[InodeId]) -> None:
    broken = work.irregular.broken
    moved = [inode for inode in directories if work.link(LinkId(inode)) is not None]
    changed = list(moved)
    rooted = {ROOT_INODE}
    if moved and (broken or any(_closes_cycle(work, inode, rooted) for inode in moved)):
        changed += _break_cycles(work)
    for inode in changed:
        work.touched[LinkId(inode)] = None
    _settle_children(work)


def _closes_cycle(work: WorkingSet, start: InodeId, rooted: set[InodeId]) -> bool:
    """Whether walking up from `start` comes back; what hangs from the root joins `rooted`."""
    path: set[InodeId] = set()
    inode = start
    while inode not in rooted:
        if inode in path:
            return True
        path.add(inode)
        link = LinkId(inode)
        state = work.links.get(link)
        parent = (
            state.parent
            if state is not None
            else work.database.value("SELECT parent FROM link WHERE link=?", (link,))
        )
        if parent is None:
            return False
        inode = parent
    rooted |= path
    return False


def _break_cycles(work: WorkingSet) -> list[InodeId]:
    """Decide for all directories where cycles are cut; returns those for which that changed."""
    work.flush_links(work.links.values())
    work.flush_inodes()
    parents = {
        inode: (parent, Stamp(time, origin), previous)
        for inode, parent, time, origin, previous in work.database.rows(
            "SELECT i.inode, l.parent, l.time, l.origin, l.previous FROM inode i"
            " JOIN link l ON l.link=i.inode AND l.inode=i.inode WHERE i.kind=4"
        )
    }
    before = work.irregular.broken
    after = break_cycles(parents)
    changed = sorted(
        inode for inode in before.keys() | after.keys() if before.get(inode) != after.get(inode)
    )
    for inode in changed:
        work.link(LinkId(inode))  # read it while `before` still says whose child it counts as
        parent = after.get(inode)
        if parent is None:
            work.database.execute("DELETE FROM broken WHERE inode=?", (inode,))
        else:
            work.database.execute("INSERT OR REPLACE INTO broken VALUES(?,?)", (inode, parent))
    work.irregular.broken = after
    return changed


def effective_parent(work: WorkingSet, state: LinkState) -> InodeId:
    """The directory a link is in, after cycles are cut."""
    return work.irregular.broken.get(state.inode, state.parent)


def _settle_children(work: WorkingSet) -> None:
    """Count live children anew where links changed; directories live and die with the count."""
    pending: deque[InodeId] = deque()
    for link in list(work.touched):
        state = work.links[link]
        line = work.inode(state.inode)
        if line.is_directory:
            if link == LinkId(state.inode):  # a second link of a directory is nobody's
                pending.append(state.inode)
                if state.live:
                    _count_child(work, state, pending)
        else:
            _count_child(work, state, pending)
    while pending:
        inode = pending.popleft()
        line = work.inode(inode)
        if inode == ROOT_INODE or not line.is_directory:
            continue
        directory = work.link(LinkId(inode))
        if directory is None or directory.inode != inode:
            continue
        live = EXPLICIT if directory.is_explicit() else IMPLICIT if line.children > 0 else DEAD
        if live == directory.live:
            continue
        directory.live = live
        line.explicit = int(live != DEAD)
        work.touched[directory.link] = None
        if live == IMPLICIT:
            work.irregular.implicit.add(inode)
        else:
            work.irregular.implicit.discard(inode)
        _count_child(work, directory, pending)


def _count_child(work: WorkingSet, state: LinkState, pending: deque[InodeId]) -> None:
    parent = effective_parent(work, state) if state.live else None
    if parent == state.effective:
        return
    if state.effective is not None:
        work.inode(state.effective).children -= 1
        pending.append(state.effective)
    if parent is not None:
        work.inode(parent).children += 1
        pending.append(parent)
    state.effective = parent
