"""Mount, run, unmount.

`serve` mounts a filesystem and returns when it is unmounted: by SIGTERM or SIGINT to this process,
by `fusermount3 -u`, or by umount(8). A mount is process-wide in pyfuse3: one for each process.

What is written and not committed when it ends is committed first. A process that dies leaves a
mountpoint behind that answers ENOTCONN to everybody, at once (`Watchdog`); the next mount there
clears it.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pyfuse3
import trio

from dfsfs.base.errors import Misconfigured
from dfsfs.base.limits import HANDLERS_MAX
from dfsfs.fuse.connection import connection_of
from dfsfs.fuse.epoch import Epoch
from dfsfs.fuse.invalidate import KernelInvalidator
from dfsfs.fuse.mounts import check_mountpoint
from dfsfs.fuse.operations import Operations
from dfsfs.fuse.tuning import tune
from dfsfs.fuse.watchdog import Watchdog
from dfsfs.runtime import CallTable
from dfsfs.vfs import Filesystem

log = logging.getLogger(__name__)

_OURS = frozenset({"default_permissions", "fsname=dfs", "subtype=dfs"})
NO_EPOCH = "no_epoch"  # an option of ours: as on a kernel before 6.16, for tests
_REFUSED = ("fsname", "subtype", "max_read", "rootmode", "user_id", "group_id", "fd")


def mount_options(options: Iterable[str]) -> set[str]:
    """What pyfuse3 is given for `-o` options.

    Permission bits are always checked by the kernel (`default_permissions`), which alone knows the
    caller's groups and capabilities. Root's mounts are for everybody, as other filesystems are.

    Raises:
        Misconfigured: an option that would break the mount.
    """
    chosen = set(options) - {"rw", "atime", "relatime", "defaults", NO_EPOCH}
    for option in chosen:
        if option.partition("=")[0] in _REFUSED or not option.isascii():
            raise Misconfigured(f"mount option {option!r} cannot be set")
    if os.geteuid() == 0:
        chosen.add("allow_other")
    return chosen | _OURS


async def serve(
    filesystem: Filesystem,
    mountpoint: Path,
    options: Iterable[str] = (),
    *,
    calls: CallTable,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Mount `filesystem`, whose `run` is running, and serve it until it is unmounted.

    `calls` counts what the kernel asks; `ready` is called when the mount answers.

    Raises:
        Misconfigured: it cannot be mounted there, or not with these options.
    """
    options = frozenset(options)
    mountpoint = await trio.to_thread.run_sync(check_mountpoint, mountpoint)
    operations = Operations(filesystem, calls)
    try:
        pyfuse3.init(operations, str(mountpoint), mount_options(options))
    except RuntimeError as error:
        hint = "is /dev/fuse there and open to you, and fuse3 installed?"
        if os.geteuid() != 0 and options & {"allow_other", "allow_root"}:
            hint = "does /etc/fuse.conf say user_allow_other?"
        raise Misconfigured(f"cannot mount at {mountpoint}: {error} ({hint})") from error
    watchdog = Watchdog()
    try:
        connection = await trio.to_thread.run_sync(connection_of, mountpoint)
        watchdog.start(connection)
        invalidator = KernelInvalidator(Epoch(wanted=NO_EPOCH not in options))
        filesystem.attach(invalidator, atime="noatime" not in options)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(_end_on_signal)
                nursery.start_soon(operations.callers.run)
                nursery.start_soon(_announce, mountpoint, connection, ready)
                await pyfuse3.main(min_tasks=1, max_tasks=HANDLERS_MAX)
                await filesystem.commit_all()
                nursery.cancel_scope.cancel()
        finally:
            invalidator.close()
            filesystem.detach()
    finally:
        pyfuse3.close(unmount=True)
        watchdog.end()  # what still waits for an answer is given up


async def _announce(mountpoint: Path, connection: Path | None, ready: Callable[[], None]) -> None:
    # In a thread: the first request to the mount must find the loop free.
    await trio.to_thread.run_sync(tune, mountpoint, connection, abandon_on_cancel=True)
    ready()


async def _end_on_signal(
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            pyfuse3.terminate()
            return
