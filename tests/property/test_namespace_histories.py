"""Random histories of several replicas: partitions, skewed clocks, any order of exchange, restarts.

After every step the tree of the replica that did something equals the tree the reference model
makes of its rows, and `check` finds nothing. Every verb has exactly its POSIX effect on the tree
its caller saw. In the end, when all have everything, all trees are equal and nothing written is
lost.
"""

import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfsfs.base.errors import DfsError
from dfsfs.base.types import ROOT_INODE, ContentRef, FileKind, InodeId, NodeId, Origin
from dfsfs.crdt import HybridClock, dominates
from dfsfs.namespace import (
    SCHEMA,
    SCHEMA_VERSION,
    AttributeChanges,
    Change,
    Inode,
    Namespace,
    Totals,
)
from dfsfs.namespace.rows import ContentRow, Row, decode_snapshot
from dfsfs.runtime import Database
from tests.namespace_model import View

NAMES = [b"a", b"b", b"c.txt", b"d", b"e"]
Tree = dict[bytes, tuple[object, ...]]
WEIGHTS = {
    "mixed": [6, 6, 8, 4, 3, 9, 3, 2, 1, 1, 2, 2],
    "directories": [1, 8, 1, 0, 2, 25, 0, 0, 0, 2, 0, 0],
    "contents": [4, 1, 14, 4, 1, 7, 4, 1, 0, 1, 2, 4],
}
VERBS = [
    "create", "mkdir", "write", "unlink", "rmdir", "rename", "link", "set_attributes", "symlink",
    "exchange", "set_xattr", "write_open",
]  # fmt: skip


def name_of(replica: "Replica") -> NodeId:
    """What the others know it by, whatever the incarnation."""
    return NodeId(b"%d" % replica.number)


def node_name(origin: Origin) -> str:
    return f"n{origin}"


class Clock:
    """Wall clocks of a world, each off by something."""

    def __init__(self, world: "World", skew_us: int) -> None:
        self._world = world
        self._skew_us = skew_us

    def wall_ns(self) -> int:
        return (self._world.now_us + self._skew_us) * 1000


class World:
    """Time."""

    now_us = 1_000_000_000_000_000


class Replica:
    """A namespace and the oracle's view of its rows."""

    def __init__(self, origin: int, world: World, skew_us: int, path: Path | None) -> None:
        self.number = origin  # stays, whatever the incarnation
        self.origin = Origin(origin)
        self._clock = Clock(world, skew_us)
        self._path = path
        self.changes: list[Change] = []
        self._database = self._open()
        self.namespace = self._start()

    def _open(self) -> Database:
        return Database(self._path, schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=1 << 20)

    def _start(self) -> Namespace:
        namespace = Namespace(
            self._database,
            origin=self.origin,
            clock=HybridClock(self._clock),
            node_name=node_name,
        )
        namespace.subscribe(self.changes.append)
        return namespace

    def restart(self) -> None:
        if self._path is not None:
            self._database.close()
            self._database = self._open()
        self.namespace = self._start()

    def save(self) -> None:
        """Everything so far is on stable storage."""
        assert self._path is not None
        self._database.close()  # the last connection folds the log into the file
        shutil.copy(self._path, self._saved())
        self.restart_from_file()

    def lose_tail(self) -> None:
        """The power fails: what came after `save` is gone, here. A new incarnation begins."""
        assert self._path is not None
        self._database.close()
        if self._saved().exists():
            shutil.copy(self._saved(), self._path)
        else:
            self._path.unlink()
        self.origin = Origin(self.origin + 10)
        self.changes.clear()
        self.restart_from_file()

    def restart_from_file(self) -> None:
        self._database = self._open()
        self.namespace = self._start()

    def _saved(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(".saved")

    def close(self) -> None:
        self._database.close()

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        cursor = None
        while True:
            page = self.namespace.snapshot(cursor, bytes_max=20_000)
            rows += decode_snapshot(page.rows)
            cursor = page.next
            if cursor is None:
                return rows

    def view(self) -> View:
        return View(self.rows(), node_name)

    def tree(self) -> Tree:
        """The whole tree by the public interface, in the terms of the model."""
        shown: Tree = {}
        work = [(ROOT_INODE, b"")]
        while work:
            directory, path = work.pop()
            entries = self.namespace.list(directory, None, 10_000)
            assert [entry.name for entry in entries] == [
                name for name, _, _ in self.namespace.names(directory)
            ]
            assert self.namespace.has_children(directory) == bool(entries)
            for entry in entries:
                inode = entry.inode
                here = path + b"/" + entry.name
                assert self.namespace.lookup(directory, entry.name) == inode
                assert self.namespace.get(inode.inode) == inode
                shown[here] = stat(inode)
                if inode.kind == FileKind.DIRECTORY:
                    assert self.namespace.parent(inode.inode) == directory
                    assert self.namespace.path(inode.inode) == here[1:]
                    work.append((inode.inode, here))
        return shown

    def check_changes(self, before: Tree, after: Tree) -> None:
        """What was announced since covers every difference: kernels cache what is not."""
        changes, self.changes[:] = list(self.changes), []
        entries = {entry for change in changes for entry in change.entries}
        attributes = {inode for change in changes for inode in change.attributes}
        directories = {inode for change in changes for inode in change.directories}
        contents: dict[InodeId, ContentRef] = {}
        for change in changes:
            contents.update(change.contents)
        bound = [bindings(before), bindings(after)]
        reachable = [{what[1] for what in tree.values()} | {ROOT_INODE} for tree in (before, after)]
        for place in bound[0].keys() | bound[1].keys():
            in_sight = all(place[0] in inodes for inodes in reachable)
            if in_sight and bound[0].get(place) != bound[1].get(place):
                assert place in entries or place[0] in directories, place
        known = {what[1]: what for what in before.values()}
        for what in after.values():
            old = known.get(what[1], what)
            if (old[2], old[5:]) != (what[2], what[5:]):
                assert what[1] in attributes, (old, what)
            if old[3] != what[3]:
                assert contents[what[1]] == what[3]  # type: ignore[index]

    def check(self) -> Tree:
        """Compare with the oracle."""
        view = self.view()
        wanted, found = view.tree(), self.tree()
        copies = {path for path, what in wanted.items() if len(what) == 5}
        compared = found | {path: found[path][:5] for path in copies & found.keys()}
        assert compared == wanted, "\n".join(
            f"  {path!r}: {compared.get(path)} instead of {wanted.get(path)}"
            for path in sorted(wanted.keys() | compared.keys())
            if compared.get(path) != wanted.get(path)
        )
        assert self.namespace.totals() == totals(view)
        assert self.namespace.check() == []
        return found


def bindings(tree: Tree) -> dict[tuple[object, bytes], object]:
    """What each name of each directory stands for."""
    inodes: dict[bytes, object] = {path: what[1] for path, what in tree.items()}
    inodes[b""] = ROOT_INODE
    found = {}
    for path, what in tree.items():
        parent, _, name = path.rpartition(b"/")
        found[inodes[parent], name] = what[1]
    return found


def totals(view: View) -> Totals:
    sizes = {}
    for inode, node in view.nodes.items():
        if view.nlink[inode] and node.kind != FileKind.DIRECTORY:
            found = view.siblings.get(inode, [])
            regular = node.kind == FileKind.REGULAR and found
            sizes[inode] = found[0].content.size if regular else 0
    shown = {
        entry.inode
        for entries in view.directories.values()
        for entry in entries.values()
        if entry.kind == FileKind.DIRECTORY
    }
    return Totals(len(sizes), 1 + len(shown), sum(sizes.values()))


def stat(inode: Inode) -> tuple[object, ...]:
    return (
        inode.kind,
        inode.inode,
        inode.nlink,
        inode.content,
        inode.target,
        (inode.mode, inode.uid, inode.gid),
        inode.mtime_ns,
        inode.ctime_ns,
    )


def plain(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    """What a POSIX effect is stated in: kind, bytes, target."""
    return {path: (what[0], what[3], what[4]) for path, what in tree.items()}


def expected(before: Tree, verb: str, paths: list[bytes], new: tuple[object, ...]) -> Tree:
    """The tree after a verb, by POSIX."""
    tree = dict(plain(before))
    if verb in ("create", "mkdir", "symlink"):
        tree[paths[0]] = new
    elif verb in ("unlink", "rmdir"):
        del tree[paths[0]]
    elif verb == "link":
        tree[paths[1]] = tree[paths[0]]
    elif verb == "write":
        inode = before[paths[0]][1]
        for path, what in before.items():
            if what[1] == inode and what[0] == FileKind.REGULAR:
                tree[path] = new
    elif verb in ("rename", "exchange") and before.get(paths[1], (0, 0))[1] != before[paths[0]][1]:
        ours = _take(tree, paths[0])
        theirs = _take(tree, paths[1])
        tree.update({paths[1] + rest: what for rest, what in ours.items()})
        if verb == "exchange":
            tree.update({paths[0] + rest: what for rest, what in theirs.items()})
    return tree


def _take(tree: Tree, top: bytes) -> Tree:
    taken = {
        path[len(top) :]: what
        for path, what in tree.items()
        if path == top or path.startswith(top + b"/")
    }
    for rest in taken:
        del tree[top + rest]
    return taken


class History:
    """One random run."""

    def __init__(self, seed: int, tmp_path: Path | None = None) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.on_disk = tmp_path is not None
        skews = [0, 0, -500_000, 500_000, 3_000_000]
        self.replicas = [
            Replica(
                origin,
                self.world,
                self.random.choice(skews),
                None if tmp_path is None else tmp_path / f"{seed}-{origin}.db",
            )
            for origin in range(1, self.random.randint(3, 6))
        ]
        self.weights = WEIGHTS[self.random.choice(sorted(WEIGHTS))]
        self.sync_share = self.random.choice([0.15, 0.25, 0.35])
        self.written = 0
        self.owed: set[ContentRef] = set()  # contents whose loss nobody has chosen

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.world.now_us += self.random.randrange(1, 900_000)
            replica = self.random.choice(self.replicas)
            dice = self.random.random()
            if dice < self.sync_share:
                # Where the power may fail, rounds are complete: a batch leaves out rows that the
                # sender has newer ones of, and those must not be lost before they are passed on.
                source = self.random.choice(self.replicas)
                self.exchange(replica, source, everything=self.on_disk)
            elif self.on_disk and dice < self.sync_share + 0.04:
                if self.random.random() < 0.5:
                    replica.save()
                else:
                    self.lose_tail(replica)
                replica.check()
            elif dice < self.sync_share + 0.06:
                replica.restart()
                replica.check()
            else:
                self.step(replica)
        self.converge()

    def lose_tail(self, replica: Replica) -> None:
        replica.lose_tail()
        left = {
            row.content
            for other in self.replicas
            for row in other.rows()
            if isinstance(row, ContentRow)
        }
        self.owed &= left  # what nobody else had is lost with the disk's cache

    # -- exchange -----------------------------------------------------------------------------

    def exchange(self, to: Replica, source: Replica, *, everything: bool = False) -> None:
        """Some batches, of some origins, in some order, some twice."""
        if to is source:
            return
        gaps = to.namespace.gaps
        sent = to.namespace.have()
        again: dict[Origin, tuple[int, int]] = {}
        if gaps.refilling and not dominates(source.namespace.have(), gaps.refill().reach):
            again = dict(gaps.refill().ranges)
        while True:
            batches = []
            for origin in self.random.sample(
                sorted(source.namespace.have()), len(source.namespace.have())
            ):
                after, until = again.get(origin, (0, 0))
                batch = source.namespace.feed(
                    origin,
                    after if after < until else sent.get(origin, 0),
                    bytes_max=self.random.choice([1, 300, 100_000]),
                )
                if batch is not None:
                    batches.append(batch)
            if not batches:
                gaps.lost(name_of(source))  # it has no more to give
                return
            if not everything:
                batches = batches[: self.random.randint(1, len(batches))]
                batches += batches[: self.random.randint(0, 1)]
            before = to.tree()
            gaps.note(name_of(source), source.namespace.gaps.told())
            to.namespace.apply(batches)
            for batch in batches:
                sent[batch.origin] = max(batch.upto, sent.get(batch.origin, 0))
                again[batch.origin] = (batch.upto, again.get(batch.origin, (0, 0))[1])
            to.check_changes(before, to.check())
            if not everything and self.random.random() < 0.3:
                gaps.lost(name_of(source))
                return

    def converge(self) -> None:
        self.agree(self.random.sample(self.replicas, self.random.randint(2, len(self.replicas))))
        for to in self.replicas * 2:
            for source in self.replicas:
                self.exchange(to, source, everything=True)
        trees = [replica.check() for replica in self.replicas]
        rows = [sorted(map(repr, replica.rows())) for replica in self.replicas]
        assert all(others == rows[0] for others in rows)
        assert all(tree == trees[0] for tree in trees)
        shown = {what[3] for what in trees[0].values()}
        assert not self.owed - shown, "lost"
        self.load_newcomer(trees[0])

    def agree(self, some: list[Replica]) -> None:
        """They agree on one tree without the others, who were perhaps giving them rows."""
        for to in some * 2:
            for source in some:
                self.exchange(to, source, everything=True)
        trees = [replica.check() for replica in some]
        assert all(tree == trees[0] for tree in trees), "they differ while others are away"

    def load_newcomer(self, tree: Tree) -> None:
        """A replica made from a snapshot shows the same."""
        source = self.replicas[0]
        newcomer = Replica(77, self.world, 0, None)
        have = source.namespace.have()
        cursor = None
        while True:
            page = source.namespace.snapshot(cursor, bytes_max=self.random.choice([500, 5000]))
            newcomer.namespace.load(page)
            cursor = page.next
            if cursor is None:
                break
        newcomer.namespace.finish_load(have)
        assert newcomer.check() == tree
        assert newcomer.namespace.have() == have
        newcomer.close()

    # -- verbs --------------------------------------------------------------------------------

    def step(self, replica: Replica) -> None:
        before = replica.tree()
        paths = sorted(before)
        directories = [b""] + [path for path in paths if before[path][0] == FileKind.DIRECTORY]

        def new_path() -> bytes:
            return self.random.choice(directories) + b"/" + self.random.choice(NAMES)

        def any_path() -> bytes:
            return self.random.choice(paths) if paths and self.random.random() < 0.9 else new_path()

        verb = self.random.choices(VERBS, self.weights)[0]
        self.written += 1
        if verb == "write_open":
            self.write_open(replica, before)
            return
        unique = self.random.random() < 0.85
        data = b"u%d" % self.written if unique else self.random.choice([b"same", b"equal", b""])
        content = ContentRef(len(data), None, data)
        new: tuple[object, ...] = (FileKind.REGULAR, ContentRef(0), b"")
        if verb in ("create", "mkdir", "symlink"):
            chosen = [new_path()]
            if verb == "mkdir":
                new = (FileKind.DIRECTORY, ContentRef(0), b"")
            elif verb == "symlink":
                new = (FileKind.SYMLINK, ContentRef(0), self.random.choice([b"x", b"y"]))
        elif verb in ("link", "rename", "exchange"):
            chosen = [any_path(), new_path() if self.random.random() < 0.7 else any_path()]
        else:
            chosen = [any_path()]
            new = (FileKind.REGULAR, content, b"")
        try:
            self.act(replica.namespace, verb, chosen, new)
        except DfsError:
            assert replica.tree() == before
            return
        after = replica.check()
        replica.check_changes(before, after)
        assert plain(after) == expected(before, verb, chosen, new), (verb, chosen)
        self._account(before, after)

    def write_open(self, replica: Replica, before: Tree) -> None:
        """Write by number, as the holder of an open file does, whatever became of its names."""
        inodes = [
            inode
            for inode, node in sorted(replica.view().nodes.items())
            if node.kind == FileKind.REGULAR
        ]
        if not inodes:
            return
        inode = InodeId(self.random.choice(inodes))
        data = b"u%d" % self.written
        content = ContentRef(len(data), None, data)
        assert replica.namespace.write(inode, content, mtime_ns=1).content == content
        after = replica.check()
        replica.check_changes(before, after)
        if replica.view().live.isdisjoint(replica.view().of_inode[inode]):
            assert after == before
            replica.namespace.drop_orphan(inode)
        else:
            assert content in {what[3] for what in after.values()}
            self._account(before, after)

    def _account(self, before: Tree, after: Tree) -> None:
        """Contents that a verb showed to its caller and took away are gone by intent."""
        places: list[dict[object, set[object]]] = [{}, {}]
        for tree, place in zip((before, after), places, strict=True):
            for what in tree.values():
                if what[0] == FileKind.REGULAR:
                    place.setdefault(what[3], set()).add(what[1])
        for content, inodes in places[0].items():
            if len(inodes) > len(places[1].get(content, ())):
                self.owed.discard(content)
        self.owed |= {
            content
            for content in places[1]
            if isinstance(content, ContentRef)
            and (content.inline or b"").startswith(b"u")
            and content not in places[0]
        }

    def act(
        self, namespace: Namespace, verb: str, paths: list[bytes], new: tuple[object, ...]
    ) -> None:
        parent, name = resolve_parent(namespace, paths[0])
        if verb in ("create", "mkdir", "symlink"):
            namespace.create(
                parent,
                name,
                kind=FileKind(new[0]),  # type: ignore[arg-type]
                mode=0o644,
                uid=self.random.randrange(3),
                gid=0,
                target=new[2],  # type: ignore[arg-type]
            )
        elif verb == "write":
            inode = namespace.lookup(parent, name).inode
            namespace.write(inode, new[1], mtime_ns=self.random.randrange(1 << 50))  # type: ignore[arg-type]
        elif verb == "unlink":
            removed = namespace.unlink(parent, name)
            assert removed.nlink == namespace.get(removed.inode).nlink
        elif verb == "rmdir":
            assert namespace.rmdir(parent, name).nlink == 0
        elif verb == "set_attributes":
            changes = self.random.choice(
                [
                    AttributeChanges(mode=0o600),
                    AttributeChanges(uid=7),
                    AttributeChanges(mtime_ns=9),
                ]
            )
            namespace.set_attributes(namespace.lookup(parent, name).inode, changes)
        elif verb == "set_xattr":
            inode = namespace.lookup(parent, name).inode
            namespace.set_xattr(inode, b"user.x", b"%d" % self.written)
            assert namespace.get_xattr(inode, b"user.x") == b"%d" % self.written
            assert namespace.list_xattrs(inode) == [b"user.x"]
        else:
            new_parent, new_name = resolve_parent(namespace, paths[1])
            if verb == "link":
                namespace.link(namespace.lookup(parent, name).inode, new_parent, new_name)
            else:
                namespace.rename(parent, name, new_parent, new_name, exchange=verb == "exchange")


def resolve_parent(namespace: Namespace, path: bytes) -> tuple[InodeId, bytes]:
    *parts, name = path[1:].split(b"/")
    inode = ROOT_INODE
    for part in parts:
        inode = namespace.lookup(inode, part).inode
    return inode, name


def run(seed: int, steps: int, tmp_path: Path | None = None) -> History:
    history = History(seed, tmp_path)
    history.run(steps)
    for replica in history.replicas:
        replica.close()
    return history


@settings(
    max_examples=int(os.environ.get("NAMESPACE_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 1 << 40))
def test_histories_converge_and_match_the_model(seed: int) -> None:
    run(seed, 40)


@pytest.mark.parametrize("seed", [*range(8), 8030])
def test_known_histories(seed: int) -> None:
    run(seed, 60)


@pytest.mark.parametrize("seed", range(4))
def test_histories_on_disk_survive_restarts_and_power_loss(tmp_path: Path, seed: int) -> None:
    run(seed, 60, tmp_path)
