"""The programs with real nodes: start, join, refuse, end. What scripts rely on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = Path(sys.executable).parent
DEADLINE_S = 90.0  # only a hang misses it

Done = subprocess.CompletedProcess[str]


def run(*command: str | Path, stdin: str | None = None) -> Done:
    return subprocess.run(
        [PROGRAMS / command[0], *command[1:]],
        capture_output=True,
        text=True,
        input=stdin or "",
        timeout=DEADLINE_S,
        check=False,
    )


def good(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether the process is there, and not only waiting for its parent to notice its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Place:
    """State directories and mountpoints of one test; whatever runs there is ended with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = directory / "key"
        good(run("dfs", "key", "new", self.key))

    def options(self, name: str) -> list[str | Path]:
        state = self.directory / f"{name}.state"
        return ["--state", state, "--listen", "127.0.0.1:0", "--name", name, "--key", self.key]

    def mount(self, name: str, *more: str | Path) -> Done:
        (self.directory / name).mkdir(exist_ok=True)
        return run("dfs-mount", self.directory / name, *self.options(name), *more)

    def node(self, name: str, *more: str | Path) -> Done:
        return run("dfs", "node", *self.options(name), *more)

    def ask(self, name: str, *words: str | Path, stdin: str | None = None) -> Done:
        state = self.directory / f"{name}.state"
        return run("dfs", words[0], "--state", state, *words[1:], stdin=stdin)

    def address(self, name: str) -> str:
        status = json.loads(good(self.ask(name, "status", "--json")))
        address: str = status["node"]["addresses"][0]
        return address.partition("://")[2]

    def pid(self, name: str) -> int:
        return int((self.directory / f"{name}.state" / "lock").read_text())

    def wait_end(self, pid: int) -> None:
        wait_until(lambda: not runs(pid))

    def end(self) -> None:
        for state in self.directory.glob("*.state"):
            mountpoint = state.with_suffix("")
            if mountpoint.is_mount():
                subprocess.run(["fusermount3", "-uz", mountpoint], check=False)
            with contextlib.suppress(OSError, ValueError):
                pid = int((state / "lock").read_text())
                if str(self.directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    self.wait_end(pid)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_a_mount_answers_when_the_program_returns_and_ends_when_unmounted(place: Place) -> None:
    said = good(place.mount("one"))
    mountpoint = place.directory / "one"
    assert f"mounted at {mountpoint}" in said
    assert f"fusermount3 -u {mountpoint}" in said
    assert "--bootstrap" in said
    (mountpoint / "file").write_text("content")
    assert good(place.ask("one", "get", "file")) == "content"

    pid = place.pid("one")
    second = place.mount("one")
    assert second.returncode == 1
    assert f"in use by process {pid}" in second.stderr

    subprocess.run(["fusermount3", "-u", mountpoint], check=True)
    place.wait_end(pid)
    assert place.ask("one", "status").returncode == 1
    good(place.mount("one"))
    assert (mountpoint / "file").read_text() == "content"


def test_unmount_and_mount_again_without_a_pause(place: Place) -> None:
    mountpoint = place.directory / "one"
    for number in range(3):
        good(place.mount("one"))
        assert sorted(path.name for path in mountpoint.iterdir()) == [
            str(earlier) for earlier in range(number)
        ]
        (mountpoint / str(number)).touch()
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(place: Place, number: signal.Signals) -> None:
    good(place.mount("one"))
    (place.directory / "one" / "file").write_text("content")
    pid = place.pid("one")
    os.kill(pid, number)
    place.wait_end(pid)
    assert not (place.directory / "one").is_mount()
    assert list((place.directory / "one").iterdir()) == []


def test_keys_and_paths_are_one_thing_on_every_node(place: Place) -> None:
    good(place.mount("one"))
    good(place.mount("two", "--bootstrap", place.address("one")))
    good(place.node("three", "--bootstrap", place.address("two")))
    good(place.ask("one", "put", "a/b/c", stdin="by key"))
    assert (place.directory / "two" / "a" / "b" / "c").read_text() == "by key"
    (place.directory / "two" / "a" / "large").write_bytes(bytes(range(256)) * 4000)
    assert good(place.ask("three", "ls", "a")) == "b/\nlarge\n"
    info = json.loads(good(place.ask("two", "info", "--json", place.directory / "two/a/large")))
    assert info["size"] == 1_024_000
    assert info["path"] == "a/large"
    again = json.loads(good(place.ask("three", "info", "--json", "a/large")))
    assert again["key"] == info["key"]
    assert os.getxattr(place.directory / "one/a/large", "user.dfs.key").decode() == info["key"]
    good(place.ask("three", "rm", "a/large", "a/b/c", "a/b"))
    assert list((place.directory / "one" / "a").iterdir()) == []
    peers = json.loads(good(place.ask("three", "status", "--json")))["peers"]
    assert sorted((peer["name"], peer["state"]) for peer in peers) == [
        ("one", "alive"),
        ("two", "alive"),
    ]


def test_three_ways_not_to_join(place: Place) -> None:
    good(place.node("one"))
    address = place.address("one")
    state = place.directory / "other.state"
    common: list[str | Path] = ["--state", state, "--listen", "127.0.0.1:0", "--bootstrap"]

    without = run("dfs", "node", *common, address)
    assert without.returncode == 2
    assert "copy network.key" in without.stderr

    good(run("dfs", "key", "new", place.directory / "wrong"))
    wrong = run("dfs", "node", *common, address, "--key", place.directory / "wrong")
    assert wrong.returncode == 1

    with stranger() as elsewhere:
        other = run("dfs", "node", *common, elsewhere, "--key", place.key)
    assert other.returncode == 1
    assert "not a dfs node" in other.stderr
    assert "not a dfs node" not in wrong.stderr
    assert "key" in wrong.stderr
    for done in (without, wrong, other):
        assert "Traceback" not in done.stderr


@contextlib.contextmanager
def stranger() -> Iterator[str]:
    """Something that answers as a web server does; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_a_first_node_founds_a_network_with_its_key(tmp_path: Path) -> None:
    place = Place(tmp_path)
    state = tmp_path / "founder.state"
    try:
        good(run("dfs", "node", "--state", state, "--listen", "127.0.0.1:0", "--name", "founder"))
        key = state / "network.key"
        assert key.stat().st_mode & 0o777 == 0o600
        place.key = key
        good(place.node("guest", "--bootstrap", place.address("founder")))
        pid = place.pid("founder")
        os.kill(pid, signal.SIGTERM)
        place.wait_end(pid)
        good(run("dfs", "node", "--state", state, "--listen", "127.0.0.1:0"))
        wait_until(
            lambda: "alive" in good(place.ask("founder", "status"))
        )  # it comes back to the guest by itself
    finally:
        place.end()


def test_insecure_nodes_meet_on_this_machine(place: Place) -> None:
    def start(name: str, *more: str) -> None:
        state = place.directory / f"{name}.state"
        options: list[str | Path] = ["--state", state, "--name", name, "--insecure"]
        options += ["--listen", "127.0.0.1:0"]
        good(run("dfs", "node", *options, *more))

    start("one")
    start("two", "--bootstrap", place.address("one"))
    good(place.ask("one", "put", "k", stdin="open"))
    assert good(place.ask("two", "get", "k")) == "open"


def test_a_mountpoint_that_is_taken(place: Place) -> None:
    good(place.mount("one"))
    (place.directory / "two.state").mkdir()
    options = place.options("two")
    done = run("dfs-mount", place.directory / "one", *options)
    assert done.returncode != 0
    assert "mounted at" in done.stderr
    assert (place.directory / "one").is_mount()


def test_in_the_foreground_it_says_when_it_is_ready(place: Place) -> None:
    with subprocess.Popen(
        [PROGRAMS / "dfs", "node", "-f", *place.options("one")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("one listens at 127.0.0.1:")
        child.send_signal(signal.SIGTERM)
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr is not None
        assert "Traceback" not in child.stderr.read()
