"""The control socket's file."""

import os
import socket
from pathlib import Path

import pytest

from dfsfs.base.errors import PeerUnreachable, Unavailable
from dfsfs.net import Address
from dfsfs.net.unix import UnixTransport


async def test_the_file_is_for_its_owner_alone_and_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    old = os.umask(0)
    try:
        listener = await UnixTransport().listen(Address.parse(f"unix://{path}"))
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    listener.close()
    assert not path.exists()


async def test_a_dead_process_leaves_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    address = Address.parse(f"unix://{path}")
    with pytest.raises(PeerUnreachable, match="no node answers"):
        await UnixTransport().connect(address)
    listener = await UnixTransport().listen(address)
    listener.close()


async def test_a_living_process_and_other_files_are_left_alone(tmp_path: Path) -> None:
    address = Address.parse(f"unix://{tmp_path}/control.sock")
    listener = await UnixTransport().listen(address)
    with pytest.raises(Unavailable, match="another process"):
        await UnixTransport().listen(address)
    stream = await UnixTransport().connect(address)
    stream.close()
    listener.close()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(Unavailable):
        await UnixTransport().listen(Address.parse(f"unix://{file}"))
    assert file.read_text() == "precious"


async def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    address = Address.parse(f"unix://{directory}/control.sock")
    listener = await UnixTransport().listen(address)
    near = await UnixTransport().connect(address)
    far = await listener.accept()
    for stream in (near, far):
        await stream.handshake()
        assert stream.local
        stream.close()
    listener.close()
    assert not any(directory.iterdir())
