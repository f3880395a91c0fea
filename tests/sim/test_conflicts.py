"""`dfs conflicts`: what a partition made of one name, listed and resolved (promise 13)."""

from typing import Any

import pytest

from dfsfs.base.errors import Invalid, NotFound
from dfsfs.testing.simnode import SimNode
from dfsfs.testing.simulator import Simulation


async def ask(node: SimNode, task: str, **arguments: Any) -> list[dict[str, Any]]:
    return [report async for report in node.node.upkeep(task, arguments)]


async def conflicts(node: SimNode) -> list[dict[str, Any]]:
    *reports, last = await ask(node, "conflicts")
    assert last == {"result": {"conflicts": len(reports)}}
    return [report["conflict"] for report in reports]


async def apart(sim: Simulation, path: str = "/d/report.txt") -> tuple[SimNode, SimNode]:
    """Two nodes that both wrote one file while they were apart, and met again."""
    a, b = await sim.start_nodes(2)
    await a.mkdir("/d")
    await a.write(path, b"old")
    sim.partition([a], [b])
    await sim.until(lambda: not (a.node.endpoint.sessions or b.node.endpoint.sessions), within_s=9)
    await a.write(path, b"of a")
    await b.write(path, b"of b!")
    sim.heal()
    await sim.converge()
    return a, b


async def test_both_versions_are_listed(sim: Simulation) -> None:
    a, b = await apart(sim)
    (found,) = await conflicts(a)
    assert await conflicts(b) == [found]
    assert found["original"] == "d/report.txt"
    assert found["path"].startswith(f"d/report (conflict from {found['writer']}, ")
    assert found["path"].endswith(").txt")
    assert {found["mine"]["size"], found["theirs"]["size"]} == {4, 5}


@pytest.mark.parametrize("keep", ["mine", "theirs"])
async def test_one_version_is_kept(sim: Simulation, keep: str) -> None:
    a, b = await apart(sim)
    (found,) = await conflicts(a)
    wanted = await a.read("/" + (found["original"] if keep == "mine" else found["path"]))
    # By either name: it has one copy only.
    key = found["original"] if keep == "mine" else found["path"]
    assert await ask(b, "resolve", key=key, keep=keep) == [{"result": {"kept": ["d/report.txt"]}}]
    for node in (a, b):
        assert node.names("/d") == ["report.txt"]
        assert await node.read("/d/report.txt") == wanted
        assert await conflicts(node) == []
    await sim.converge()


async def test_both_are_kept_as_ordinary_files(sim: Simulation) -> None:
    a, b = await apart(sim)
    await ask(a, "resolve", key="d/report.txt", keep="both")
    for node in (a, b):
        assert await conflicts(node) == []
        first, second = node.names("/d")
        assert " (from " in first
        assert second == "report.txt"
        assert {await node.read(f"/d/{name}") for name in (first, second)} == {b"of a", b"of b!"}
    await sim.converge()


async def test_what_cannot_be_resolved(sim: Simulation) -> None:
    a, _ = await apart(sim)
    with pytest.raises(NotFound):
        await ask(a, "resolve", key="d/other", keep="mine")
    with pytest.raises(Invalid):
        await ask(a, "resolve", key="d/report.txt", keep="neither")
    assert len(await conflicts(a)) == 1
