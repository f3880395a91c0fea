"""Options become a Config, and the documentation knows all of them."""

import re
from pathlib import Path

import click
import pytest

from dfsfs.base.types import DigestKind
from dfsfs.cli.dfs import node
from dfsfs.cli.mount import dfs_mount
from dfsfs.cli.options import config_from_options
from dfsfs.config import Address, Config

ROOT = Path(__file__).resolve().parents[3]


def config_of(command: click.Command, arguments: list[str]) -> Config:
    context = command.make_context(command.name, arguments)
    parameters = dict(context.params)
    for own in ("foreground", "verbose", "mountpoint", "mount_options"):
        parameters.pop(own, None)
    return config_from_options(mount=command is dfs_mount, **parameters)


def test_everything_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    config = config_of(
        node,
        [
            *("--bootstrap", "a:1", "--bootstrap", "[::1]:2", "--listen", "0", "--listen", "h:3"),
            *("--state", str(tmp_path), "--key", str(tmp_path / "key"), "--name", "left"),
            *("--replicas", "2", "--write-concern", "all", "--strict-write-concern"),
            *("--capacity", "1T", "--fetch-timeout", "2.5", "--digest", "sha1", "-f", "-v"),
        ],
    )
    assert config == Config(
        state=tmp_path,
        key_file=tmp_path / "key",
        bootstrap=(Address("a", 1), Address("::1", 2)),
        listen=(Address("", 0), Address("h", 3)),
        name="left",
        replicas=2,
        write_concern="all",
        strict_write_concern=True,
        capacity_bytes=1 << 40,
        fetch_timeout_s=2.5,
        digest=DigestKind.SHA1,
    )


def test_nothing_said_is_the_default(tmp_path: Path) -> None:
    assert config_of(node, ["--state", str(tmp_path)]) == Config(state=tmp_path)
    mounting = config_of(dfs_mount, ["/", "--state", str(tmp_path)])
    assert mounting == Config(state=tmp_path, mount=True)


def test_the_key_may_be_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").touch()
    monkeypatch.setenv("DFS_KEY_FILE", str(tmp_path / "key"))
    assert config_of(node, ["--state", str(tmp_path)]).key_path == tmp_path / "key"
    # --insecure says "no key": what happens to be in the environment is not a contradiction.
    assert config_of(node, ["--state", str(tmp_path), "--insecure"]).key_file is None
    monkeypatch.setenv("DFS_KEY_FILE", "")
    assert config_of(node, ["--state", str(tmp_path)]).key_file is None


def test_the_state_directory_may_be_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert config_of(node, []).state == tmp_path / "dfs"


def test_both_programs_have_the_same_options_and_the_documentation_has_all() -> None:
    def options_of(command: click.Command) -> set[str]:
        return {
            name
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for name in parameter.opts
        }

    assert options_of(dfs_mount) - options_of(node) == {"-o"}
    assert options_of(node) <= options_of(dfs_mount)
    table = (ROOT / "doc" / "operations.md").read_text().partition("## Keys")[0]
    documented = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", table))
    missing = {name for name in options_of(dfs_mount) if name not in documented}
    assert missing == {"--foreground", "--verbose"}  # -f and -v are there
