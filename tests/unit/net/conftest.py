"""Nodes for the tests of net: endpoints on a network in memory."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from dfsfs.base.types import NodeId
from dfsfs.net import Endpoint, Session
from dfsfs.runtime import RealWorld
from dfsfs.testing.network import LinkProfile, SimNetwork

GENEROUS_S = 20
NETWORK = b"n" * 16


def node_id(name: str) -> NodeId:
    """Ids that sort as the names do."""
    return NodeId(name.encode().ljust(32, b"."))


class Net:
    """Endpoints by name, on one simulated network, running in the nursery of a test."""

    def __init__(self, nursery: trio.Nursery, network: SimNetwork) -> None:
        self.nursery = nursery
        self.network = network
        self.events: dict[str, list[tuple[str, NodeId]]] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self._scopes: dict[str, trio.CancelScope] = {}

    async def start(
        self,
        name: str,
        *,
        node: NodeId | None = None,
        network: bytes = NETWORK,
        serve: Callable[[Endpoint], None] | None = None,
        fields: dict[str, Any] | None = None,
    ) -> Endpoint:
        node = node or node_id(name)
        endpoint = Endpoint(
            RealWorld(),
            node,
            name=name,
            network=network,
            transports={"sim": self.network.transport(name, node)},
            hello=lambda: fields or {},
        )
        self.endpoints[name] = endpoint
        events = self.events[name] = []
        endpoint.on_session(
            up=lambda session: events.append(("up", session.peer.node)),
            down=lambda session: events.append(("down", session.peer.node)),
        )
        if serve is not None:
            serve(endpoint)
        scope = self._scopes[name] = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await endpoint.run(task_status)

        await self.nursery.start(run)
        await endpoint.listen(f"sim://{name}")
        return endpoint

    async def pair(
        self, serve: Callable[[Endpoint], None] | None = None
    ) -> tuple[Session, Session]:
        """A session between two new nodes, seen from both sides; both serve the same."""
        a = await self.start("a", serve=serve)
        b = await self.start("b", serve=serve)
        near = await a.connect("sim://b")
        await until(lambda: a.node in b.sessions)
        return near, b.sessions[a.node]

    def stop(self, name: str) -> None:
        self._scopes[name].cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the tests of this package run under a mock clock or a generous one."""
    with trio.fail_after(GENEROUS_S):
        while not condition():  # noqa: ASYNC110  conditions have no events of their own
            await trio.sleep(0.002)


@pytest.fixture
def profile() -> LinkProfile:
    return LinkProfile(latency_min_s=0.0001, latency_max_s=0.001)


@pytest.fixture
async def net(nursery: trio.Nursery, profile: LinkProfile) -> Net:
    return Net(nursery, SimNetwork(random.Random(5), profile))
