"""The programs as people run them: options, sentences, exit statuses, start-up."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from dfsfs.admin import serve_control
from dfsfs.runtime import RealWorld
from tests.unit.admin.operator_twin import MemoryOperator

PROGRAMS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[3]


def run(*command: str | Path, **options: object) -> "subprocess.CompletedProcess[bytes]":
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(  # type: ignore[call-overload, no-any-return]  # options vary
        [PROGRAMS / command[0], *command[1:]],
        capture_output=True,
        timeout=60,
        check=False,
        **options,
    )


class ServedOperator:
    """An operator in memory behind a control socket, in a thread with a loop of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.operator = MemoryOperator()
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def __enter__(self) -> "ServedOperator":
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *exception: object) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            path = self.state / "control.sock"
            await nursery.start(serve_control, self.operator, RealWorld(), path, {})
            self._started.set()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ServedOperator]:
    with ServedOperator(tmp_path) as served:
        yield served


def dfs(
    node: ServedOperator, *words: str | Path, **options: object
) -> "subprocess.CompletedProcess[bytes]":
    return run("dfs", words[0], "--state", node.state, *words[1:], **options)


def test_help_imports_nothing_that_takes_time() -> None:
    listing = (
        "import sys; from dfsfs.cli.dfs import dfs\n"
        "try: dfs.main(['--help'], standalone_mode=False)\n"
        "finally: print('\\nLOADED', *sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.partition("LOADED")[2].split()
    assert "click" in loaded
    assert not {"trio", "ssl", "apsw", "pyfuse3", "cryptography", "asyncio"} & set(loaded)
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("program", ["dfs", "dfs-mount"])
def test_help(program: str) -> None:
    done = run(program, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(b"Usage: " + program.encode())


def test_mount_py_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "mount.py", "--help"], capture_output=True, timeout=60, check=True
    )
    assert done.stdout == run("dfs-mount", "--help").stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["dfs-mount"], b"Missing argument"),
        (["dfs-mount", "/nowhere/at/all", "--state", "s"], b"does not exist: mkdir it first"),
        (["dfs-mount", "/", "--listen", "x"], b"is not [HOST:]PORT"),
        (["dfs-mount", "/", "--bootstrap", "::1:4"], b"brackets"),
        (["dfs-mount", "/", "--write-concern", "0"], b"write concern is 1 to"),
        (["dfs", "node", "--bootstrap", "h:1", "--state", "s"], b"copy network.key"),
        (["dfs", "node", "--key", "none", "--state", "s"], b"there is no key file"),
        (["dfs", "node", "--insecure", "--listen", "4000", "--state", "s"], b"this machine only"),
        (["dfs", "nothing"], b"No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_meant_exits_with_2(
    tmp_path: Path, command: list[str], words: bytes
) -> None:
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_optimisation_because_assertions_are_part_of_it(tmp_path: Path) -> None:
    # Not by mount.py, which may go on with another interpreter; and nowhere that it could mount.
    program = "from dfsfs.cli.mount import main; main()"
    done = subprocess.run(
        [sys.executable, "-O", "-c", program, tmp_path / "missing"],
        capture_output=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert b"without python -O" in done.stderr


def test_a_new_key_is_for_its_owner_and_never_overwritten(tmp_path: Path) -> None:
    first = run("dfs", "key", "new", tmp_path / "key")
    assert first.returncode == 0
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    content = (tmp_path / "key").read_bytes()
    second = run("dfs", "key", "new", tmp_path / "key")
    assert second.returncode == 1
    assert b"exists already" in second.stderr
    assert (tmp_path / "key").read_bytes() == content


def test_no_node(tmp_path: Path) -> None:
    for command in (["status"], ["ls"], ["get", "k"], ["put", "k"], ["rm", "k"], ["info", "k"]):
        done = run("dfs", *command, "--state", tmp_path)
        assert done.returncode == 1
        assert b"no dfs node runs with the state directory" in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_put_and_get_by_file_and_by_stream(node: ServedOperator, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(content)
    assert dfs(node, "put", "a/b", tmp_path / "in").returncode == 0
    assert node.operator.files[b"a/b"] == content
    assert dfs(node, "put", "a/c", "-", input=content[:70_000], stdin=None).returncode == 0
    assert node.operator.files[b"a/c"] == content[:70_000]
    assert dfs(node, "get", "a/b").stdout == content
    assert dfs(node, "get", "a/b", tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == content
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~mask


def test_get_leaves_an_old_file_alone_when_it_fails(node: ServedOperator, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    done = dfs(node, "get", "none", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr == b"dfs: there is no file none\n"
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["control.sock", "out"]


def test_get_writes_into_a_device_and_does_not_replace_it(node: ServedOperator) -> None:
    node.operator.files[b"k"] = b"content"
    assert dfs(node, "get", "k", "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()


def test_an_empty_file(node: ServedOperator, tmp_path: Path) -> None:
    assert dfs(node, "put", "k").returncode == 0
    assert node.operator.files[b"k"] == b""
    assert dfs(node, "get", "k", tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == b""


def test_put_of_what_is_not_there(node: ServedOperator, tmp_path: Path) -> None:
    done = dfs(node, "put", "k", tmp_path / "none")
    assert done.returncode == 1
    assert b"none: No such file or directory" in done.stderr
    done = dfs(node, "put", "k", tmp_path)
    assert done.returncode == 1
    assert b"Is a directory" in done.stderr
    assert node.operator.files == {}


def test_names_are_bytes(node: ServedOperator) -> None:
    name = os.fsdecode(b"caf\xe9 \xff")
    assert dfs(node, "put", name).returncode == 0
    assert list(node.operator.files) == [b"caf\xe9 \xff"]
    assert dfs(node, "ls").stdout == b"caf\xe9 \xff\n"


def test_ls(node: ServedOperator) -> None:
    node.operator.files = {b"d/x": b"", b"f": b"12345"}
    assert dfs(node, "ls").stdout == b"d/\nf\n"
    assert dfs(node, "ls", "d").stdout == b"x\n"
    assert dfs(node, "ls", "f").stdout == b"f\n"
    assert dfs(node, "ls", "-l", "f").stdout.startswith(b"-rw-r--r--   1")
    node.operator.files = {b"d/%05d" % number: b"" for number in range(2_345)}
    assert dfs(node, "ls", "d").stdout.count(b"\n") == 2_345


def test_rm_goes_on_after_a_failure(node: ServedOperator) -> None:
    node.operator.files = {b"a": b"", b"b": b"", b"d/x": b""}
    done = dfs(node, "rm", "none", "a", "d", "b")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 2
    assert node.operator.files == {b"d/x": b""}


def test_status_and_info(node: ServedOperator) -> None:
    node.operator.files[b"k"] = b"123"
    assert b"twin" in dfs(node, "status").stdout
    assert b'"name": "twin"' in dfs(node, "status", "--json").stdout
    assert b'"size": 3' in dfs(node, "info", "k", "--json").stdout
    assert b"size      3 bytes" in dfs(node, "info", "k").stdout


def test_a_reader_that_goes_away_is_no_error(node: ServedOperator) -> None:
    node.operator.files = {b"%06d" % number: bytes(3) for number in range(30_000)}
    node.operator.files[b"large"] = bytes(20_000_000)
    for command in ("get large", "ls"):
        pipeline = f'"$0" {command} --state "$1" | head -c 10 >/dev/null; exit "${{PIPESTATUS[0]}}"'
        done = subprocess.run(
            ["bash", "-c", pipeline, PROGRAMS / "dfs", node.state],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == b""
        assert done.returncode == 141
