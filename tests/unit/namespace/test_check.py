"""`check` is the oracle of other tests: here it has to find what is planted."""

import pytest

from dfsfs.base.types import ROOT_INODE, Origin
from tests.unit.namespace.conftest import Node, Wall

PLANTED = [
    "UPDATE inode SET nlink=7 WHERE kind=8",
    "UPDATE inode SET children=7 WHERE inode=1",
    "UPDATE inode SET explicit=0 WHERE kind=4",
    "UPDATE inode SET size=1 WHERE kind=8",
    "UPDATE inode SET siblings=0 WHERE siblings=2",
    "UPDATE link SET live=0 WHERE role=1",
    "UPDATE link SET directory=2 WHERE role=1",
    "UPDATE link SET role=2 WHERE role=1",
    "UPDATE link SET name=x'61' WHERE role=3",
    "UPDATE link SET name=x'2f' WHERE role=1",
    "UPDATE link SET parent=link WHERE link=inode",
    "DELETE FROM tombstone",
    "DELETE FROM alias",
    "DELETE FROM copy",
    "UPDATE state SET files=99",
    "UPDATE state SET position=1",
    "UPDATE have SET time=1",
    "INSERT INTO merged VALUES(5, 6)",
    "INSERT INTO broken VALUES(5, 6)",
    "UPDATE content SET root=x'00' WHERE inline IS NOT NULL",
    "UPDATE content SET size=size+1",
]


@pytest.mark.parametrize("sql", PLANTED)
def test_finds_what_is_planted(wall: Wall, sql: str) -> None:
    one, two = Node(1, wall), Node(2, wall)
    file = one.file(b"f", data=b"old")
    one.directory(b"d")
    one.file(b"gone")
    one.fs.unlink(ROOT_INODE, b"gone")
    two.pull(one)
    one.write(file, b"1")
    two.write(file, b"2")
    one.file(b"x", data=b"1")
    two.file(b"x", data=b"2")
    one.pull(two)
    assert one.fs.check() == []
    with one.database.transaction():
        one.database.execute(sql)
    one.origin = Origin(1)
    one.start()
    assert one.fs.check() != []
    one.database.close()
    two.database.close()
