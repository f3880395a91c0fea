"""Programs nobody here wrote, in the mount: cp, diff, tar, git, rsync, find."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SOURCE = Path(sysconfig.get_paths()["stdlib"]) / "email"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    assert shutil.which(str(command[0])), f"{command[0]} is needed for this test"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        **{
            f"GIT_{role}_{what}": "test@example.org"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with everything cp -a must keep."""
    root = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(SOURCE, root, symlinks=True)
    (root / "link").symlink_to("message.py")
    os.link(root / "message.py", root / "hard")
    (root / "sparse").touch()
    os.truncate(root / "sparse", 10_000_000)
    (root / "locked").mkdir(mode=0o700)
    (root / "locked" / "file").write_bytes(b"x" * 700_000)
    (root / "locked" / "file").chmod(0o4711)
    os.mkfifo(root / "fifo")
    os.utime(root / "locked", ns=(10**18 + 1, 10**18 + 2))
    return root


def listing(root: Path) -> list[str]:
    return sorted(
        run("find", ".", "-printf", r"%P %y %m %U %G %s %T@ %n %l\n", cwd=root).splitlines()
    )


def without_directory_sizes(lines: list[str]) -> list[str]:
    """A directory's size is the filesystem's own business."""
    result = []
    for line in lines:
        words = line.split(" ")
        if "d" in words[:2]:
            words[words.index("d") + 4] = "-"
        result.append(" ".join(words))
    return result


def test_cp_and_diff(tree: Path, directory: Path) -> None:
    run("cp", "-a", tree, directory)
    run("diff", "-r", "--no-dereference", tree / "locked", directory / "tree" / "locked")
    assert without_directory_sizes(listing(directory / "tree")) == without_directory_sizes(
        listing(tree)
    )
    for path in tree.rglob("*.py"):
        assert (directory / "tree" / path.relative_to(tree)).read_bytes() == path.read_bytes()


def test_tar_out_and_in(tree: Path, directory: Path) -> None:
    run("tar", "--format=posix", "-cSf", directory / "archive.tar", "-C", tree.parent, "tree")
    run("tar", "-xpf", directory / "archive.tar", "-C", directory)
    assert without_directory_sizes(listing(directory / "tree")) == without_directory_sizes(
        listing(tree)
    )
    run("tar", "-df", directory / "archive.tar", "-C", directory)
    run("rm", "-rf", directory / "tree")
    assert not (directory / "tree").exists()


def test_git(tree: Path, directory: Path) -> None:
    shutil.copytree(SOURCE, directory / "repository")
    repository = directory / "repository"
    run("git", "init", "-q", "-b", "main", cwd=repository)
    run("git", "add", "-A", cwd=repository)
    run("git", "commit", "-q", "-m", "first", cwd=repository)
    assert run("git", "status", "--porcelain", cwd=repository) == ""
    (repository / "message.py").write_text("changed\n")
    assert run("git", "status", "--porcelain", cwd=repository) == " M message.py\n"
    run("git", "commit", "-q", "-a", "-m", "second", cwd=repository)
    run("git", "checkout", "-q", "-b", "other", "HEAD~1", cwd=repository)
    (repository / "another").write_text("file\n")
    run("git", "add", "-A", cwd=repository)
    run("git", "commit", "-q", "-m", "third", cwd=repository)
    run("git", "rebase", "-q", "main", cwd=repository)
    run("git", "gc", "-q", "--prune=now", cwd=repository)
    run("git", "fsck", "--full", "--strict", cwd=repository)
    run("git", "clone", "-q", repository, directory / "clone")
    assert run("git", "log", "--format=%s", cwd=directory / "clone").split() == [
        "third",
        "second",
        "first",
    ]


def test_rsync_twice(tree: Path, directory: Path) -> None:
    command = ["rsync", "-aHAX", "--checksum", "--stats", f"{tree}/", str(directory / "copy")]
    if "ACLs" in run("rsync", "--version") and "no ACLs" not in run("rsync", "--version"):
        # The kernel answers "not supported" for ACLs here, which rsync -A takes for "none".
        run(*command)
    first = run("rsync", "-aHX", *command[2:])
    assert "total transferred file size: 0 bytes" in first.lower()
    assert run("rsync", "-aHX", "--checksum", "-i", command[-2], command[-1]) == ""


def test_python_runs_from_the_mount(directory: Path) -> None:
    (directory / "package").mkdir()
    (directory / "package" / "__init__.py").write_text("value = 42\n")
    code = "import package; print(package.value)"
    for _ in range(2):  # the second time from the compiled file
        assert run(sys.executable, "-c", code, cwd=directory) == "42\n"
    assert list((directory / "package" / "__pycache__").iterdir())


def test_a_program_is_executed_from_the_mount(directory: Path) -> None:
    true = shutil.which("true")
    assert true
    shutil.copy2(true, directory / "program")
    run(directory / "program")


def test_sqlite(directory: Path) -> None:
    import sqlite3

    for mode in ("wal", "delete"):
        connection = sqlite3.connect(directory / f"{mode}.db")
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE numbers (n INTEGER)")
        for number in range(50):
            with connection:
                connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        other = sqlite3.connect(directory / f"{mode}.db")
        assert other.execute("SELECT sum(n) FROM numbers").fetchone() == (1225,)
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        other.close()
        connection.close()


def test_find_delete(tree: Path, directory: Path) -> None:
    run("cp", "-a", tree, directory)
    run("find", directory / "tree", "-delete")
    assert list(directory.iterdir()) == []
