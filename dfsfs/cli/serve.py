"""Run a node with its faces: the control socket, and the mount if there is one.

The one place, beside `node`, where parts meet. Imported only in the process that serves, because
it imports trio and everything else. A node ends when its mount is unmounted or on SIGTERM and
SIGINT; ending is quick and nothing durable depends on it.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from dfsfs.admin import serve_control
from dfsfs.config import Config
from dfsfs.node import Node

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter when the loop wants it. The default of 5 ms would be
the latency of every request that meets a busy thread."""


def serve_node(
    config: Config,
    *,
    mountpoint: Path | None,
    mount_options: tuple[str, ...],
    ready: Callable[[str], None],
) -> None:
    """Run a node until it is told to end; `ready` gets what people should know when it answers.

    Raises:
        DfsError: it could not start.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if mountpoint is None:
        trio.run(_serve_storage, config, ready)
    else:
        trio.run(_serve_mount, config, mountpoint, mount_options, ready)


async def _serve_storage(config: Config, ready: Callable[[str], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            async with Node(config) as node:
                await nursery.start(serve_control, node, config.control_path, {})
                ready(_summary(config, node, None))
                await trio.sleep_forever()


async def _cancel_on_signal(signals: object, scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _serve_mount(
    config: Config, mountpoint: Path, options: tuple[str, ...], ready: Callable[[str], None]
) -> None:
    from dfsfs.fuse import serve

    async with Node(config) as node, trio.open_nursery() as nursery:
        facts = {"mountpoint": str(mountpoint)}
        await nursery.start(serve_control, node, config.control_path, facts)
        await serve(
            node.filesystem,
            mountpoint,
            options,
            ready=lambda: ready(_summary(config, node, mountpoint)),
        )
        nursery.cancel_scope.cancel()
