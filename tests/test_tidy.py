"""What is law is a test: floors, doors, sizes and names, checked on the source itself.

The table of floors is the one in ARCHITECTURE.md. Every import counts, also inside functions and
under TYPE_CHECKING: a floor that is only needed for types is still a floor that is known.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
PACKAGE = ROOT / "dfsfs"
LINES_MAX = 600
FUNCTION_LINES_MAX = 100
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "doc").rglob("*.md")])
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = sorted(
    [
        *SOURCES,
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "contrib").rglob("*.py"),
        ROOT / "mount.py",
    ]
)


@dataclass(frozen=True)
class Floor:
    """What one package may import."""

    packages: frozenset[str]
    third_party: frozenset[str]


@dataclass(frozen=True)
class Import:
    """One imported module, as a full dotted name, and whether it is one name out of `module`."""

    module: str
    name: str | None
    line: int


def floors_in(text: str) -> dict[str, Floor]:
    """Parse the fenced table of floors."""
    fenced = re.search(r"^```layers\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert fenced, "ARCHITECTURE.md has no ```layers table"
    floors: dict[str, Floor] = {}
    for line in fenced[1].splitlines():
        if not line or line.startswith("#"):
            continue
        columns = re.split(r"\s{2,}", line.strip())
        assert len(columns) == 3, f"not three columns: {line!r}"
        name, packages, third_party = columns
        assert name not in floors, f"{name} has two floors"
        floors[name] = Floor(_words(packages), _words(third_party))
    return floors


def _words(column: str) -> frozenset[str]:
    return frozenset() if column == "-" else frozenset(column.split())


@cache
def floors() -> dict[str, Floor]:
    return floors_in((ROOT / "ARCHITECTURE.md").read_text())


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports_in(tree: ast.Module) -> Iterator[Import]:
    """Every import of a module, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                yield Import(node.module, alias.name, node.lineno)


def package_of(path: Path) -> str:
    """The floor a file of dfsfs is on: its package, or its own name directly below dfsfs."""
    relative = path.relative_to(PACKAGE)
    if len(relative.parts) > 1:
        return relative.parts[0]
    return "dfsfs" if relative.stem == "__init__" else relative.stem


def violations(package: str, tree: ast.Module, table: dict[str, Floor]) -> Iterator[str]:
    """Imports that `package` may not make."""
    floor = table[package]
    for found in imports_in(tree):
        root, _, rest = found.module.partition(".")
        if root == "dfsfs":
            target = rest.partition(".")[0] or (found.name or "")
            if not rest and target not in table:
                continue  # `from dfsfs import __version__`
            if target == package or "*" in floor.packages:
                continue
            if target not in floor.packages:
                yield f"line {found.line}: {package} may not import {target}"
            elif "." in rest and target not in {"base"} and package not in {"node", "cli"}:
                yield f"line {found.line}: import dfsfs.{target}, not its inside {found.module}"
        elif root not in sys.stdlib_module_names and not {root, "*"} & floor.third_party:
            yield f"line {found.line}: {package} may not import {root}"


# -- floors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    package = package_of(path)
    assert package in floors(), f"{package} has no floor in ARCHITECTURE.md"
    assert not list(violations(package, tree_of(path), floors()))


def test_every_floor_exists_and_none_needs_itself_through_others() -> None:
    table = floors()
    for name in table.keys() - {"dfsfs"}:
        # `node` is where parts meet; it appears when the parts are there.
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists(), name
    for name, floor in table.items():
        assert floor.packages <= table.keys() | {"*"}, f"{name} names a floor that is none"
    below: dict[str, set[str]] = {name: set(floor.packages) for name, floor in table.items()}
    for _ in table:
        for reach in below.values():
            reach |= set().union(*(below.get(name, set()) for name in reach))
    assert not [name for name, reach in below.items() if name in reach]


def test_the_floor_check_can_fail() -> None:
    table = floors_in("```layers\nbase  -  -\nvfs  base  trio\nfuse  vfs  trio pyfuse3\n```\n")
    source = (
        "import apsw\n"
        "import os\n"
        "from dfsfs.base.errors import DfsError\n"
        "def late():\n"
        "    from dfsfs.fuse import serve\n"
    )
    assert list(violations("vfs", ast.parse(source), table)) == [
        "line 1: vfs may not import apsw",
        "line 5: vfs may not import fuse",
    ]
    inside = ast.parse("from dfsfs.vfs.extents import Extents")
    assert list(violations("fuse", inside, table)) == [
        "line 1: import dfsfs.vfs, not its inside dfsfs.vfs.extents"
    ]


# -- doors: what only one place may use ------------------------------------------------------------


@dataclass(frozen=True)
class Door:
    """Modules or calls that only some files may use, and what others use instead."""

    names: frozenset[str]
    allowed: tuple[str, ...]
    instead: str


DOORS = (
    Door(frozenset({"sqlite3"}), (), "runtime.Database (apsw bundles a fixed SQLite)"),
    Door(frozenset({"apsw"}), ("runtime/database.py", "testing/disk.py"), "runtime.Database"),
    Door(frozenset({"ssl", "socket", "cryptography"}), ("net/", "testing/"), "net"),
    Door(frozenset({"pyfuse3"}), ("fuse/",), "vfs"),
    Door(
        frozenset({"subprocess", "multiprocessing"}),
        # Without privileges only fusermount3 can unmount; libfuse starts it for that, too.
        # A process that was killed can end nothing itself, so a mount has a watchdog.
        ("testing/", "fuse/mounts.py", "fuse/connection.py", "fuse/watchdog.py"),
        "nothing: a node starts no programs",
    ),
    Door(frozenset({"asyncio"}), (), "trio"),
    Door(frozenset({"pickle", "marshal", "shelve"}), (), "base.codec"),
    Door(frozenset({"unittest"}), (), "a twin that passes the same contract suite"),
)
CALL_DOORS = (
    # The types may be named anywhere: a function takes its dice as an argument.
    Door(
        frozenset({"random.*", "Random", "secrets.choice", "secrets.randbelow"}),
        ("runtime/world.py", "testing/"),
        "World.random",
    ),
    Door(
        frozenset({"threading.Thread", "ThreadPoolExecutor", "ProcessPoolExecutor"}),
        ("runtime/", "fuse/", "testing/"),
        "World.run_blocking",
    ),
    Door(frozenset({"print"}), ("cli/",), "logging, or return the text"),
    Door(
        # The reader of a listing wants local time; the log file names its own times.
        frozenset({"time.time", "time.time_ns", "time.monotonic", "time.sleep", "datetime.now"}),
        ("runtime/world.py", "testing/"),
        "World.wall_ns and World.now_s",
    ),
    Door(
        frozenset({"trio.to_thread.run_sync"}),
        ("runtime/world.py", "fuse/", "cli/", "testing/"),
        "World.run_blocking",
    ),
    Door(frozenset({"sys.exit", "os._exit", "os.fork"}), ("cli/", "testing/"), "an exception"),
    Door(frozenset({"os.environ.get", "os.getenv"}), ("cli/", "testing/"), "Config"),
    Door(frozenset({"eval", "exec", "compile", "__import__"}), (), "plain code"),
)
BROAD_HANDLERS = (
    "fuse/border.py",
    "fuse/invalidate.py",
    "net/session.py",
    "runtime/",
    "cli/background.py",
    "testing/",
)
"""Where `except Exception` or wider may stand: the borders where a failure of ours must not end
what others depend on. Each logs with traceback."""


def _allowed(path: Path, door: tuple[str, ...]) -> bool:
    relative = path.relative_to(PACKAGE).as_posix()
    return any(
        relative == place or (place.endswith("/") and relative.startswith(place)) for place in door
    )


def broken_doors(path: Path, tree: ast.Module) -> Iterator[str]:
    """Uses of what belongs behind a door elsewhere."""
    for found in imports_in(tree):
        names = {found.module.partition(".")[0]}
        for door in DOORS:
            if names & door.names and not _allowed(path, door.allowed):
                yield f"line {found.line}: {found.module}: use {door.instead}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            for door in CALL_DOORS:
                if {called, called.partition(".")[0] + ".*"} & door.names and not _allowed(
                    path, door.allowed
                ):
                    yield f"line {node.lineno}: {called}(): use {door.instead}"


def broad_handlers(tree: ast.Module) -> Iterator[str]:
    """Handlers that catch whatever it is, and do not raise it again."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            if caught in {"", "Exception", "BaseException"} and not _raises(node):
                yield f"line {node.lineno}: except {caught or 'everything'}"


def _raises(handler: ast.ExceptHandler) -> bool:
    """Whether the handler passes on what it does not know, after cleaning up or telling others."""
    return any(isinstance(node, ast.Raise) for node in ast.walk(handler))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_doors(path: Path) -> None:
    found = list(broken_doors(path, tree_of(path)))
    if not _allowed(path, BROAD_HANDLERS):
        found += broad_handlers(tree_of(path))
    assert not found


def test_the_door_check_can_fail() -> None:
    source = (
        "import sqlite3, pickle\n"
        "import time\n"
        "def now():\n"
        "    import ssl\n"
        "    print(time.time(), random.choice('ab'))\n"
        "    try: pass\n"
        "    except Exception: pass\n"
        "    try: pass\n"
        "    except BaseException:\n"
        "        raise\n"
    )
    tree = ast.parse(source)
    found = [line.partition(":")[0] for line in broken_doors(PACKAGE / "vfs/x.py", tree)]
    assert sorted(found) == ["line 1", "line 1", "line 4", "line 5", "line 5", "line 5"]
    assert list(broad_handlers(tree)) == ["line 7: except Exception"]


def test_the_namespace_is_synchronous() -> None:
    for path in sorted((PACKAGE / "namespace").glob("*.py")):
        assert not [
            n for n in ast.walk(tree_of(path)) if isinstance(n, ast.AsyncFunctionDef | ast.Await)
        ], path


def test_nothing_of_the_house_imports_its_test_tools() -> None:
    for path in SOURCES:
        if package_of(path) != "testing":
            assert not [
                i for i in imports_in(tree_of(path)) if i.module.startswith("dfsfs.testing")
            ], path


# -- sizes and names -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_docstrings(path: Path) -> None:
    tree = tree_of(path)
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_MAX, f"{lines} lines: find the two things this file is about"
    assert ast.get_docstring(tree) or not tree.body, "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"


def test_names_say_what_a_thing_is() -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|manager|common|misc|impl|base_.*)($|_)")
    for path in PROGRAMS:
        assert not vague.search(path.stem), f"{path}: what is it?"
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                assert not node.name.endswith(("Manager", "Helper", "Util", "Utils", "Impl")), (
                    node.name
                )


def test_the_words_are_those_of_the_glossary() -> None:
    other_words = re.compile(r"(^|_)(chunks?|blobs?|oplog|manifest|mutex|master|slave)($|_)", re.I)
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Name):
                name = node.id
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = node.name
            else:
                continue
            assert not other_words.search(name), f"{path}: {name}: see doc/glossary.md"


def test_packages_list_what_they_offer() -> None:
    for path in sorted(PACKAGE.rglob("__init__.py")):
        tree = tree_of(path)
        listed: list[str] = []
        offered: list[str] = []
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                offered += [alias.asname or alias.name for alias in node.names]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                listed = ast.literal_eval(node.value)
        if package_of(path) != "dfsfs" and offered:
            assert sorted(listed) == sorted(set(offered) - {"TYPE_CHECKING", "Any"}), path


# -- documents -------------------------------------------------------------------------------------


def paths_named_in(text: str) -> Iterator[str]:
    """Names in backticks that claim to be files or directories of the repository, and links."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(r"`([^`\s]+)`", prose):
        if re.fullmatch(r"(dfsfs|tests|doc|contrib|\.ci)/[\w./-]*|[A-Z][\w.-]*\.md", name):
            yield name
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if "://" not in target:
            yield target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_what_exists(path: Path) -> None:
    missing = [
        name
        for name in paths_named_in(path.read_text())
        if not (ROOT / name).exists() and not (path.parent / name).exists()
    ]
    assert not missing


def test_the_document_check_can_fail() -> None:
    text = "see `dfsfs/nowhere.py`, `dfs ls` and [it](doc/none.md)\n```\n`dfsfs/x`\n```\n"
    assert list(paths_named_in(text)) == ["dfsfs/nowhere.py", "doc/none.md"]


def test_decisions_have_a_number_of_their_own() -> None:
    numbers = [path.name[:4] for path in (ROOT / "doc" / "decisions").glob("*.md")]
    assert all(number.isdecimal() for number in numbers)
    assert len(numbers) == len(set(numbers))


def test_shell_scripts_parse_and_stop_at_the_first_failure() -> None:
    scripts = [*(ROOT / "contrib").glob("*.sh"), ROOT / ".ci" / "run"]
    assert len(scripts) >= 4
    for script in scripts:
        assert os.access(script, os.X_OK), script
        assert "\nset -euo pipefail\n" in script.read_text(), script
        subprocess.run(["bash", "-n", script], check=True)


def test_pyproject_names_every_third_party_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for floor in floors().values():
        for name in floor.third_party - {"*"}:
            assert re.search(rf'^    "{name}>=', text, re.MULTILINE), name
