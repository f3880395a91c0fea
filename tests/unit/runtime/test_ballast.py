"""Ballast: held while there is room, thrown off when the disk is full."""

from pathlib import Path

import pytest

from dfsfs.runtime import Ballast


def test_it_is_taken_on_once_and_kept_while_there_is_room(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path, size_bytes=4096)
    assert ballast.take_on()
    assert ballast.take_on()
    assert not ballast.throw_off_if_full()
    file = tmp_path / "ballast"
    assert file.stat().st_size == 4096
    assert file.stat().st_blocks * 512 >= 4096  # real bytes, not a hole


@pytest.mark.announce("is full; starting")
def test_it_is_thrown_off_when_the_disk_has_less(tmp_path: Path) -> None:
    assert Ballast(tmp_path, size_bytes=4096).take_on()
    huge = Ballast(tmp_path, size_bytes=1 << 60)
    assert huge.throw_off_if_full()
    assert not (tmp_path / "ballast").exists()
    assert not huge.throw_off_if_full()
    assert not huge.take_on()
