"""Run a node with its faces: the control socket, and the mount if there is one.

The one place, beside `node`, where parts meet. Imported only in the process that serves, because
it imports trio and everything else. A node ends when its mount is unmounted or on SIGTERM and
SIGINT; ending is quick and nothing durable depends on it.
"""

import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio

from dfsfs.admin import serve_control
from dfsfs.base.limits import PREDECESSOR_TIMEOUT_S
from dfsfs.config import Config, parse_address
from dfsfs.fuse import serve
from dfsfs.node import Node
from dfsfs.runtime import DirectoryLock, ungrouped

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
    with ungrouped():
        if mountpoint is None:
            trio.run(_serve_storage, config, ready)
        else:
            trio.run(_serve_mount, config, mountpoint, mount_options, ready)


async def _serve_storage(config: Config, ready: Callable[[str], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            # Before the node is there: joining may be what somebody wants to end.
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            await _wait_for_predecessor(config)
            async with Node(config) as node:
                await _serve_operator(nursery, node, {})
                ready(_summary(node, mountpoint=None))
                try:
                    await trio.sleep_forever()
                finally:
                    node.warn_of_stop()


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _serve_mount(
    config: Config, mountpoint: Path, options: tuple[str, ...], ready: Callable[[str], None]
) -> None:
    await _wait_for_predecessor(config)
    async with Node(config) as node, trio.open_nursery() as nursery:
        await _serve_operator(nursery, node, {"mountpoint": str(mountpoint)})
        await serve(
            node.filesystem,
            mountpoint,
            options,
            calls=node.calls,
            ready=lambda: ready(_summary(node, mountpoint=mountpoint)),
        )
        node.warn_of_stop()
        nursery.cancel_scope.cancel()


async def _serve_operator(nursery: trio.Nursery, node: Node, facts: dict[str, str]) -> None:
    """Serve the control socket, and metrics if they are wanted."""
    if node.config.metrics is not None:
        # Here, because the library takes a moment and two MiB from whoever has no use for it.
        from dfsfs.admin.metrics import serve_metrics

        host, port = node.config.metrics.host, node.config.metrics.port
        facts["metrics"] = await nursery.start(serve_metrics, node, host, port)
    await nursery.start(serve_control, node, node.world, node.config.control_path, facts)


async def _wait_for_predecessor(config: Config) -> None:
    """Give a node that was just unmounted the moment it needs to close its state.

    `fusermount3 -u` returns when the mount is gone, which is before the node is; a script that
    mounts again at once means no second node. If one runs and stays, `Node` says so.
    """
    lock = DirectoryLock(config.state)
    with trio.move_on_after(PREDECESSOR_TIMEOUT_S):
        while lock.is_held_elsewhere():  # noqa: ASYNC110 - the kernel tells nobody of a free lock
            await trio.sleep(0.02)


def _summary(node: Node, *, mountpoint: Path | None) -> str:
    """What a person needs next: where it is, how another machine joins, how to end it."""
    config = node.config
    addresses = [url.partition("://")[2] for url in node.status()["node"]["addresses"]]
    reachable = [address for address in addresses if not _is_loopback(address)]
    address = (reachable or addresses)[0]
    program = "dfs node" if mountpoint is None else f"dfs-mount {shlex.quote(str(mountpoint))}"
    key = "--insecure" if config.insecure else f"--key {shlex.quote(config.key_path.name)}"
    lines = [f"{config.name} listens at {', '.join(addresses)}"]
    if mountpoint is not None:
        lines = [f"mounted at {mountpoint}", *lines]
    if config.insecure:
        lines.append(f"another on this machine joins with:  {program} --bootstrap {address} {key}")
    else:
        lines.append(f"another machine joins with a copy of {config.key_path}:")
        lines.append(f"    {program} --bootstrap {address} {key}")
    if mountpoint is None:
        lines.append(f"end it with:  kill {os.getpid()}")
    else:
        lines.append(f"unmount with:  fusermount3 -u {shlex.quote(str(mountpoint))}")
    return "\n".join(lines)


def _is_loopback(address: str) -> bool:
    return parse_address(address).is_loopback
