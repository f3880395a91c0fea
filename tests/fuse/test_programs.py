"""Programs nobody here wrote, in the mount. One that is missing fails its test: it is no proof.

cp, diff, tar, git, rsync, find, sqlite, vim, make and gcc, venv and pip, dpkg-deb, zip, flock.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(sysconfig.get_paths()["stdlib"]) / "email"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    assert shutil.which(str(command[0])), f"{command[0]} is needed for this test"
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(
                ("PYTHON", "MAKE", "MFLAGS")
            )  # our own make has flags of its own
        },
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


WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"PRAGMA journal_mode={sys.argv[2]}")
connection.execute("PRAGMA synchronous=FULL")
connection.execute("CREATE TABLE IF NOT EXISTS pages (number INTEGER PRIMARY KEY, data BLOB)")
number = connection.execute("SELECT coalesce(max(number), 0) FROM pages").fetchone()[0]
while True:
    number += 1
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO pages VALUES (?, randomblob(3000))", (number,))
    connection.execute("UPDATE pages SET data = randomblob(5000) WHERE number = ?", (number // 2,))
    connection.execute("COMMIT")
    print(number, flush=True)
"""


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate"])
def test_sqlite_whose_writer_is_killed(directory: Path, mode: str) -> None:
    database = directory / "db"
    acknowledged = 0
    for transactions in (1, 7, 20):
        command = [sys.executable, "-c", WRITER, str(database), mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(transactions):
                acknowledged = int(writer.stdout.readline())
            writer.kill()
        connection = sqlite3.connect(database)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count, last = connection.execute("SELECT count(*), max(number) FROM pages").fetchone()
        assert count == last >= acknowledged
        connection.close()


def test_sqlite_from_several_processes(directory: Path) -> None:
    database = directory / "db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE counter (n INTEGER)")
        connection.execute("INSERT INTO counter VALUES (0)")
    connection.close()
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "for _ in range(30): c.execute('UPDATE counter SET n = n + 1')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(database)]) for _ in range(3)]
    assert [writer.wait(timeout=100) for writer in writers] == [0, 0, 0]
    connection = sqlite3.connect(database)
    assert connection.execute("SELECT n FROM counter").fetchone() == (90,)
    connection.close()


@pytest.mark.parametrize("how", ["no", "yes"])
def test_vim_saves(directory: Path, how: str) -> None:
    """With a rename (backupcopy=no) and in place, each with backup and swap file."""
    path = directory / "text"
    path.write_text("one\ntwo\n" * 1000)
    path.chmod(0o640)
    before = path.stat().st_ino
    settings = f"set backupdir=. backupskip= swapfile backup writebackup backupcopy={how}"
    run("vim", "-E", "-s", "-u", "NONE", "-c", settings, "-c", "%s/two/three/", "-c", "wq", path)
    assert path.read_text() == "one\nthree\n" * 1000
    assert path.stat().st_mode & 0o777 == 0o640
    assert (path.stat().st_ino == before) == (how == "yes")
    assert sorted(entry.name for entry in directory.iterdir()) == ["text", "text~"]


def test_make_builds_in_parallel_what_changed(directory: Path) -> None:
    (directory / "sum.h").write_text("#define STEP 1\n")
    names = [f"part{number}" for number in range(24)]
    for name in names:
        (directory / f"{name}.c").write_text(
            f'#include "sum.h"\nint {name}(int n) {{ return n + STEP; }}\n'
        )
    calls = "".join(f"int {name}(int);\n" for name in names)
    body = "".join(f"  n = {name}(n);\n" for name in names)
    (directory / "main.c").write_text(
        f'#include <stdio.h>\n{calls}int main(void) {{\n  int n = 0;\n{body}  printf("%d", n);}}'
    )
    (directory / "Makefile").write_text(
        "OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))\n"
        "CFLAGS := -MMD -O0\n"
        "sum: $(OBJECTS)\n\t$(CC) -o $@ $^\n"
        "-include $(wildcard *.d)\n"
    )
    run("make", "-j4", "CC=gcc", cwd=directory)
    assert run(directory / "sum") == "24"
    assert "up to date" in run("make", "-j4", "CC=gcc", cwd=directory)
    (directory / "sum.h").write_text("#define STEP 2\n")
    assert run("make", "-j4", "CC=gcc", cwd=directory).count("-c ") == 24
    assert run(directory / "sum") == "48"
    (directory / "part7.c").write_text("int part7(int n) { return n + 100; }\n")
    assert run("make", "CC=gcc", cwd=directory).count("-c ") == 1
    assert run(directory / "sum") == "146"


def test_venv_and_pip(directory: Path) -> None:
    wheel = directory / "example-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("example/__init__.py", "def main():\n    print('it runs')\n")
        archive.writestr(
            "example-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: example\nVersion: 1.0\n"
        )
        archive.writestr(
            "example-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(
            "example-1.0.dist-info/entry_points.txt", "[console_scripts]\nexample=example:main\n"
        )
        archive.writestr("example-1.0.dist-info/RECORD", "")
    run(sys.executable, "-m", "venv", directory / "venv")
    python = directory / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-cache-dir", wheel)
    assert run(directory / "venv" / "bin" / "example") == "it runs\n"
    run(python, "-m", "pip", "uninstall", "-q", "-y", "example")
    assert not list((directory / "venv" / "lib").rglob("example*"))


def test_cp_keeps_holes_and_makes_them(directory: Path) -> None:
    path = directory / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 4096)
    run("cp", "-a", "--sparse=always", path, directory / "copy")
    run("cmp", path, directory / "copy")
    assert (directory / "copy").stat().st_blocks * 512 < 2 << 20
    (directory / "zeros").write_bytes(bytes(8 << 20))
    run("cp", "--sparse=always", directory / "zeros", directory / "holes")
    assert (directory / "holes").stat().st_size == 8 << 20
    assert (directory / "holes").stat().st_blocks == 0


def test_dpkg_deb(tree: Path, directory: Path) -> None:
    package = directory / "package"
    shutil.copytree(SOURCE, package / "usr" / "lib" / "example")
    (package / "DEBIAN").mkdir(mode=0o755)
    (package / "DEBIAN" / "control").write_text(
        "Package: example\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\n"
        "Description: example\n"
    )
    run("chmod", "-R", "u=rwX,go=rX", package)
    run("dpkg-deb", "--root-owner-group", "--build", package, directory / "example.deb")
    run("dpkg-deb", "--extract", directory / "example.deb", directory / "out")
    run("diff", "-r", package / "usr", directory / "out" / "usr")


def test_zip_round_trip(tree: Path, directory: Path) -> None:
    archive = directory / "tree.zip"
    run("zip", "-q", "-r", "--symlinks", archive, "email", cwd=SOURCE.parent)
    run("zip", "-q", archive, "email/message.py", cwd=SOURCE.parent)  # rewrites by rename
    run("unzip", "-q", archive, "-d", directory)
    run("diff", "-r", "-x", "__pycache__", SOURCE, directory / "email")


def test_flock_excludes(directory: Path) -> None:
    lock, counter = directory / "lock", directory / "counter"
    counter.write_text("0")
    step = (
        f"for i in $(seq 20); do flock {lock} sh -c 'echo $(($(cat {counter})+1)) >{counter}'; done"
    )
    shells = [subprocess.Popen(["bash", "-c", step]) for _ in range(3)]
    assert [shell.wait(timeout=100) for shell in shells] == [0, 0, 0]
    assert counter.read_text() == "60\n"
