"""Member records: checked when they come in, the newest wins, kept on disk."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.types import NodeId, Origin
from dfsfs.cluster.members import SCHEMA, SCHEMA_VERSION, Member, MemberTable
from dfsfs.runtime import Database


def member(number: int = 1, **fields: Any) -> Member:
    values: dict[str, Any] = {
        "node": NodeId(bytes([number]) * 32),
        "name": f"node-{number}",
        "origin": Origin(number),
        "version": 1,
        "addresses": ("tls://127.0.0.1:4000",),
        "weight": 10,
        "used": 0,
        "mounts": True,
    }
    return Member(**(values | fields))


def table(path: Path | None = None) -> MemberTable:
    database = Database(path, schema=SCHEMA, version=SCHEMA_VERSION, cache_bytes=1 << 20)
    return MemberTable(database, NodeId(b"\x01" * 32))


def test_wire_form_round_trips() -> None:
    record = member(3, removed=True, addresses=())
    assert Member.from_wire(record.to_wire()) == record


@given(
    st.integers(0, 8),
    st.one_of(
        st.none(),
        st.integers(),
        st.text(),
        st.binary(),
        st.lists(st.integers()),
        st.booleans(),
        st.floats(),
    ),
)
def test_hostile_fields_are_refused_or_equal_to_what_they_say(index: int, value: object) -> None:
    wire = member().to_wire()
    wire[index] = value
    with contextlib.suppress(RemoteProtocolError):
        assert Member.from_wire(wire).to_wire() == wire


@pytest.mark.parametrize("value", [None, 7, [], {}, [b""] * 9, "x"])
def test_what_is_no_record_is_refused(value: object) -> None:
    with pytest.raises(RemoteProtocolError):
        Member.from_wire(value)


def test_the_newest_version_wins_and_only_news_is_reported() -> None:
    members = table()
    seen: list[Member] = []
    members.watch(seen.append)
    assert members.merge([member(2, version=5)]) == [member(2, version=5)]
    assert members.merge([member(2, version=5, name="late"), member(2, version=4)]) == []
    newer = member(2, version=6, weight=0)
    assert members.merge([newer]) == [newer]
    assert seen == [member(2, version=5), newer]
    assert members.candidates == []


def test_records_survive_a_restart(tmp_path: Path) -> None:
    first = table(tmp_path / "members.db")
    first.merge([member(2), member(3, removed=True)])
    first.set_fact("incarnation", b"7")
    again = table(tmp_path / "members.db")
    assert again.all() == [member(2), member(3, removed=True)]
    assert again.current() == [member(2)]
    assert again.fact("incarnation") == b"7"
    assert again.name_of_origin(Origin(3)) == "node-3"
    assert again.name_of_origin(Origin(9)) == "node 9"


def test_names_are_watched_apart_from_other_news() -> None:
    members = table()
    changes: list[str] = []
    members.watch_names(lambda: changes.append(members.name_of_origin(Origin(2))))
    members.merge([member(2, version=1)])
    members.merge([member(2, version=2, used=5)])
    assert changes == ["node-2"]
    members.merge([member(2, version=3, name="renamed")])
    assert changes == ["node-2", "renamed"]
