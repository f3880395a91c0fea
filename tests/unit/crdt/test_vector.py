"""Version vectors: laws of joining, and what is covered."""

from hypothesis import given
from hypothesis import strategies as st

from dfsfs.base.types import Origin, Stamp
from dfsfs.crdt import covers, dominates, join

vectors = st.dictionaries(st.integers(1, 4).map(Origin), st.integers(1, 9), max_size=4)


def joined(*parts: dict[Origin, int]) -> dict[Origin, int]:
    whole: dict[Origin, int] = {}
    for part in parts:
        join(whole, part)
    return whole


@given(vectors, vectors, vectors)
def test_join_is_a_least_upper_bound(
    one: dict[Origin, int], two: dict[Origin, int], three: dict[Origin, int]
) -> None:
    assert joined(one, two) == joined(two, one)
    assert joined(joined(one, two), three) == joined(one, joined(two, three))
    assert joined(one, one) == one
    assert dominates(joined(one, two), one)
    assert dominates(one, two) == (joined(one, two) == one)


def test_covers_what_it_has_seen() -> None:
    vector = {Origin(1): 5}
    assert covers(vector, Stamp(5, Origin(1)))
    assert not covers(vector, Stamp(6, Origin(1)))
    assert not covers(vector, Stamp(1, Origin(2)))
