"""The pure and the small parts of repair, collection and space."""

from pathlib import Path

import pytest
import trio
import trio.testing

from dfsfs.base.types import Digest, NodeId
from dfsfs.blocks import Pins
from dfsfs.cluster.placement import lack_of, receivers
from dfsfs.config import parse_duration
from dfsfs.runtime import Database, Pace, RealWorld

A, B, C, D = (NodeId(bytes([number]) * 32) for number in range(1, 5))


def everybody(node: NodeId) -> bool:
    return True


def test_a_full_node_is_passed_over_and_keeps_its_place() -> None:
    assert receivers([A, B, C, D], 2, everybody) == [A, B]
    assert receivers([A, B, C, D], 2, lambda node: node != A) == [B, C]
    assert receivers([A], 3, everybody) == [A]


def test_what_a_block_lacks_is_made_by_its_best_holder() -> None:
    holders = {A: False, B: True, C: False}
    lack = lack_of([A, B, C, D], 2, B, has=holders.get, takes_more=everybody)
    assert (lack.elsewhere, lack.away, lack.targets, lack.mine) == (0, 0, [A], True)
    # C holds it as cache: B is better placed, so C leaves the copying to B.
    lack = lack_of([A, B, C, D], 2, C, has=holders.get, takes_more=everybody)
    assert (lack.elsewhere, lack.targets, lack.mine) == (1, [A], False)
    # Nobody who should have it has it: whoever does copies.
    nobody = dict.fromkeys((A, B), False)
    lack = lack_of([A, B, C, D], 2, D, has=nobody.get, takes_more=everybody)
    assert (lack.elsewhere, lack.targets, lack.mine) == (0, [A, B], True)


def test_who_is_away_is_counted_on_and_who_is_full_is_replaced() -> None:
    lack = lack_of([A, B, C, D], 2, B, has={A: None}.get, takes_more=everybody)
    assert (lack.away, lack.targets) == (1, [])
    full = {A: False, C: False, D: False}
    lack = lack_of([A, B, C, D], 2, B, has=full.get, takes_more=lambda node: node != A)
    assert lack.targets == [C]
    # A full node that has it keeps it.
    lack = lack_of([A, B, C], 2, B, has={A: True}.get, takes_more=lambda node: node != A)
    assert (lack.elsewhere, lack.targets) == (1, [])


def test_pins_tell_who_is_needed() -> None:
    pins, told = Pins(), list[bytes]()
    pins.watch(told.append)
    digest = Digest(b"\x01" + bytes(32))
    pins.pin(digest)
    pins.promise(digest)
    assert told == [digest, digest]
    assert pins.all() == [digest]
    pins.unpin(digest)
    assert pins.all() == []


async def test_a_pace_lets_a_burst_through_and_then_holds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pace = Pace(RealWorld(), 1000.0)
    begin_s = trio.current_time()
    await pace.spend(1000)
    await pace.spend(3000)
    assert trio.current_time() == begin_s
    await pace.spend(1)
    assert trio.current_time() - begin_s == pytest.approx(3.0)


def test_a_snapshot_does_not_see_what_comes_later(tmp_path: Path) -> None:
    database = Database(
        tmp_path / "x.db", schema="CREATE TABLE t(n)", version=1, cache_bytes=1 << 20
    )
    database.execute("INSERT INTO t VALUES(1)")
    with database.snapshot() as seen:
        assert seen.value("SELECT count(*) FROM t") == 1
        database.execute("INSERT INTO t VALUES(2)")
        assert seen.value("SELECT count(*) FROM t") == 1
    assert database.value("SELECT count(*) FROM t") == 2


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("5m", 300), ("24h", 86_400), ("0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
