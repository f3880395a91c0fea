"""`dfs-mount`: a node with a mount. In the background it returns when the mount answers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dfsfs.base.errors import Misconfigured
from dfsfs.cli.background import run_in_background, run_in_foreground
from dfsfs.cli.options import FILE, config_from_options, node_options
from dfsfs.cli.program import run_program


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("mountpoint", type=FILE)
@node_options
@click.option(
    "-o",
    "mount_options",
    multiple=True,
    metavar="OPT[,OPT]",
    help="Mount options, such as ro, allow_other, noatime.",
)
@click.pass_context
def dfs_mount(
    context: click.Context,
    /,
    mountpoint: Path,
    mount_options: tuple[str, ...],
    foreground: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Mount the network's filesystem at MOUNTPOINT.

    Alone, it founds a network of one node. With --bootstrap and --key it joins the network of
    another. Returns when the mount answers and the network is joined; `fusermount3 -u MOUNTPOINT`,
    umount, or SIGTERM to the node end it.
    """
    config = config_from_options(mount=True, **options)
    mountpoint = mountpoint.absolute()
    flat = tuple(option for text in mount_options for option in text.split(",") if option)
    _check_mountpoint(mountpoint)

    def serve(ready: Callable[[str], None]) -> None:
        from dfsfs.cli.serve import serve_node

        serve_node(config, mountpoint=mountpoint, mount_options=flat, ready=ready)

    if foreground:
        context.exit(run_in_foreground(serve, "dfs-mount", verbose=verbose))
    context.exit(run_in_background(serve, "dfs-mount", config.log_path, verbose=verbose))


def _check_mountpoint(mountpoint: Path) -> None:
    try:
        os.lstat(mountpoint)
    except FileNotFoundError as error:
        raise Misconfigured(f"{mountpoint} does not exist: mkdir it first") from error
    except OSError:
        return  # a dead mount answers no stat; the face knows how to recover it
    if not mountpoint.is_dir():
        raise Misconfigured(f"{mountpoint} is not a directory")


def main() -> None:
    """The console script."""
    run_program(dfs_mount, "dfs-mount")
