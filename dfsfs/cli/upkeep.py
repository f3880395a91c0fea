"""`dfs gc`, `scrub`, `fsck`, `drain`, `peers`, `conflicts`: start a task of the node, show it.

Exit statuses of `fsck` are those of fsck(8): 0 clean, 1 mended, 4 something left, 8 it could not
run. The others end with 0, or 4 if something is not as it should be: `scrub` if a block has no good
copy, `drain` if there is nobody to take the blocks.
"""

import json
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import trio

from dfsfs.admin import connect_control
from dfsfs.base.errors import DfsError
from dfsfs.cli import output
from dfsfs.cli.inspect import key_of_path
from dfsfs.cli.options import control_path
from dfsfs.cli.program import complain

EXIT_MENDED = 1
EXIT_LEFT = 4
EXIT_NOT_RUN = 8


def collect(state: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """Remove what nothing refers to and is beyond its grace period."""
    result = trio.run(_run, state, "gc", {"dry_run": dry_run}, as_json)
    if not as_json:
        print(output.collection_text(result, dry_run=dry_run))


def scrub(path: str | None, state: Path | None, *, as_json: bool) -> None:
    """Verify blocks on this node's disk."""
    result = trio.run(_run, state, "scrub", {"path": path}, as_json)
    if not as_json:
        print(", ".join(f"{count} {what}" for what, count in result.items() if count) or "nothing")
    if result["lost"]:
        sys.exit(EXIT_LEFT)


def check(state: Path | None, *, repair: bool, as_json: bool) -> None:
    """Check everything; exit as fsck(8) does."""
    try:
        result = trio.run(_run, state, "fsck", {"repair": repair}, as_json)
    except DfsError as error:
        complain("dfs", str(error))
        sys.exit(EXIT_NOT_RUN)
    if not as_json:
        print(
            "clean"
            if not any(result.values())
            else f"{result['mended']} mended, {result['left']} left"
        )
    sys.exit(EXIT_LEFT if result["left"] else EXIT_MENDED if result["mended"] else 0)


def drain(state: Path | None, *, stay: bool, as_json: bool) -> None:
    """Move everything off the node; return when it is safe to switch it off."""
    result = trio.run(_run, state, "drain", {"stay": stay}, as_json)
    texts = {
        "drained": "everything is elsewhere: it is safe to switch this node off",
        "nobody": "there is no other node to take the blocks",
        "stays": "the node takes blocks again",
    }
    if not as_json:
        print(texts[result])
    if result == "nobody":
        sys.exit(EXIT_LEFT)


def change_member(name: str, state: Path | None, *, back: bool) -> None:
    """Remove a member from the network, or take it back."""
    result = trio.run(_run, state, "peers", {"name": name, "back": back}, False)
    print(f"{result['name']} {'is a member again' if back else 'is removed'}")


def list_conflicts(state: Path | None, *, as_json: bool) -> None:
    """Print every conflict copy with both versions."""
    result = trio.run(_run, state, "conflicts", {}, as_json)
    if not as_json and not result["conflicts"]:
        print("no conflicts")


def resolve_conflict(path: str, state: Path | None, *, keep: str) -> None:
    """Keep one version of a name, or both under ordinary names."""
    result = trio.run(_run, state, "resolve", {"path": path, "keep": keep}, False)
    print("kept " + ", ".join(result["kept"]))


async def _run(state: Path | None, task: str, arguments: dict[str, Any], as_json: bool) -> Any:
    """Run a task to its end; its result. Progress goes to a terminal, findings to the output."""
    async with connect_control(control_path(state)) as node:
        if (path := arguments.pop("path", None)) is not None:
            mountpoint = (await node.status()).get("mountpoint")
            arguments["key"] = key_of_path(path, mountpoint).encode("utf-8", "surrogateescape")
        result: Any = None
        async with aclosing(node.upkeep(task, arguments)) as reports:
            async for report in reports:
                if as_json:
                    print(json.dumps(report), flush=True)
                else:
                    _show(report)
                result = report.get("result", result)
        assert result is not None, "the last report has the result"
        return result


def _show(report: dict[str, Any]) -> None:
    live = sys.stderr.isatty()
    if live:
        print("\r\x1b[K", end="", file=sys.stderr)
    if "conflict" in report:
        print(output.conflict_text(report["conflict"]))
    if "finding" in report:
        print(f"{'mended' if report['mended'] else 'LEFT'}: {report['finding']}")
    for block, paths in report.get("lost", {}).items():
        print(f"no good copy of {block}: {', '.join(paths)}")
    if live and "result" not in report:
        print(output.progress_text(report), end="", file=sys.stderr, flush=True)
