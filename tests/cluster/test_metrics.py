"""A real mount, scraped: metrics are the status, and every bound is one that is documented."""

import errno
import random
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dfsfs.testing.processes import ProcessNetwork, ProcessNode

ROOT = Path(__file__).resolve().parents[2]
Samples = dict[str, dict[tuple[str, ...], float]]  # values of labels in order of their names


def scrape(node: ProcessNode) -> Samples:
    url = node.status()["metrics"]
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_a_real_mount_is_scraped(network: ProcessNetwork) -> None:
    """Promise 16: what is bounded says how full it is, and every duty is seen to work."""
    node = network.start("a", "--metrics", "0")
    peer = network.start("b", mount=False)
    network.wait_connected()
    for number in range(5):
        (node.path / str(number)).write_bytes(random.Random(number).randbytes(300_000))
    (node.path / "d").mkdir()
    (node.path / "d" / "e").touch()
    with pytest.raises(OSError) as caught:
        (node.path / "d").rmdir()
    assert caught.value.errno == errno.ENOTEMPTY

    found, status = scrape(node), node.status()
    assert found["dfs_files_files"][()] == status["files"]["files"] == 6
    assert found["dfs_network_members"][()] == 2
    assert found["dfs_replication_lost_blocks"][()] == 0
    assert found["dfs_files_conflicts"][()] == 0
    assert found["dfs_call_duration_seconds_count"]["flush",] >= 5
    assert found["dfs_call_duration_seconds_sum"]["flush",] > 0
    assert found["dfs_call_failures_total"]["ENOTEMPTY", "rmdir"] == 1
    assert found["dfs_traffic_copied_bytes_total"][()] >= 5 * 300_000
    (sent,) = found["dfs_peer_sent_bytes_total"].items()
    assert sent[0][1] == "b"
    assert sent[1] > 5 * 300_000
    assert found["process_resident_memory_bytes"][()] > 1 << 20
    workers = {worker for (worker,) in found["dfs_worker_steps_total"]}
    assert workers == {worker["name"] for worker in status["workers"]}
    assert {"repair", "gc", "scrub", "cache", "checkpoint"} <= workers
    stepped = {w for figure, w in found["dfs_worker_figure"] if figure == "since_step_seconds"}
    assert stepped == workers

    bounds = {bound for (bound,) in found["dfs_bound_used"]}
    assert bounds == set(status["bounded"])
    limits = found["dfs_bound_limit"]
    assert not [bound for bound in limits if found["dfs_bound_used"][bound] > limits[bound]]
    assert "metrics" not in peer.status()  # off unless it is asked for

    text = (ROOT / "doc/operations.md").read_text()
    table = text.partition("## What is bounded")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    documented = {name for line in lines for name in re.findall(r"`(\w+)`", line)}
    assert documented == bounds
    alarms = text.partition("## Metrics")[2].partition("\n## ")[0]
    names = set(re.findall(r"\bdfs_\w+", alarms)) - {"dfs_traffic_", "dfs_"}
    assert len(names) > 15
    assert not [name for name in names if not any(each.startswith(name) for each in found)]
