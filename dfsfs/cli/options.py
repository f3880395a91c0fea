"""The options `dfs-mount` and `dfs node` share, and the `Config` they amount to."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dfsfs.base.errors import Misconfigured
from dfsfs.base.limits import (
    CACHE_BYTES_DEFAULT,
    FETCH_TIMEOUT_S,
    GC_GRACE_DEFAULT_S,
    REPAIR_AFTER_DEFAULT_S,
    REPAIR_RATE_DEFAULT,
    REPLICAS_DEFAULT,
    WRITE_CONCERN_DEFAULT,
)
from dfsfs.base.types import DigestKind
from dfsfs.config import (
    Config,
    control_socket,
    default_state_directory,
    parse_address,
    parse_bytes,
    parse_duration,
    parse_listen,
    parse_metrics,
    parse_write_concern,
)

T = TypeVar("T")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """One of the parsers of `dfsfs.config`, as a type of an option."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except Misconfigured as error:
            raise click.BadParameter(str(error)) from error

    return convert


FILE = click.Path(path_type=Path)
state_option = click.option(
    "--state",
    type=FILE,
    metavar="DIR",
    help="The node's own directory. [default: $XDG_STATE_HOME/dfs, else /var/lib/dfs for root,"
    " else ~/.local/state/dfs]",
)

_NODE_OPTIONS = (
    click.option(
        "--bootstrap",
        multiple=True,
        type=parsed(parse_address),
        metavar="HOST:PORT",
        help="A node of the network to join; may be repeated.",
    ),
    click.option(
        "--listen",
        multiple=True,
        type=parsed(parse_listen),
        metavar="[HOST:]PORT",
        help="Where other nodes reach this one. [default: 4000, or a free port if that is taken]",
    ),
    state_option,
    click.option(
        "--key",
        "key_file",
        type=FILE,
        metavar="FILE",
        help="The network's key. [default: $DFS_KEY_FILE, else network.key in the state directory]",
    ),
    click.option("--name", default="", metavar="NAME", help="[default: this machine's name]"),
    click.option(
        "--replicas",
        type=int,
        default=REPLICAS_DEFAULT,
        show_default=True,
        metavar="N",
        help="How many nodes keep each block.",
    ),
    click.option(
        "--write-concern",
        type=parsed(parse_write_concern),
        default=str(WRITE_CONCERN_DEFAULT),
        show_default=True,
        metavar="N|all",
        help="How many nodes have the data when close() returns.",
    ),
    click.option(
        "--visibility",
        type=click.Choice(["sync", "async"]),
        default="sync",
        show_default=True,
        help="Whether calls wait until other mounts see what they changed; async is for links with"
        " long round trips, and gives up close-to-open between mounts.",
    ),
    click.option(
        "--on-partition",
        type=click.Choice(["continue", "readonly"]),
        default="continue",
        show_default=True,
        help="What to do while fewer than a majority of the mounts are connected: go on and merge"
        " later, or refuse changes (EROFS).",
    ),
    click.option(
        "--strict-write-concern",
        is_flag=True,
        help="Fail close() when fewer nodes can be reached, instead of going on with those.",
    ),
    click.option(
        "--capacity",
        "capacity_bytes",
        type=parsed(parse_bytes),
        metavar="SIZE",
        help="Most bytes to store here, such as 500G. [default: what the disk has, less a reserve]",
    ),
    click.option(
        "--reserve",
        "reserve_bytes",
        type=parsed(parse_bytes),
        metavar="SIZE",
        help="What to leave free on the disk. [default: 5 %, at most 1 GiB]",
    ),
    click.option(
        "--cache",
        "cache_bytes",
        type=parsed(parse_bytes),
        default=str(CACHE_BYTES_DEFAULT),
        metavar="SIZE",
        help="Most bytes to keep of what other nodes store; gives way to replicas. [default: 10G]",
    ),
    click.option(
        "--repair-after",
        "repair_after_s",
        type=parsed(parse_duration),
        default=f"{REPAIR_AFTER_DEFAULT_S:.0f}",
        show_default=True,
        metavar="TIME",
        help="How long a node may be away before others take over its blocks.",
    ),
    click.option(
        "--repair-rate",
        type=parsed(parse_bytes),
        default=str(REPAIR_RATE_DEFAULT),
        metavar="SIZE",
        help="Bytes a second this node may copy to restore what is missing. [default: 64M]",
    ),
    click.option(
        "--gc-grace",
        "gc_grace_s",
        type=parsed(parse_duration),
        default=f"{GC_GRACE_DEFAULT_S:.0f}",
        show_default=True,
        metavar="TIME",
        help="How long blocks stay that nothing refers to any more.",
    ),
    click.option(
        "--scrub-period",
        "scrub_period_s",
        type=parsed(parse_duration),
        default="30d",
        show_default=True,
        metavar="TIME",
        help="Every block is read and verified once in this time.",
    ),
    click.option(
        "--horizon",
        "horizon_s",
        type=parsed(parse_duration),
        default="60d",
        show_default=True,
        metavar="TIME",
        help="How long a node may be away and be waited for before removed files are forgotten.",
    ),
    click.option(
        "--fetch-timeout",
        "fetch_timeout_s",
        type=float,
        default=FETCH_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long a read waits for data that no reachable node has.",
    ),
    click.option(
        "--digest",
        type=click.Choice([kind.name.lower() for kind in DigestKind]),
        default=DigestKind.BLAKE3.name.lower(),
        show_default=True,
        help="Names blocks; counts only for the node that founds a network.",
    ),
    click.option(
        "--insecure",
        is_flag=True,
        help="No key and no encryption; reaches nodes of this machine only.",
    ),
    click.option(
        "--metrics",
        type=parsed(parse_metrics),
        metavar="[HOST:]PORT",
        help="Serve metrics for Prometheus there, at /metrics; without HOST to this machine only."
        " [default: off]",
    ),
    click.option("-f", "--foreground", is_flag=True, help="Stay, and log to standard error."),
    click.option("-v", "--verbose", is_flag=True, help="Log in detail."),
)


def node_options(command: Decorated) -> Decorated:
    """Give `command` the options of a node; it gets them as keyword arguments."""
    for option in reversed(_NODE_OPTIONS):
        command = option(command)
    return command


def state_directory(given: Path | None) -> Path:
    """`--state`, or where it is when not given."""
    return given or default_state_directory(os.environ, uid=os.geteuid())


def control_path(given: Path | None) -> Path:
    """Where the node of `--state` answers commands."""
    return control_socket(state_directory(given))


def config_from_options(
    *,
    state: Path | None,
    key_file: Path | None,
    listen: tuple[Any, ...],
    digest: str,
    mount: bool,
    **rest: Any,
) -> Config:
    """The configuration a command line asks for.

    Raises:
        Misconfigured: it cannot work.
    """
    in_environment = os.environ.get("DFS_KEY_FILE")
    if key_file is None and in_environment and not rest["insecure"]:
        key_file = Path(in_environment)
    return Config(
        state=state_directory(state),
        key_file=key_file,
        listen=listen or None,
        digest=DigestKind[digest.upper()],
        mount=mount,
        **rest,
    )
