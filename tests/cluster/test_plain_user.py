"""Somebody who is not root mounts: what he gets, and what others get of his mount."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfsfs.testing.processes import DEADLINE_S, PROGRAMS

USER, OTHER = 65534, 65533
# In a mount namespace of its own, where /dev/fuse is open to everybody as it usually is.
SCRIPT = r"""
set -e
mknod "$HOME/fuse" c 10 229
chmod 666 "$HOME/fuse"
mount --bind "$HOME/fuse" /dev/fuse
as_user() { setpriv --reuid=$USER --regid=$USER --clear-groups "$@"; }
as_other() { setpriv --reuid=$OTHER --regid=$OTHER --clear-groups "$@"; }
as_user "$PROGRAMS/dfs-mount" "$HOME/mount" --listen 127.0.0.1:0 > /dev/null
trap 'as_user fusermount3 -uz "$HOME/mount"' EXIT
as_user mkdir "$HOME/mount/directory"
as_user sh -c 'cd "$HOME/mount/directory"; echo text > file; ln -s file link'
as_user cat "$HOME/mount/directory/link"
as_user stat -c %u:%g:%A "$HOME/mount" "$HOME/mount/directory/file"
as_user chown 0 "$HOME/mount/directory" 2> /dev/null || echo cannot give away
as_other ls "$HOME/mount" 2> /dev/null || echo closed to others
ls "$HOME/mount" 2> /dev/null || echo closed to root
as_user "$PROGRAMS/dfs" status | grep -q "^mount .*$HOME/mount" && echo status
as_user fusermount3 -u "$HOME/mount" && echo unmounted
trap - EXIT
as_user "$PROGRAMS/dfs-mount" "$HOME/mount" --listen 127.0.0.1:0 -o allow_other 2>&1 || echo refused
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the user; not below pytest's, which every run closes to others again."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    assert all(map(shutil.which, ("unshare", "setpriv"))), "this test needs util-linux"
    who = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    can_run = subprocess.run([*who, sys.executable, "-c", "import pyfuse3"], check=False)
    if can_run.returncode:
        pytest.skip("this Python is closed to other users")
    with tempfile.TemporaryDirectory(prefix="dfs-home-") as directory:
        home = Path(directory)
        (home / "mount").mkdir()
        for path in (home, home / "mount"):
            os.chown(path, USER, USER)
        yield home


def test_a_mount_of_somebody_who_is_not_root(home: Path) -> None:
    """Promise 1: the founder of a network owns its root."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PROGRAMS": str(PROGRAMS),
            "USER": str(USER),
            "OTHER": str(OTHER),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines[:-2] == [
        "text",
        f"{USER}:{USER}:drwxr-xr-x",
        f"{USER}:{USER}:-rw-r--r--",
        "cannot give away",
        "closed to others",
        "closed to root",
        "status",
        "unmounted",
    ], done
    assert "user_allow_other" in lines[-2]
    assert lines[-1] == "refused"
