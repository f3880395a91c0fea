"""Metrics: the status in other words, and the few lines of HTTP around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from dfsfs.admin.metrics import serve_metrics
from dfsfs.admin.prometheus import metrics_of, registry_of
from dfsfs.base.errors import Unavailable
from dfsfs.base.limits import (
    METRICS_CONNECTIONS_MAX,
    METRICS_REQUEST_BYTES_MAX,
    METRICS_TIMEOUT_S,
)
from dfsfs.runtime import CallTable
from tests.unit.admin.operator_twin import MemoryOperator

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(text: str) -> Samples:
    """By name and values of labels."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metrics(status: dict[str, Any]) -> Samples:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in metrics_of({"node": {"id": "1", "name": "n", "version": "0"}, **status})
        for sample in family.samples
    }


def test_numbers_of_sections_are_metrics_of_their_kind() -> None:
    found = metrics(
        {
            "replication": {
                "missing_copies": 3,
                "at_factor": False,
                "away": ["b", "c"],
                "remaining_s": None,
                "short_writes": 2,
            },
            "traffic": {"copied_bytes": 70},
            "coherence": {"policy": "continue", "mounts_known": 2},
        }
    )
    del found["dfs_node_info", ("1", "n", "0")]
    assert found == {
        ("dfs_replication_missing_copies", ()): 3,
        ("dfs_replication_at_factor", ()): 0,
        ("dfs_replication_away", ()): 2,
        ("dfs_replication_short_writes_total", ()): 2,
        ("dfs_traffic_copied_bytes_total", ()): 70,
        ("dfs_coherence_mounts_known", ()): 2,
    }


def test_calls_are_cumulative_histograms() -> None:
    calls = CallTable()
    for duration_s in (0.00005, 0.0002, 0.0002, 100.0):
        calls.ended("read", duration_s, 0)
    calls.ended("open", 0.2, 2)
    calls.ended("open", 0.2, 9999)
    found = metrics({"calls": calls.figures()})
    name = "dfs_call_duration_seconds"
    assert found[f"{name}_bucket", ("read", "0.0001")] == 1
    assert found[f"{name}_bucket", ("read", "0.00025")] == 3
    assert found[f"{name}_bucket", ("read", "60.0")] == 3
    assert found[f"{name}_bucket", ("read", "+Inf")] == found[f"{name}_count", ("read",)] == 4
    assert found[f"{name}_sum", ("read",)] == pytest.approx(100.00045)
    assert found["dfs_call_failures_total", ("open", "ENOENT")] == 1
    assert found["dfs_call_failures_total", ("open", "9999")] == 1


def test_bounds_and_workers() -> None:
    worker = {"name": "gc", "doing": "idle", "steps": 4, "failures": 1, "last_failure": "x"}
    found = metrics(
        {
            "bounded": {"upload_bytes": [5, 10], "pinned_blocks": [7, 0]},
            "workers": [{**worker, "rest_s": 1.5, "since_step_s": None, "looks": 2}],
        }
    )
    assert found["dfs_bound_used", ("upload_bytes",)] == 5
    assert found["dfs_bound_limit", ("upload_bytes",)] == 10
    assert ("dfs_bound_limit", ("pinned_blocks",)) not in found
    assert found["dfs_worker_steps_total", ("gc",)] == 4
    assert found["dfs_worker_failures_total", ("gc",)] == 1
    assert found["dfs_worker_figure", ("gc", "rest_seconds")] == 1.5
    assert found["dfs_worker_figure", ("gc", "looks")] == 2


def test_figures_of_peers_have_their_name_and_id() -> None:
    peer = {"id": "ab" * 32, "name": "b", "addresses": ["x"], "state": "alive", "mount": True}
    found = metrics({"peers": [{**peer, "round_trip_s": None, "sent_bytes": 7, "rows_to_come": 2}]})
    del found["dfs_node_info", ("1", "n", "0")]
    labels = ("b", "abababababab")
    assert {key: value for key, value in found.items() if key[0].startswith("dfs_peer")} == {
        ("dfs_peer_mount", labels): 1,
        ("dfs_peer_sent_bytes_total", labels): 7,
        ("dfs_peer_rows_to_come", labels): 2,
    }


# -- HTTP -----------------------------------------------------------------------------------------


@asynccontextmanager
async def served() -> AsyncIterator[tuple[str, int]]:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve_metrics, MemoryOperator(), "127.0.0.1", 0)
        assert url.startswith("http://127.0.0.1:")
        yield "127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])
        nursery.cancel_scope.cancel()


async def ask(address: tuple[str, int], request: bytes) -> tuple[str, str]:
    """Head and body of the answer, which ends the connection."""
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        await stream.send_all(request)
        with trio.fail_after(30):
            answer = b"".join([piece async for piece in stream])
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


async def test_get_answers_with_metrics() -> None:
    async with served() as address:
        head, body = await ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain")
        found = samples(body)
        assert ("process_resident_memory_bytes", ()) in found
        assert any(name == "dfs_node_info" for name, _ in found)
        head, nothing = await ask(address, b"HEAD /metrics?x=1 HTTP/1.1\r\n\r\n")
        assert head.startswith("HTTP/1.1 200")
        assert nothing == ""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"\r\n\r\n", "405"),
        (b"GET /" + b"x" * (METRICS_REQUEST_BYTES_MAX - 5), "404"),
        (b"\xff" * METRICS_REQUEST_BYTES_MAX, "405"),
    ],
)
async def test_anything_else_is_refused(request_: bytes, status: str) -> None:
    async with served() as address:
        head, _ = await ask(address, request_)
        assert head.startswith(f"HTTP/1.1 {status} ")


async def test_who_says_nothing_is_not_waited_for(mock_clock: trio.testing.MockClock) -> None:
    async with served() as address:
        idle = [await trio.open_tcp_stream(*address) for _ in range(METRICS_CONNECTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(METRICS_TIMEOUT_S)
        for stream in idle:
            assert await stream.receive_some() == b""
        head, _ = await ask(address, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert head.startswith("HTTP/1.1 200")
        for stream in idle:
            await stream.aclose()


async def test_more_connections_than_allowed_are_closed_at_once() -> None:
    async with served() as address:
        idle = [await trio.open_tcp_stream(*address) for _ in range(METRICS_CONNECTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        surplus = await trio.open_tcp_stream(*address)
        with trio.fail_after(30):
            assert await surplus.receive_some() == b""
        for stream in [*idle, surplus]:
            await stream.aclose()


async def test_an_address_that_is_taken_is_a_sentence() -> None:
    async with served() as address:
        with pytest.raises(Unavailable, match="cannot serve metrics at"):
            await serve_metrics(MemoryOperator(), *address)


def test_the_registry_reads_the_status_when_it_is_asked() -> None:
    counted = {"looks": 0}

    def status() -> dict[str, Any]:
        counted["looks"] += 1
        return {"node": {"id": "1", "name": "n", "version": "0"}, "replication": counted}

    registry = registry_of(status)
    assert counted["looks"] == 0
    assert registry.get_sample_value("dfs_replication_looks_total") == 1
    assert registry.get_sample_value("dfs_replication_looks_total") == 2
