"""What open handles may hold."""

import pytest

from dfsfs.base.errors import TooManyOpen
from dfsfs.base.limits import LISTED_NAMES_MAX
from dfsfs.base.types import ROOT_INODE, FileKind
from dfsfs.vfs.handles import DirectoryHandle, DirectoryItem, HandleTable


class Names:
    """As much of a namespace as a listing needs: a directory with `count` names."""

    def __init__(self, count: int) -> None:
        self._count = count

    def parent(self, directory: int) -> int:
        return directory

    def names(self, directory: int) -> list[DirectoryItem]:
        return [(b"x", ROOT_INODE, FileKind.REGULAR)] * self._count


def test_names_of_open_directories_are_bounded_but_one_may_have_any_number() -> None:
    table = HandleTable()
    first, second = DirectoryHandle(ROOT_INODE), DirectoryHandle(ROOT_INODE)
    numbers = [table.add_directory(first), table.add_directory(second)]
    table.read_names(first, Names(2 * LISTED_NAMES_MAX))  # type: ignore[arg-type]  # all it asks
    with pytest.raises(TooManyOpen):
        table.read_names(second, Names(1))  # type: ignore[arg-type]
    table.read_names(first, Names(LISTED_NAMES_MAX // 2))  # type: ignore[arg-type]  # from its start
    table.read_names(second, Names(LISTED_NAMES_MAX // 2 - 4))  # type: ignore[arg-type]
    assert table.bounded()["listed_names"] == [LISTED_NAMES_MAX, LISTED_NAMES_MAX]
    for number in numbers:
        table.remove_directory(number)
    assert table.bounded()["listed_names"][0] == 0
    assert table.bounded()["open_handles"][0] == 0
