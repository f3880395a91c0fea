"""Make the kernel forget, from threads of their own.

The kernel takes locks to forget an entry or pages, and a handler of ours may be what holds them. On
the loop that would be a deadlock for ever (the handler could never return), so entries and pages
are invalidated in threads, and the loop never waits for one without a deadline. Attributes need no
lock: they are invalidated at once, on the loop.

Two lanes. What is asked for an inode on which a handler is waiting (`busy`) must wait for it, so it
has a lane of its own, which nobody waits for; else two mounts, each in a handler that waits for the
other to forget, would wait for each other. The other lane is what `settled` waits for; what is in
it when a handler begins to wait on its inode is excused. The kernel looks such names up again
before it uses them (`epoch`), so nobody sees an old one. See decision 16.

Bounded: equal requests merge while they wait, and in a lane with more than
`limits.INVALIDATIONS_MAX` all names become one look at everything (`epoch`). Pages stay, one
request for each file the kernel knows. Nothing is given up: the kernel would believe what it has
for as long as `limits.KERNEL_CACHE_S`.

Threads share with the loop only the two lanes, behind one lock that is never held while the kernel
is called. A thread stuck in the kernel ends when the mount does.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

import pyfuse3
import trio

from dfsfs.base.limits import (
    INVALIDATION_PATIENCE_S,
    INVALIDATION_TIMEOUT_S,
    INVALIDATIONS_MAX,
)
from dfsfs.base.types import InodeId
from dfsfs.fuse.epoch import Epoch

log = logging.getLogger(__name__)

Target = tuple[InodeId, bytes | None]  # a name in a directory, or (None) the pages of a file
LANE_THREADS_MAX = 32  # when some of them are in the kernel for long
LANE_THREADS = 2  # so that one request which turns out to be busy does not hold up the others


class Lane:
    """Requests in order, and the threads that carry them out with `act`."""

    def __init__(
        self,
        name: str,
        act: Callable[[Target], None],
        look_at_all: Callable[[], bool],
        *,
        waiting_max: int = INVALIDATIONS_MAX,
    ) -> None:
        """Belongs to the loop it is made in.

        `look_at_all` has the kernel look up every name before it believes it, in place of names
        that wait when there are more than `waiting_max`; False if it cannot. Then all are told: a
        kernel that was not would go on with what it knows.
        """
        self._act = act
        self._look_at_all = look_at_all
        self._waiting_max = waiting_max
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._ready = threading.Semaphore(0)
        self._waiting: OrderedDict[Target, int] = OrderedDict()  # the number of its oldest request
        self._running: dict[Target, int] = {}
        self._asked = 0
        self._excused: set[Target] = set()  # of `_running`: nobody waits for them
        self._waiters: list[tuple[int, trio.Event]] = []  # of the loop
        self._open = True
        self.merged = 0  # names that became one look at all
        self._name = name
        self._threads = 0
        for _ in range(LANE_THREADS):
            self._start()

    def _start(self) -> None:
        with self._lock:
            self._threads += 1
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def ask(self, target: Target) -> None:
        """Ask for one more invalidation."""
        with self._lock:
            self._asked += 1
            new = target not in self._waiting
            # Keeps its first number: whoever waited for that has not been served yet.
            self._waiting.setdefault(target, self._asked)
            too_many = len(self._waiting) > self._waiting_max
        if new:
            self._ready.release()
        if too_many and self._look_at_all():
            self._merge_names()

    def _merge_names(self) -> None:
        """Every name will be looked up again: none has to be told."""
        with self._lock:
            names = [target for target in self._waiting if target[1] is not None]
            for target in names:
                del self._waiting[target]
            self.merged += len(names)
            waiters = self._take_done()
        for event in waiters:
            event.set()

    @property
    def waiting(self) -> int:
        """Requests no thread has taken up yet."""
        return len(self._waiting)

    def is_running(self, inode: InodeId) -> bool:
        """Whether the kernel is being told something of this inode right now."""
        if not self._running:
            return False
        with self._lock:
            return any(target[0] == inode for target in self._running)

    def pending(self, target: Target) -> bool:
        """Whether it has not reached the kernel yet."""
        with self._lock:
            return target in self._waiting or target in self._running

    async def settled(self) -> None:
        """Wait for everything asked for until now."""
        with self._lock:
            if not self._waiting and self._running.keys() <= self._excused:
                return
            event = trio.Event()
            self._waiters.append((self._asked, event))
        await event.wait()

    def withdraw(self, inode: InodeId) -> list[Target]:
        """Nobody is to wait for requests of this inode any more.

        Those that have not begun are returned and forgotten; for each that is in the kernel, and
        may stay there, there is another thread now.
        """
        if not self._waiting and not self._running:  # a look without the lock: nearly always so
            return []
        with self._lock:
            withdrawn = [target for target in self._waiting if target[0] == inode]
            for target in withdrawn:
                del self._waiting[target]
            stuck = [
                target
                for target in self._running
                if target[0] == inode and target not in self._excused
            ]
            self._excused.update(stuck)
            waiters = self._take_done()
        for event in waiters:
            event.set()
        for _ in stuck:
            if self._threads < LANE_THREADS_MAX:
                self._start()
        return withdrawn

    def close(self) -> None:
        """Let the threads end; those in the kernel do when it lets them."""
        self._open = False
        for _ in range(self._threads):
            self._ready.release()

    def _run(self) -> None:
        while True:
            self._ready.acquire()
            if not self._open:
                return
            with self._lock:
                # The same target is never in two threads: the second would report too early.
                target = next((item for item in self._waiting if item not in self._running), None)
                if target is None:
                    continue
                self._running[target] = self._waiting.pop(target)
            self._act(target)
            with self._lock:
                del self._running[target]
                self._excused.discard(target)
                again = target in self._waiting
                waiters = self._take_done()
                surplus = self._threads > LANE_THREADS
                self._threads -= surplus
            if again:
                self._ready.release()
            for event in waiters:
                self._wake(event.set)
            if surplus:
                return

    def _take_done(self) -> list[trio.Event]:
        """The waiters before whose requests nothing is left. Needs the lock."""
        if not self._waiters:
            return []
        running = (n for target, n in self._running.items() if target not in self._excused)
        left = [*self._waiting.values(), *running]
        oldest = min(left, default=self._asked + 1)
        done = [event for number, event in self._waiters if number < oldest]
        self._waiters = [waiter for waiter in self._waiters if waiter[0] >= oldest]
        return done

    def _wake(self, function: Callable[[], None]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            self._open = False


def _invalidate(target: Target) -> None:
    inode, name = target
    try:
        if name is None:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=False)
        else:
            pyfuse3.invalidate_entry(pyfuse3.InodeT(inode), name)
    except FileNotFoundError:
        pass  # the kernel does not know it: as good as forgotten
    except OSError as error:
        log.info("the kernel did not forget %r: %s", target, error)


class KernelInvalidator:
    """Implements `vfs.Invalidator` for the one mount of this process. Loop only."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._idle = Lane("dfs-invalidate", _invalidate, epoch.advance)
        self._busy = Lane("dfs-invalidate-busy", _invalidate, epoch.advance)
        self.timeouts = 0

    @property
    def waiting(self) -> int:
        """Requests the kernel has not been told yet."""
        return self._idle.waiting + self._busy.waiting

    def entry(self, directory: InodeId, name: bytes, *, busy: bool) -> None:
        """Forget what a name is."""
        if busy:
            self._epoch.advance()
        (self._busy if busy else self._idle).ask((directory, name))

    def busy(self, inode: InodeId) -> None:
        """What was asked for here is not waited for any more, and looked up again before use."""
        withdrawn = self._idle.withdraw(inode)
        if withdrawn or self._idle.is_running(inode):
            self._epoch.advance()
        for target in withdrawn:
            self._busy.ask(target)

    def attributes(self, inode: InodeId) -> bool:
        """Forget attributes, now."""
        try:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=True)
        except FileNotFoundError:
            # We have answered a lookup of it, so either it was forgotten, or the process that asked
            # has not run yet to take the answer in; then it comes to be known with old attributes.
            if not self._epoch.advance():
                self._idle.ask((inode, None))
            return False
        except OSError:
            pass  # the mount is gone
        return True

    def pages(self, inode: InodeId, *, busy: bool) -> bool:
        """Forget attributes and bytes; attributes now."""
        told = self.attributes(inode)
        (self._busy if busy else self._idle).ask((inode, None))
        return told

    def pages_pending(self, inode: InodeId) -> bool:
        """Whether the kernel may still have old bytes."""
        target = (inode, None)
        return self._idle.pending(target) or self._busy.pending(target)

    async def settled(self) -> None:
        """Wait for everything not busy that was asked for until now; not for long."""
        patience_s = INVALIDATION_PATIENCE_S if self._epoch.known else INVALIDATION_TIMEOUT_S
        with trio.move_on_after(patience_s) as scope:
            await self._idle.settled()
        if scope.cancelled_caught:
            # A process may hold a directory's lock and wait for that of another, in which a handler
            # of ours waits: only the kernel knows. Names are safe by the epoch; pages, because
            # whoever opens a file while its are pending has them dropped.
            self.timeouts += 1
            if not self._epoch.advance():
                log.info("the kernel takes longer than %.1f s to forget", patience_s)

    def close(self) -> None:
        """The mount is gone."""
        self._idle.close()
        self._busy.close()
