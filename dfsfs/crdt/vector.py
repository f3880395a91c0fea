"""Version vectors: which writes somebody had seen, as {origin: greatest time}.

Plain dictionaries, because they are built on hot paths and almost always empty or tiny.
An origin that is not in a vector has not been seen at all.

Parker et al., Detection of Mutual Inconsistency in Distributed Systems (1983);
Preguiça et al., Dotted Version Vectors (2010).
"""

from collections.abc import Mapping

from dfsfs.base.types import Origin, Stamp

Vector = Mapping[Origin, int]


def covers(vector: Vector, stamp: Stamp) -> bool:
    """Whether whoever had `vector` had seen the write `stamp`."""
    return vector.get(stamp.origin, 0) >= stamp.time


def join(into: dict[Origin, int], other: Vector) -> None:
    """Make `into` the least vector that covers both."""
    for origin, time in other.items():
        if time > into.get(origin, 0):
            into[origin] = time


def dominates(one: Vector, other: Vector) -> bool:
    """Whether `one` has seen everything `other` has."""
    return all(one.get(origin, 0) >= time for origin, time in other.items())
