"""The library, as the README shows it."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from dfsfs import Config, Node
from dfsfs.config import Address

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    example = re.search(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert example
    assert "/var/lib/dfs-app" in example[1]
    program = example[1].replace("/var/lib/dfs-app", str(tmp_path / "state"))
    (tmp_path / "report.pdf").write_bytes(os.urandom(3_333_333))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert sum(map(int, done.stdout.split())) == 3_333_333
    assert done.stderr == b""


async def urls_of(config: Config) -> list[str]:
    """Where a node listens, which is ended then."""
    async with Node(config) as node:
        return list(node.urls)


@pytest.mark.parametrize("address", [Address("127.0.0.1", 0), None])
async def test_who_may_listen_anywhere_comes_back_where_it_was(
    tmp_path: Path, address: Address | None
) -> None:
    """Others look for it there, and they may have been started again as well."""
    listen = None if address is None else (address,)
    config = Config(state=tmp_path / "state", listen=listen, insecure=True)
    (url,) = await urls_of(config)
    assert await urls_of(config) == [url]
    with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
        (another,) = await urls_of(config)
    assert another != url
    with trio.fail_after(30):
        assert await urls_of(config) == [another]
