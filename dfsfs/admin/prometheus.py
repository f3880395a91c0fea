"""The status of a node as Prometheus metrics: a pure function of what `dfs status --json` shows.

So the two cannot differ, and a figure that a part adds to the status is a metric without a line
here. Names follow https://prometheus.io/docs/practices/naming/: `dfs_<section>_<key>`, base units,
`_total` for what only grows. Of a list or map the length is shown, as of the members that are away.
Labels come from bounded sets: verbs, names of errors, limits, workers, and the members.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dfsfs.runtime import BUCKETS_S

Status = Mapping[str, Any]

SECTIONS = (
    *("network", "storage", "files", "replication"),
    *("traffic", "flushes", "coherence", "forgetting"),
)
"""Parts of the status whose numbers become metrics as they are."""

COUNTERS = frozenset(
    {
        *("asked", "done"),
        *("short_writes", "looks", "visibility_waits", "written_back"),
        *("forgotten", "snapshots_taken"),
        *("lease_waits", "lease_timeouts", "lease_requests", "lease_grants"),
        *("leases_given_ahead", "draft_questions"),
    }
)
"""Keys of figures that only grow; all of `traffic` and all that end in `_total` do."""

PEER_COUNTERS = frozenset({"sent_bytes", "received_bytes", "calls_sent", "calls_served"})


class StatusCollector(Collector):
    """Asks for the status whenever metrics are wanted."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """The metrics now."""
        return metrics_of(self._status())

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are known when there is a status."""
        return []


def registry_of(status: Callable[[], Status]) -> CollectorRegistry:
    """A registry of one node and its process (memory, processor time, open files)."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    ProcessCollector(registry=registry)
    return registry


def metrics_of(status: Status) -> Iterator[Metric]:
    """Every metric of a status; sections that it lacks are left out."""
    node = status.get("node", {})
    yield InfoMetricFamily(
        "dfs_node", "This node.", {key: str(node.get(key, "")) for key in ("id", "name", "version")}
    )
    for section in SECTIONS:
        yield from _section(section, status.get(section, {}))
    yield from _bounded(status.get("bounded", {}))
    yield from _workers(status.get("workers", []))
    yield from _calls(status.get("calls", {}))
    yield from _peers(status.get("peers", []))


def _section(section: str, figures: Mapping[str, Any]) -> Iterator[Metric]:
    for key, found in figures.items():
        value = _number(found)
        if value is None:
            continue
        name, text = _name(f"dfs_{section}_{key}"), f"{section}.{key} of dfs status --json."
        if section == "traffic" or key in COUNTERS:
            yield CounterMetricFamily(name, text, value)
        else:
            yield GaugeMetricFamily(name, text, value)


def _number(found: object) -> float | None:
    """A figure as a number: of a collection its length; None for text and what is not known."""
    if isinstance(found, list | dict):
        return float(len(found))
    return float(found) if isinstance(found, int | float) else None


def _name(key: str) -> str:
    """Base units in full, as is the custom there."""
    return f"{key[:-2]}_seconds" if key.endswith("_s") else key


def _bounded(bounds: Mapping[str, list[int]]) -> Iterator[Metric]:
    used = GaugeMetricFamily("dfs_bound_used", "How full a queue or cache is.", labels=["bound"])
    most = GaugeMetricFamily(
        "dfs_bound_limit",
        "The most it may hold; absent for what is bounded by what it belongs to.",
        labels=["bound"],
    )
    for bound, (now, limit) in bounds.items():
        used.add_metric([bound], now)
        if limit:
            most.add_metric([bound], limit)
    yield used
    yield most


def _workers(workers: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    steps = CounterMetricFamily(
        "dfs_worker_steps", "Steps of a background duty.", labels=["worker"]
    )
    failures = CounterMetricFamily(
        "dfs_worker_failures", "Steps of it that failed, and are tried again.", labels=["worker"]
    )
    figures = GaugeMetricFamily(
        "dfs_worker_figure",
        "What it says of itself: progress, and what it found and did.",
        labels=["worker", "figure"],
    )
    for worker in workers:
        name = worker["name"]
        for key, found in worker.items():
            if key == "steps":
                steps.add_metric([name], found)
            elif key == "failures":
                failures.add_metric([name], found)
            elif (value := _number(found)) is not None:
                figures.add_metric([name, _name(key)], value)
    yield steps
    yield failures
    yield figures


def _calls(calls: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    durations = HistogramMetricFamily(
        "dfs_call_duration_seconds", "Calls of the filesystem.", labels=["verb"]
    )
    failures = CounterMetricFamily(
        "dfs_call_failures", "Calls that ended with an errno.", labels=["verb", "errno"]
    )
    for verb, figures in calls.items():
        buckets, total = [], 0
        for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], figures["counts"], strict=True):
            total += count
            buckets.append((bound, total))
        durations.add_metric([verb], buckets, figures["total_s"])
        for failure, count in figures["failures"].items():
            failures.add_metric([verb, failure], count)
    yield durations
    yield failures


def _peers(peers: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    labels = ["peer", "id"]
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for peer in peers:
        for key, found in peer.items():
            if not isinstance(found, int | float):
                continue
            if key not in families:
                kind = CounterMetricFamily if key in PEER_COUNTERS else GaugeMetricFamily
                families[key] = kind(
                    _name(f"dfs_peer_{key}"), f"peers.{key} of dfs status --json.", labels=labels
                )
            families[key].add_metric([peer["name"], peer["id"][:12]], found)
    yield from families.values()
