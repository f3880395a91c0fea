"""Into the background and back: what the parent says and returns, what the child leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from dfsfs.base.errors import Misconfigured, Unavailable
from dfsfs.cli.background import run_in_background

def serve(ready):
    {body}

sys.exit(run_in_background(serve, "prog", Path(sys.argv[1]), verbose=False))
"""


def run(tmp_path: Path, body: str) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.format(body=body.replace("\n", "\n    "))
    return subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "state" / "log")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )


def wait_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the child did not end"
        time.sleep(0.01)


def log_of(tmp_path: Path) -> str:
    return (tmp_path / "state" / "log").read_text()


def test_the_parent_returns_when_the_child_is_ready_and_not_before(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "time.sleep(0.2)\n"
        "Path(sys.argv[1]).with_name('started').touch()\n"
        "ready(f'serving as {os.getpid()}')\n"
        "time.sleep(600)",
    )
    # The pipes of the parent were closed although the child lives on: run() returned.
    assert done.returncode == 0
    assert done.stderr == ""
    pid = int(done.stdout.split()[-1])
    try:
        assert (tmp_path / "state" / "started").exists()
        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
        assert Path(f"/proc/{pid}/fd/0").resolve() == Path("/dev/null")
        for stream in (1, 2):
            assert Path(f"/proc/{pid}/fd/{stream}").resolve() == tmp_path / "state" / "log"
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_end(pid)


def test_a_failure_is_a_sentence_and_a_status(tmp_path: Path) -> None:
    done = run(tmp_path, "raise Unavailable('nobody answers at h:1; is it running?')")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "prog: nobody answers at h:1; is it running?\n"
    assert "nobody answers" in log_of(tmp_path)
    assert run(tmp_path, "raise Misconfigured('no')").returncode == 2


def test_a_bug_is_in_the_log_with_its_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, "raise KeyError('surprise')")
    assert done.returncode == 1
    assert "see its log" in done.stderr
    assert "Traceback" not in done.stderr
    assert "KeyError: 'surprise'" in log_of(tmp_path)


def test_a_child_that_dies_without_a_word_is_noticed(tmp_path: Path) -> None:
    done = run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 1
    assert "ended before it was ready (-9)" in done.stderr


def test_a_failure_after_ready_is_only_in_the_log(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "ready('up')\nraise Unavailable('later')",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "up\n", "")
    deadline = time.monotonic() + 60
    while "later" not in log_of(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_log_is_bounded_and_standard_error_follows_it(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "import logging\n"
        "ready(str(os.getpid()))\n"
        "log = logging.getLogger('dfsfs.test')\n"
        "for number in range(13_000):\n"
        "    log.info('%06d %s', number, 'x' * 1000)\n"
        "os.write(2, b'raw words on standard error\\n')\n"
        "Path(sys.argv[1]).with_name('done').touch()\n",
    )
    wait_end(int(done.stdout))
    state = tmp_path / "state"
    assert (state / "done").exists()
    assert "raw words" in log_of(tmp_path)
    assert sorted(path.name for path in state.iterdir()) == ["done", "log", "log.1"]
    assert sum(path.stat().st_size for path in state.glob("log*")) < 11_000_000


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    done = run(tmp_path, "ready('up')")
    assert done.returncode == 1
    assert "cannot write the log" in done.stderr
