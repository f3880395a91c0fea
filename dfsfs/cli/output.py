"""How answers look: pure functions from values to text.

Names are bytes and are written as they are, except on a terminal, where control characters and
bytes that are not UTF-8 appear as escapes so that a file's name cannot drive the terminal.
"""

import stat
import time
from collections.abc import Iterable, Sequence
from typing import Any

from dfsfs.admin import Listing
from dfsfs.base.limits import ROWS_COUNTED_MAX
from dfsfs.base.types import FileKind
from dfsfs.base.units import GIB, KIB, MIB, TIB

SHORT_NAMED_MAX = 10  # files named in a status for people; JSON has more
_SUFFIX = {FileKind.DIRECTORY: b"/"}


def listing_line(entry: Listing, *, long: bool, escape: bool) -> bytes:
    """One line of `dfs ls`: the name (directories end in a slash), or all of `ls -l`."""
    name = _escaped(entry.name) if escape else entry.name
    line = name + _SUFFIX.get(entry.kind, b"")
    if long:
        mode = stat.filemode(entry.mode | (entry.kind << 12))
        when = _time_text(entry.mtime_ns)
        facts = f"{mode} {entry.nlink:>3} {entry.uid:>5} {entry.gid:>5} {entry.size:>13} {when} "
        line = facts.encode() + line
        if entry.kind is FileKind.SYMLINK:
            line += b" -> " + (_escaped(entry.target) if escape else entry.target)
    return line + b"\n"


def _escaped(name: bytes) -> bytes:
    text = name.decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    ).encode()


def byte_text(count: int) -> str:
    """A size for people: `1.4 GiB`."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(count) >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def milliseconds(seconds: float | None) -> str:
    """A round trip for people; a dash when there is none."""
    return "-" if seconds is None else f"{seconds * 1000:.2f} ms"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, two spaces apart."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def status_text(status: dict[str, Any]) -> str:
    """`dfs status` for people. Parts the node did not tell are left out."""
    node, lines = status.get("node", {}), []
    lines.append(f"node      {node.get('name', '?')}  {short_id(node.get('id'))}")
    if addresses := node.get("addresses"):
        lines.append(f"address   {' '.join(addresses)}")
    if mountpoint := status.get("mountpoint"):
        lines.append(f"mount     {mountpoint}")
    if metrics := status.get("metrics"):
        lines.append(f"metrics   {metrics}")
    if network := status.get("network"):
        lines.append(
            f"network   {short_id(network.get('id'))}, {network.get('members', '?')} nodes,"
            f" {network.get('replicas', '?')} replicas, write concern"
            f" {network.get('write_concern', '?')}, {network.get('digest', '?')}"
        )
    if storage := status.get("storage"):
        lines.append(
            f"stored    {byte_text(storage['block_bytes'])} in {storage['block_count']} blocks,"
            f" {byte_text(storage['disk_bytes'])} on disk,"
            f" room for {byte_text(storage['capacity_bytes'])}"
        )
    if files := status.get("files"):
        lines.append(
            f"files     {files['files']} files and {files['directories']} directories,"
            f" {byte_text(files['bytes'])}"
        )
        if lost := files.get("names_lost"):
            lines.append(f"          NAMES ARE LOST here, other nodes may have them: {lost}")
    lines.extend(_coherence_lines(status.get("coherence", {})))
    lines.extend(_replication_lines(status.get("replication", {})))
    lines.extend(_forgetting_lines(status.get("forgetting", {})))
    if peers := status.get("peers"):
        lines.append("")
        lines.extend(table(("PEER", "ID", "STATE", "ROUND TRIP", "ADDRESS"), map(_peer, peers)))
    troubled = [worker for worker in status.get("workers", []) if worker.get("failures")]
    if troubled:
        lines.append("")
        lines.extend(
            f"{worker['name']} failed {worker['failures']} times, last: {worker['last_failure']}"
            for worker in troubled
        )
    return "\n".join(lines)


def _time_text(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 1_000_000_000))


def conflict_text(conflict: dict[str, Any]) -> str:
    """One conflict copy and what it stands beside."""
    lines = [conflict["path"]]
    for what, path, version in (
        ("mine", conflict["original"], conflict["mine"]),
        (f"theirs, from {conflict['writer']}", conflict["path"], conflict["theirs"]),
    ):
        if version is None:
            lines.append(f"    {what}: nothing is at {path} now")
        else:
            when = _time_text(version["mtime_ns"])
            size = byte_text(version["size"]) if version["kind"] == "regular" else version["kind"]
            lines.append(f"    {what}: {size}, {when}")
    return "\n".join(lines)


def _coherence_lines(coherence: dict[str, Any]) -> list[str]:
    """With how many mounts this one is connected; what follows if not with all."""
    if not coherence:
        return []
    connected, known = coherence["mounts_connected"], coherence["mounts_known"]
    line = f"mounts    connected with {connected} of {known}"
    if coherence["read_only"]:
        line += "; read-only until more than half are (--on-partition readonly)"
    elif connected < known:
        line += "; what both sides change is merged later"
    if coherence["joining"]:
        line += "; catching up"
    if coherence["visibility"] == "async":
        line += "; calls do not wait for other mounts (--visibility async)"
    if timeouts := coherence["lease_timeouts"]:
        line += f"; {timeouts} changes went on without an answer"
    return [line]


def _forgetting_lines(forgetting: dict[str, Any]) -> list[str]:
    """Removed files whose rows are kept, and for whom; nothing if there are none."""
    if not (dead := forgetting.get("dead")):
        return []
    line = f"removed   {dead} files and directories are not forgotten yet"
    if names := forgetting.get("waiting_for"):
        line += f", because of {', '.join(names)}"
    return [line]


def _replication_lines(replication: dict[str, Any]) -> list[str]:
    """The four answers of promise 10: on two nodes, at the factor, how much is missing, until when.

    What an older node did not tell is left out.
    """
    missing = replication.get("missing_copies")
    if missing is None:
        return []
    if replication.get("looks") == 0:
        return ["copies    not known yet: this node is looking at its blocks"]
    line = f"copies    {missing} missing"
    if not missing:
        line = "copies    all there"
        if replication.get("away"):
            line += ", but for nodes that are not reached"
    if missing and (size := replication.get("missing_bytes")):
        line += f" ({byte_text(size)}{_until(replication.get('remaining_s'))})"
    if queued := replication.get("queued_copies", 0):
        line += f", {queued} on their way"
    if restored := replication.get("restored"):
        line += f"; last restored {byte_text(int(restored['bytes']))} in"
        line += f" {duration_text(restored['seconds'])}"
    lines = [line, *_short_lines(replication)]
    if single := replication.get("single_blocks"):
        lines.append(f"          {single} blocks are on one node only")
    for what, text in (
        ("away", "not reached"),
        ("absent", "replaced because they are away"),
        ("full", "full"),
    ):
        if names := replication.get(what):
            lines.append(f"          {text}: {', '.join(names)}")
    if lost := replication.get("lost_blocks"):
        paths = sorted({path for paths in lost.values() for path in paths})
        lines.append(f"          NO GOOD COPY of {len(lost)} blocks of {', '.join(paths)}")
    if replication.get("draining"):
        lines.append("          this node gives its blocks away (dfs drain)")
    return lines


def _short_lines(replication: dict[str, Any]) -> list[str]:
    """Files that are on fewer nodes than the write concern asks, and why (promise 8)."""
    count = replication.get("short_count")
    if not count:
        return []
    why = replication["short_why"]
    lines = [f"          {count} files are on fewer nodes than the write concern asks: {why}"]
    named = replication["short_files"][-SHORT_NAMED_MAX:]
    lines += [f"              {file['path']} (on {file['nodes']})" for file in named]
    if count > len(named):
        lines.append(f"              and {count - len(named)} more")
    return lines


def _until(remaining_s: float | None) -> str:
    if remaining_s is None or remaining_s <= 0:
        return ""
    return f", done in about {duration_text(remaining_s)}"


def duration_text(seconds: float) -> str:
    """A duration for people: `3 min`."""
    for unit, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(1, round(seconds))} s"


def collection_text(look: dict[str, int], *, dry_run: bool) -> str:
    """What `dfs gc` found and did."""
    waiting = look["unreferenced_blocks"] - look["due_blocks"]
    waiting_bytes = look["unreferenced_bytes"] - look["due_bytes"]
    lines = [
        f"in use      {look['referenced_blocks']} blocks",
        f"waiting     {waiting} blocks, {byte_text(waiting_bytes)}: nothing refers to them,"
        " and their grace period is not over, or a mount is away that may still need them",
    ]
    if dry_run:
        lines.append(f"would go    {look['due_blocks']} blocks, {byte_text(look['due_bytes'])}")
    else:
        lines.append(
            f"removed     {look['removed_blocks']} blocks, {byte_text(look['removed_bytes'])}"
        )
    if look["lost_trees"]:
        lines.append(f"damaged     {look['lost_trees']} trees have a node that nobody holds")
    return "\n".join(lines)


def progress_text(report: dict[str, Any]) -> str:
    """One line that says how far a task is."""
    if "doing" in report:
        of = f" of {report['of']}" if "of" in report else ""
        done = f": {report['done']}{of}" if "done" in report else ""
        return f"{report['doing']}{done}"
    if "verified" in report:
        return f"verified {report['verified']} of {report['of']} blocks"
    if "left_blocks" in report:
        return (
            f"{report['left_blocks']} blocks to go, {byte_text(report['missing_bytes'])} to copy"
            f"{_until(report['remaining_s'])}"
        )
    return ""


def _peer(peer: dict[str, Any]) -> tuple[str, ...]:
    state = str(peer.get("state", "?"))
    if to_come := peer.get("rows_to_come"):
        state += f", {_rows_text(to_come)} to come"
    if to_send := peer.get("rows_to_send"):
        state += f", {_rows_text(to_send)} to send"
    return (
        str(peer.get("name", "?")),
        short_id(peer.get("id")),
        state,
        milliseconds(peer.get("round_trip_s")),
        " ".join(peer.get("addresses", ())),
    )


def _rows_text(count: int) -> str:
    return f"{count} rows" if count < ROWS_COUNTED_MAX else f"more than {count} rows"


def short_id(value: object) -> str:
    """Enough of an id to tell nodes apart by eye."""
    text = value.hex() if isinstance(value, bytes) else str(value if value is not None else "?")
    return text[:12]


def info_text(info: dict[str, Any]) -> str:
    """`dfs info` for people."""
    lines = [
        f"path      {info.get('path', '?')}",
        f"key       {info.get('key', '?')}",
        f"size      {info.get('size', '?')} bytes, {byte_text(info.get('stored_bytes', 0))} stored",
    ]
    if info.get("inline"):
        lines.append("blocks    none: the content is in the namespace, on every node")
        return "\n".join(lines)
    lines.append(f"blocks    {info.get('blocks', '?')}")
    lines.append(f"replicas  {info.get('replicas', '?')} nodes hold all of it")
    lines.extend(
        f"holder    {holder.get('name', '?')}  {short_id(holder.get('id'))}"
        f"  {holder.get('blocks', '?')} blocks"
        for holder in info.get("holders", ())
    )
    return "\n".join(lines)
