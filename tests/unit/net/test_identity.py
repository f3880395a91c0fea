"""Key files: what is written, what is refused, what survives."""

import os
from pathlib import Path

import pytest

from dfsfs.base.errors import Corrupt, Exists, NotFound, Refused
from dfsfs.net import (
    NetworkKey,
    NodeIdentity,
    create_network_key,
    load_network_key,
    network_id,
)
from dfsfs.net.identity import key_from_text, key_text


def test_a_new_key_is_private_complete_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "network.key"
    key = create_network_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("dfs network key, version 1.")
    assert load_network_key(path) == key
    assert os.listdir(tmp_path) == ["network.key"]
    assert create_network_key(tmp_path / "other").secret != key.secret


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "network.key"
    key = create_network_key(path)
    with pytest.raises(Exists, match="not overwritten"):
        create_network_key(path)
    assert load_network_key(path) == key
    assert os.listdir(tmp_path) == ["network.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "network.key"
    create_network_key(path)
    path.chmod(mode)
    with pytest.raises(Refused, match="chmod 600"):
        load_network_key(path)


def test_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_network_key(tmp_path / "none")
    with pytest.raises(Refused):
        load_network_key(tmp_path)
    with pytest.raises(Refused):
        create_network_key(tmp_path / "no" / "directory")


def test_one_wrong_digit_anywhere_is_noticed() -> None:
    text = key_text(NetworkKey(bytes(range(32))))
    assert key_from_text(text, "here").secret == bytes(range(32))
    lines = text.splitlines()
    for line in (1, 2):
        for place in range(len(lines[line]) - 8, len(lines[line])):
            digit = lines[line][place]
            wrong = "0" if digit != "0" else "1"
            changed = [*lines]
            changed[line] = lines[line][:place] + wrong + lines[line][place + 1 :]
            with pytest.raises(Corrupt):
                key_from_text("\n".join(changed), "here")


@pytest.mark.parametrize(
    "text", ["", "hello\n", "title\nkey 00\ncheck 11\n", "title\nkey zz\ncheck 11\n", "\x00" * 99]
)
def test_what_is_no_key_file(text: str) -> None:
    with pytest.raises(Corrupt):
        key_from_text(text, "here")


def test_the_network_id_is_stable_and_tells_networks_apart() -> None:
    # A changed derivation would split every network that exists.
    assert network_id(NetworkKey(bytes(32))).hex() == "a2d492cca47e4f32fd921943cb206b69"
    assert network_id(NetworkKey(b"a" * 32)) != network_id(NetworkKey(b"b" * 32))
    assert "00" * 8 not in repr(NetworkKey(bytes(32)))


def test_a_node_keeps_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    first = NodeIdentity.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert NodeIdentity.load_or_create(path).node_id == first.node_id
    assert NodeIdentity.generate().node_id != first.node_id
    assert len(first.node_id) == 32


def test_a_damaged_identity_is_not_replaced_silently(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    NodeIdentity.load_or_create(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(Corrupt):
        NodeIdentity.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(Refused):
        NodeIdentity.load_or_create(path)
