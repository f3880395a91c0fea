"""Addresses as people write them."""

import pytest

from dfsfs.base.errors import Invalid
from dfsfs.base.limits import LISTEN_PORT_DEFAULT
from dfsfs.net import Address


@pytest.mark.parametrize(
    ("url", "host", "port", "back"),
    [
        ("tls://example.org:4100", "example.org", 4100, "tls://example.org:4100"),
        ("tls://example.org", "example.org", LISTEN_PORT_DEFAULT, "tls://example.org:4000"),
        ("tls://[::1]:7", "::1", 7, "tls://[::1]:7"),
        ("tcp://127.0.0.1:0/", "127.0.0.1", 0, "tcp://127.0.0.1:0"),
        ("tls://:4000", "", 4000, "tls://:4000"),
    ],
)
def test_network_addresses(url: str, host: str, port: int, back: str) -> None:
    address = Address.parse(url)
    assert (address.host, address.port, address.url) == (host, port, back)


def test_paths() -> None:
    address = Address.parse("unix:///run/dfs/control.sock")
    assert address.path == "/run/dfs/control.sock"
    assert address.url == "unix:///run/dfs/control.sock"


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "a b", "a\nb", "ä", "a://b"])
def test_a_path_is_taken_as_it_is(name: str) -> None:
    address = Address.parse(f"unix:///run/{name}/control.sock")
    assert address.path == f"/run/{name}/control.sock"
    assert Address.parse(address.url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "host:4000",
        "tls:host",
        "tls://host:port",
        "tls://host:99999",
        "tls://host/path",
        "tls://user@host",
        "unix://relative",
        "unix://host/path",
    ],
)
def test_what_is_none(url: str) -> None:
    with pytest.raises(Invalid):
        Address.parse(url)
