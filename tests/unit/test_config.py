"""Config: what is refused, with what sentence; addresses; where state and key are."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfsfs.base.errors import Misconfigured
from dfsfs.base.limits import LISTEN_PORT_DEFAULT
from dfsfs.config import (
    Address,
    Config,
    default_state_directory,
    parse_address,
    parse_bytes,
    parse_listen,
    parse_write_concern,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:4001", Address("host", 4001)),
        ("10.0.0.7:1", Address("10.0.0.7", 1)),
        ("[::1]:65535", Address("::1", 65535)),
        ("[fe80::1%eth0]:4000", Address("fe80::1%eth0", 4000)),
        ("host", Address("host", LISTEN_PORT_DEFAULT)),
        ("[2001:db8::7]", Address("2001:db8::7", LISTEN_PORT_DEFAULT)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":4000",
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "::1",
        "::1:4000",
        "a b:1",
        "[::1]4000",
    ],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(Misconfigured):
        parse_address(text)


def test_a_bare_ipv6_address_is_told_about_brackets() -> None:
    with pytest.raises(Misconfigured, match="brackets"):
        parse_address("::1:4000")
    with pytest.raises(Misconfigured, match="brackets"):
        parse_listen("::1:4000")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("4000", Address("", 4000)),
        ("0", Address("", 0)),
        (":4000", Address("", 4000)),
        ("0.0.0.0:4000", Address("0.0.0.0", 4000)),
        ("[::]:0", Address("::", 0)),
        ("localhost:4000", Address("localhost", 4000)),
    ],
)
def test_listen_addresses(text: str, address: Address) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "65536", "-1", "999999", "٤"])
def test_listen_addresses_that_are_none(text: str) -> None:
    with pytest.raises(Misconfigured):
        parse_listen(text)


@given(st.text(max_size=40))
def test_parsers_refuse_and_never_fail(text: str) -> None:
    for parse in (parse_address, parse_listen, parse_bytes, parse_write_concern):
        with suppress(Misconfigured):
            parse(text)


def test_loopback() -> None:
    assert all(
        Address(host, 1).is_loopback for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")
    )
    assert not any(
        Address(host, 1).is_loopback
        for host in ("", "0.0.0.0", "::", "127.0.0.1.evil.org", "10.0.0.1")
    )


def test_sizes() -> None:
    assert parse_bytes("17") == 17
    assert parse_bytes("64K") == 65536
    assert parse_bytes("2gib") == 2 << 30
    assert parse_bytes("1T") == 1 << 40
    for text in ("", "G", "1.5G", "-1", "1P", "1 G"):
        with pytest.raises(Misconfigured):
            parse_bytes(text)


def test_write_concern() -> None:
    assert parse_write_concern("all") == "all"
    assert parse_write_concern("1") == 1
    for text in ("0", "17", "-1", "ALL", "two"):
        with pytest.raises(Misconfigured):
            parse_write_concern(text)


def test_default_state_directory() -> None:
    assert default_state_directory({"XDG_STATE_HOME": "/x"}, uid=0) == Path("/x/dfs")
    assert default_state_directory({"XDG_STATE_HOME": "relative"}, uid=0) == Path("/var/lib/dfs")
    assert default_state_directory({}, uid=0) == Path("/var/lib/dfs")
    assert default_state_directory({"HOME": "/h"}, uid=7) == Path("/h/.local/state/dfs")
    with pytest.raises(Misconfigured, match="--state"):
        default_state_directory({}, uid=7)


def test_a_first_node_founds_a_network_until_it_has_a_key(tmp_path: Path) -> None:
    assert Config(state=tmp_path).founds_network
    (tmp_path / "network.key").write_text("key")
    config = Config(state=tmp_path)
    assert not config.founds_network
    assert config.key_path == tmp_path / "network.key"


def test_joining_without_a_key_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"copy network\.key"):
        Config(state=tmp_path, bootstrap=(Address("a", 1),))


def test_a_key_file_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no key file"):
        Config(state=tmp_path, key_file=tmp_path / "none")


def test_without_a_key_only_this_machine(tmp_path: Path) -> None:
    config = Config(state=tmp_path, insecure=True)
    assert config.listen_urls == (f"tcp://127.0.0.1:{LISTEN_PORT_DEFAULT}",)
    assert not config.founds_network
    with pytest.raises(Misconfigured, match="without a key"):
        Config(state=tmp_path, insecure=True, listen=(Address("", 4000),))
    with pytest.raises(Misconfigured, match="without a key"):
        Config(state=tmp_path, insecure=True, bootstrap=(Address("10.0.0.1", 4000),))
    with pytest.raises(Misconfigured, match="not both"):
        Config(state=tmp_path, insecure=True, key_file=tmp_path / "key")


def test_urls(tmp_path: Path) -> None:
    (tmp_path / "network.key").write_text("key")
    config = Config(state=tmp_path, listen=(Address("::", 0),), bootstrap=(Address("h", 4),))
    assert config.listen_urls == ("tls://[::]:0",)
    assert config.bootstrap_urls == ("tls://h:4",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0},
        {"replicas": 17},
        {"write_concern": 0},
        {"write_concern": 99},
        {"capacity_bytes": 1000},
        {"fetch_timeout_s": 0.0},
        {"fetch_timeout_s": float("nan")},
        {"name": "a/b"},
        {"name": "tab\t"},
        {"name": "x" * 65},
        {"listen": ()},
    ],
    ids=str,
)
def test_settings_that_cannot_work(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(Misconfigured):
        Config(state=tmp_path, **wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_paths_become_absolute_because_a_node_changes_directory(tmp_path: Path) -> None:
    config = Config(state=Path("somewhere"))
    assert config.state.is_absolute()
    assert config.name
