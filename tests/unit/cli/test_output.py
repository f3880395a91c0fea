"""How answers look."""

import time

import pytest

from dfsfs.admin import Listing
from dfsfs.base.types import FileKind
from dfsfs.cli.inspect import key_of_path
from dfsfs.cli.output import byte_text, info_text, listing_line, milliseconds, status_text, table


def entry(name: bytes, kind: FileKind = FileKind.REGULAR, target: bytes = b"") -> Listing:
    return Listing(
        name=name,
        kind=kind,
        mode=0o4754,
        nlink=2,
        uid=0,
        gid=10,
        size=4096,
        mtime_ns=1_700_000_000_123_456_789,
        target=target,
    )


def test_names_are_written_as_they_are_except_on_a_terminal() -> None:
    name = b"caf\xc3\xa9 \xff\x1b[2J\n"
    assert listing_line(entry(name), long=False, escape=False) == name + b"\n"
    assert listing_line(entry(name), long=False, escape=True) == b"caf\xc3\xa9 \\xff\\x1b[2J\\n\n"


def test_directories_end_in_a_slash() -> None:
    assert listing_line(entry(b"d", FileKind.DIRECTORY), long=False, escape=False) == b"d/\n"


def test_long_lines_are_those_of_ls() -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000))
    assert listing_line(entry(b"f"), long=True, escape=False).decode() == (
        f"-rwsr-xr--   2     0    10          4096 {when} f\n"
    )
    link = entry(b"l", FileKind.SYMLINK, b"to\x07")
    assert listing_line(link, long=True, escape=True).endswith(b" l -> to\\x07\n")
    assert listing_line(link, long=True, escape=True).startswith(b"l")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert byte_text(count) == text


def test_tables_line_up() -> None:
    assert table(("A", "LONG"), [("xxx", "1"), ("y", "22")]) == ["A    LONG", "xxx  1", "y    22"]
    assert milliseconds(0.0012) == "1.20 ms"
    assert milliseconds(None) == "-"


STATUS = {
    "node": {"id": "ab" * 32, "name": "left", "addresses": ["tls://10.0.0.1:4000"]},
    "mountpoint": "/mnt/dfs",
    "network": {
        "id": "cd" * 16,
        "members": 2,
        "replicas": 3,
        "write_concern": 2,
        "digest": "blake3",
    },
    "peers": [
        {
            "id": "ef" * 32,
            "name": "right",
            "addresses": ["tls://10.0.0.2:4000"],
            "state": "alive",
            "round_trip_s": 0.00012,
            "mount": True,
            "rows_to_come": 100_000,
            "rows_to_send": 17,
        }
    ],
    "storage": {
        "block_count": 7,
        "block_bytes": 1 << 20,
        "disk_bytes": 2 << 20,
        "capacity_bytes": 1 << 30,
    },
    "files": {"files": 3, "directories": 2, "bytes": 4096},
    "replication": {
        "queued_copies": 1,
        "missing_copies": 4,
        "short_count": 2,
        "short_why": "not reached: b",
        "short_files": [{"path": "x", "nodes": 1}],
    },
    "workers": [{"name": "repair", "failures": 1, "last_failure": "no peers"}],
}


def test_status_answers_the_questions() -> None:
    text = status_text(STATUS)
    for fact in (
        "left",
        "/mnt/dfs",
        "tls://10.0.0.1:4000",
        "2 nodes",
        "7 blocks",
        "3 files",
        "4 missing",
        "1 on their way",
        "2 files are on fewer nodes than the write concern asks: not reached: b",
        "x (on 1)",
        "and 1 more",
        "right",
        "alive, more than 100000 rows to come, 17 rows to send",
        "0.12 ms",
        "repair failed 1 times, last: no peers",
    ):
        assert fact in text, fact


def test_status_of_a_node_that_says_little() -> None:
    assert status_text({"node": {"name": "n"}}).startswith("node      n")
    assert "all there" in status_text({"replication": {"missing_copies": 0}})


def test_info() -> None:
    info = {
        "path": "a/b",
        "key": "blake3:00:9",
        "size": 9,
        "stored_bytes": 9,
        "blocks": 2,
        "replicas": 2,
        "inline": False,
        "holders": [{"id": "ab" * 32, "name": "left", "blocks": 2}],
    }
    text = info_text(info)
    assert "2 nodes hold all of it" in text
    assert "left" in text
    assert "on every node" in info_text({**info, "inline": True})


def test_a_path_in_the_mount_is_a_key() -> None:
    assert key_of_path("/mnt/dfs/a/b", "/mnt/dfs") == "a/b"
    assert key_of_path("/mnt/dfs", "/mnt/dfs") == ""
    assert key_of_path("a/b", "/mnt/dfs") == "a/b"
    assert key_of_path("/mnt/dfs-other/a", "/mnt/dfs") == "/mnt/dfs-other/a"
    assert key_of_path("a/b", None) == "a/b"
    assert key_of_path("/etc/x", "/") == "etc/x"
