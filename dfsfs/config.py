"""What a node is told at start: one frozen value, checked once, with errors that say what to do.

Nothing else in the house reads defaults, and this module reads neither argv nor the environment:
`cli` does, and hands the result over. The only file it looks at is the key file, to tell a first
node from a joining one. Library users build a `Config` directly.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfsfs.base.errors import Misconfigured
from dfsfs.base.limits import (
    CACHE_BYTES_DEFAULT,
    FETCH_TIMEOUT_S,
    GC_GRACE_DEFAULT_S,
    HORIZON_DEFAULT_S,
    LISTEN_PORT_DEFAULT,
    NODE_NAME_BYTES_MAX,
    REPAIR_AFTER_DEFAULT_S,
    REPAIR_RATE_DEFAULT,
    REPLICAS_DEFAULT,
    REPLICAS_MAX,
    SCRUB_PERIOD_DEFAULT_S,
    WRITE_CONCERN_DEFAULT,
)
from dfsfs.base.types import DigestKind

CAPACITY_BYTES_MIN = 64 * 1024 * 1024  # one segment: less could not store a single large block
REPAIR_RATE_MIN = 1024 * 1024
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens or is reached: a host (empty: every interface) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return _LOOPBACK.fullmatch(self.host) is not None

    def url(self, scheme: str) -> str:
        """The form the transports take: `tls://host:port`."""
        return f"{scheme}://{self}"


def parse_address(text: str) -> Address:
    """Parse HOST:PORT, [IPV6]:PORT or HOST (with the default port).

    Raises:
        Misconfigured: none of these.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:/\s]+))(?::(\d+))?", text, re.ASCII)
    if match is None:
        hint = " (put an IPv6 address in brackets)" if text.count(":") > 1 else ""
        raise Misconfigured(f"{text!r} is not HOST:PORT{hint}")
    port = LISTEN_PORT_DEFAULT if match[3] is None else _port(match[3], text, least=1)
    return Address(match[1] or match[2], port)


def parse_listen(text: str) -> Address:
    """Parse [HOST:]PORT; no host means every interface, port 0 any free one.

    Raises:
        Misconfigured: something else.
    """
    if text.isascii() and text.isdecimal():
        return Address("", _port(text, text, least=0))
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:/\s]*)):(\d+)", text, re.ASCII)
    if match is None:
        hint = " (put an IPv6 address in brackets)" if text.count(":") > 1 else ""
        raise Misconfigured(f"{text!r} is not [HOST:]PORT{hint}")
    return Address(match[1] or match[2], _port(match[3], text, least=0))


def parse_metrics(text: str) -> Address:
    """Parse [HOST:]PORT; no host means this machine only, port 0 any free one.

    Raises:
        Misconfigured: something else.
    """
    address = parse_listen(text)
    return address if address.host else Address("127.0.0.1", address.port)


def _port(digits: str, text: str, *, least: int) -> int:
    if len(digits) > 5 or not least <= int(digits) <= 65535:
        raise Misconfigured(f"the port in {text!r} is not a number from {least} to 65535")
    return int(digits)


def parse_write_concern(text: str) -> "int | Literal['all']":
    """Parse `--write-concern`: a number of nodes, or `all` for every holder.

    Raises:
        Misconfigured: neither.
    """
    if text == "all":
        return "all"
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= REPLICAS_MAX:
        raise Misconfigured(
            f"the write concern is 1 to {REPLICAS_MAX} nodes or `all`, not {text!r}"
        )
    return int(text)


def parse_bytes(text: str) -> int:
    """Parse a size: a number of bytes, or with K, M, G or T for powers of 1024.

    Raises:
        Misconfigured: not a size.
    """
    match = re.fullmatch(r"(\d{1,18})([KMGT]?)(?:iB|B)?", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise Misconfigured(f"{text!r} is not a size such as 500G or 1073741824")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]


def parse_duration(text: str) -> float:
    """Parse a duration: seconds, or a number with s, m, h or d.

    Raises:
        Misconfigured: not a duration.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd]?)", text, re.ASCII)
    if match is None:
        raise Misconfigured(f"{text!r} is not a duration such as 90, 5m, 24h or 30d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def default_state_directory(environment: Mapping[str, str], *, uid: int) -> Path:
    """Where a node keeps its state when it is not told: see `dfs-mount --help`."""
    base = environment.get("XDG_STATE_HOME", "")
    if base.startswith("/"):  # the XDG specification tells to ignore relative paths
        return Path(base) / "dfs"
    if uid == 0:
        return Path("/var/lib/dfs")
    home = environment.get("HOME", "")
    if not home.startswith("/"):
        raise Misconfigured("neither $XDG_STATE_HOME nor $HOME is set; choose one with --state DIR")
    return Path(home) / ".local" / "state" / "dfs"


def control_socket(state: Path) -> Path:
    """Where the node of a state directory is reached from its own machine."""
    return state.absolute() / "control.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a `Node` is told. Valid by construction: `__post_init__` refuses the rest."""

    state: Path  # the node's own directory: identity, blocks, namespace, lock, control socket, log
    listen: tuple[Address, ...] | None = None  # None: the default port, or any if that is taken
    bootstrap: tuple[Address, ...] = ()  # members through which to join; none: alone, or as known
    key_file: Path | None = None  # None: <state>/network.key
    name: str = ""  # shown to people, and in the names of conflict copies; "": the machine's name
    mount: bool = False  # whether this node has a mount: others then wait for what it has seen
    replicas: int = REPLICAS_DEFAULT
    write_concern: int | Literal["all"] = WRITE_CONCERN_DEFAULT
    visibility: Literal["sync", "async"] = "sync"  # async: calls do not wait for other mounts
    on_partition: Literal["continue", "readonly"] = "continue"
    strict_write_concern: bool = False  # EIO at close instead of success on fewer nodes
    capacity_bytes: int | None = None  # None: what the disk has, less a reserve
    reserve_bytes: int | None = None  # of the disk, left free; None: a twentieth, at most a GiB
    cache_bytes: int = CACHE_BYTES_DEFAULT  # of blocks that placement gives to other nodes
    fetch_timeout_s: float = FETCH_TIMEOUT_S
    repair_after_s: float = REPAIR_AFTER_DEFAULT_S  # a node away for so long is replaced
    repair_rate: float = REPAIR_RATE_DEFAULT  # bytes a second, to restore what is missing
    gc_grace_s: float = GC_GRACE_DEFAULT_S  # before an unreferenced block goes
    scrub_period_s: float = SCRUB_PERIOD_DEFAULT_S  # every block is verified once in it
    horizon_s: float = HORIZON_DEFAULT_S  # whoever is away for longer takes a snapshot on return
    digest: DigestKind = DigestKind.BLAKE3  # of a network this node founds
    insecure: bool = False  # no key, no encryption: loopback only
    metrics: Address | None = None  # where Prometheus finds metrics; None: nowhere

    def __post_init__(self) -> None:
        # Absolute, because a node in the background changes its working directory.
        object.__setattr__(self, "state", self.state.absolute())
        if self.key_file is not None:
            object.__setattr__(self, "key_file", self.key_file.absolute())
        if not self.name:
            object.__setattr__(self, "name", os.uname().nodename.partition(".")[0] or "node")
        self._check_name()
        if not 1 <= self.replicas <= REPLICAS_MAX:
            raise Misconfigured(
                f"the number of replicas is 1 to {REPLICAS_MAX}, not {self.replicas}"
            )
        if self.write_concern != "all" and not 1 <= self.write_concern <= REPLICAS_MAX:
            raise Misconfigured(f"the write concern is 1 to {REPLICAS_MAX} nodes or `all`")
        if self.capacity_bytes is not None and self.capacity_bytes < CAPACITY_BYTES_MIN:
            raise Misconfigured(f"the capacity is at least {CAPACITY_BYTES_MIN} bytes")
        if not 0.1 <= self.fetch_timeout_s <= 3600.0:
            raise Misconfigured("the fetch timeout is 0.1 to 3600 seconds")
        if not 1.0 <= self.repair_after_s <= 365 * 86_400.0:
            raise Misconfigured("a node is replaced after 1 second to a year")
        if self.repair_rate < REPAIR_RATE_MIN:
            raise Misconfigured(f"the repair rate is at least {REPAIR_RATE_MIN} bytes a second")
        if not 0.0 <= self.gc_grace_s <= 365 * 86_400.0:
            raise Misconfigured("the grace period of garbage collection is 0 seconds to a year")
        if not 60.0 <= self.scrub_period_s <= 10 * 365 * 86_400.0:
            raise Misconfigured("the scrub period is a minute to ten years")
        if not 1.0 <= self.horizon_s <= 10 * 365 * 86_400.0:
            raise Misconfigured("the horizon is a second to ten years")
        if self.listen is not None and not self.listen:
            raise Misconfigured("a node listens somewhere: give --listen an address")
        self._check_key()

    def _check_name(self) -> None:
        encoded = self.name.encode("utf-8", "surrogateescape")
        printable = self.name.isprintable() and "/" not in self.name
        if not printable or len(encoded) > NODE_NAME_BYTES_MAX:
            raise Misconfigured(
                f"a node's name is printable text without '/', at most {NODE_NAME_BYTES_MAX} bytes"
            )

    def _check_key(self) -> None:
        if self.insecure:
            if self.key_file is not None:
                raise Misconfigured("--insecure means without a key: give one of them, not both")
            for address in (*self.listen_addresses, *self.bootstrap):
                if not address.is_loopback:
                    raise Misconfigured(
                        f"without a key a node speaks to this machine only, not to {address};"
                        " use 127.0.0.1:PORT, or a key (dfs key new FILE)"
                    )
            return
        if not self.key_path.exists():
            if self.key_file is not None:
                raise Misconfigured(
                    f"there is no key file {self.key_file}; copy it from a node of the network"
                    " (<state>/network.key), or make one for a new network: dfs key new FILE"
                )
            if self.bootstrap:
                raise Misconfigured(
                    "joining needs the network's key: copy network.key from the state directory"
                    " of a node that is in it, and give it with --key FILE"
                    f" (or put it at {self.key_path})"
                )

    @property
    def key_path(self) -> Path:
        """The network key's file, whether it exists yet or not."""
        return self.key_file or self.state / "network.key"

    @property
    def founds_network(self) -> bool:
        """Whether this node starts a network of its own: no key anywhere and nobody to join."""
        return not self.insecure and not self.bootstrap and not self.key_path.exists()

    @property
    def scheme(self) -> str:
        """The transport between nodes."""
        return "tcp" if self.insecure else "tls"

    @property
    def listen_addresses(self) -> tuple[Address, ...]:
        """Where to listen; when `listen` is None and the port is taken, any free port will do."""
        if self.listen is not None:
            return self.listen
        return (Address("127.0.0.1" if self.insecure else "", LISTEN_PORT_DEFAULT),)

    @property
    def listen_urls(self) -> tuple[str, ...]:
        """`listen_addresses` as the transports take them."""
        return tuple(address.url(self.scheme) for address in self.listen_addresses)

    @property
    def bootstrap_urls(self) -> tuple[str, ...]:
        """`bootstrap` as the transports take them."""
        return tuple(address.url(self.scheme) for address in self.bootstrap)

    @property
    def control_path(self) -> Path:
        """The socket on which this machine's commands reach the node."""
        return control_socket(self.state)

    @property
    def log_path(self) -> Path:
        """The log of a node in the background."""
        return self.state / "log"
