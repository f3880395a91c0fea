"""`dfs`: keys, nodes without a mount, and commands to a running node through its control socket."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dfsfs import __version__
from dfsfs.cli.background import run_in_background, run_in_foreground
from dfsfs.cli.options import FILE, config_from_options, node_options, state_option
from dfsfs.cli.program import run_program

key_argument = click.argument("key")
json_option = click.option("--json", "as_json", is_flag=True, help="For programs: one JSON value.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dfs")
def dfs() -> None:
    """A peer-to-peer filesystem. `dfs-mount` mounts it; these commands do the rest.

    All but node and key speak to the node that runs on this machine with the same state directory.
    A KEY is a file's path below the mount.
    """


@dfs.command()
@node_options
@click.pass_context
def node(context: click.Context, /, foreground: bool, verbose: bool, **options: Any) -> None:
    """Run a node without a mount: it stores, and others can join through it.

    Returns when the node listens and has joined; SIGTERM ends it.
    """
    config = config_from_options(mount=False, **options)

    def serve(ready: Callable[[str], None]) -> None:
        from dfsfs.cli.serve import serve_node

        serve_node(config, mountpoint=None, mount_options=(), ready=ready)

    if foreground:
        context.exit(run_in_foreground(serve, "dfs", verbose=verbose))
    context.exit(run_in_background(serve, "dfs", config.log_path, verbose=verbose))


@dfs.group()
def key() -> None:
    """Network keys: whoever holds the key is in the network."""


@key.command("new")
@click.argument("file", type=FILE)
def key_new(file: Path) -> None:
    """Write a new network key to FILE, readable by you alone. Never overwrites."""
    from dfsfs.net import create_network_key

    create_network_key(file)
    click.echo(f"wrote a new network key to {file}; copy it to every machine of the network")


@dfs.command()
@key_argument
@click.argument("file", default="-")
@state_option
def put(key: str, file: str, state: Path | None) -> None:
    """Store FILE (- or nothing: standard input) as KEY, whole or not at all."""
    from dfsfs.cli import transfer

    transfer.put(key, file, state)


@dfs.command()
@key_argument
@click.argument("file", default="-")
@state_option
def get(key: str, file: str, state: Path | None) -> None:
    """Write the content of KEY to FILE (- or nothing: standard output)."""
    from dfsfs.cli import transfer

    transfer.get(key, file, state)


@dfs.command()
@click.argument("key", default="")
@click.option("-l", "long", is_flag=True, help="Mode, links, owner, size and time as well.")
@state_option
def ls(key: str, long: bool, state: Path | None) -> None:
    """List a directory (the root when no KEY is given), or one file."""
    from dfsfs.cli import inspect

    inspect.list_directory(key, state, long=long)


@dfs.command()
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@state_option
def rm(keys: tuple[str, ...], state: Path | None) -> None:
    """Remove files, or empty directories."""
    from dfsfs.cli import inspect

    inspect.remove(keys, state)


@dfs.command()
@json_option
@state_option
def status(as_json: bool, state: Path | None) -> None:
    """This node, its peers, what is stored and what has too few copies."""
    from dfsfs.cli import inspect

    inspect.status(state, as_json=as_json)


@dfs.command()
@click.argument("path")
@json_option
@state_option
def info(path: str, as_json: bool, state: Path | None) -> None:
    """Where a file is: its content key, size, blocks, and who holds them.

    PATH is a path in the mount, or a KEY.
    """
    from dfsfs.cli import inspect

    inspect.info(path, state, as_json=as_json)


@dfs.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, and leave it.")
@json_option
@state_option
def gc(dry_run: bool, as_json: bool, state: Path | None) -> None:
    """Remove blocks that nothing has referred to for the grace period (--gc-grace)."""
    from dfsfs.cli import upkeep

    upkeep.collect(state, dry_run=dry_run, as_json=as_json)


@dfs.command()
@click.argument("path", required=False)
@json_option
@state_option
def scrub(path: str | None, as_json: bool, state: Path | None) -> None:
    """Read every block on this node's disk (or those of PATH) and replace the bad ones now.

    Exit status 4: some have no good copy; the files that need them are named.
    """
    from dfsfs.cli import upkeep

    upkeep.scrub(path, state, as_json=as_json)


@dfs.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@json_option
@state_option
def fsck(repair: bool, as_json: bool, state: Path | None) -> None:
    """Check the namespace, every block here, and that every block needed is somewhere.

    Exit status: 0 clean, 1 everything found was mended, 4 something is left, 8 it could not run.
    """
    from dfsfs.cli import upkeep

    upkeep.check(state, repair=repair, as_json=as_json)


@dfs.command()
@click.option("--stay", is_flag=True, help="Take blocks again: this node does not leave.")
@json_option
@state_option
def drain(stay: bool, as_json: bool, state: Path | None) -> None:
    """Give all blocks of this node to others; returns when it is safe to switch it off."""
    from dfsfs.cli import upkeep

    upkeep.drain(state, stay=stay, as_json=as_json)


@dfs.group()
def peers() -> None:
    """Members of the network; `dfs status` lists them."""


@peers.command("remove")
@click.argument("name")
@state_option
def peers_remove(name: str, state: Path | None) -> None:
    """Remove the member NAME (or the first digits of its id) for good, such as a lost machine.

    Others take over its blocks at once, and it gets no session any more.
    """
    from dfsfs.cli import upkeep

    upkeep.change_member(name, state, back=False)


@peers.command("add")
@click.argument("name")
@state_option
def peers_add(name: str, state: Path | None) -> None:
    """Take back the member NAME that was removed."""
    from dfsfs.cli import upkeep

    upkeep.change_member(name, state, back=True)


@dfs.group(invoke_without_command=True)
@json_option
@state_option
@click.pass_context
def conflicts(context: click.Context, /, as_json: bool, state: Path | None) -> None:
    """List conflict copies: what two sides of a partition made of one name, both versions."""
    if context.invoked_subcommand is None:
        from dfsfs.cli import upkeep

        upkeep.list_conflicts(state, as_json=as_json)


@conflicts.command("resolve")
@click.argument("path")
@click.option(
    "--keep",
    type=click.Choice(["mine", "theirs", "both"]),
    required=True,
    help="mine: the file that has the name now; theirs: the conflict copy, which gets the name;"
    " both: the copy becomes an ordinary file beside it.",
)
@state_option
def conflicts_resolve(path: str, keep: str, state: Path | None) -> None:
    """End the conflict at PATH: the conflict copy, or the file it stands beside."""
    from dfsfs.cli import upkeep

    upkeep.resolve_conflict(path, state, keep=keep)


def main() -> None:
    """The console script."""
    run_program(dfs, "dfs")
