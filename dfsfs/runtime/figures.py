"""What a part shows of itself in numbers: how full it is, and how long its calls took.

Parts count; nobody is told. `dfs status` and the metrics look at the same figures when they are
asked (`Operator.status`), so they cannot differ, and a part knows neither. Loop only.

A bound is a pair [now, most] under a name that ends in its unit (`write_buffer_bytes`); most 0: as
much as what it belongs to has, which the name's line in doc/operations.md says.
"""

import errno
from bisect import bisect_left
from collections import Counter
from typing import Any

Bounds = dict[str, list[int]]

BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005),
    *(0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0),
)
"""Upper ends of the buckets of a histogram of durations; one more holds what took longer."""


class Durations:
    """A histogram of how long something took."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(BUCKETS_S, duration_s)] += 1
        self.total_s += duration_s


class CallTable:
    """Calls by verb: how long they took, how they failed, and how many are under way."""

    def __init__(self) -> None:
        self.under_way = 0
        self._durations: dict[str, Durations] = {}
        self._failures: dict[str, Counter[int]] = {}

    def ended(self, verb: str, duration_s: float, failure: int) -> None:
        """One call is over; `failure` is its errno, or 0."""
        durations = self._durations.get(verb)
        if durations is None:
            durations = self._durations[verb] = Durations()
        durations.add(duration_s)
        if failure:
            self._failures.setdefault(verb, Counter())[failure] += 1

    def figures(self) -> dict[str, dict[str, Any]]:
        """By verb: total_s, counts (by bucket of `BUCKETS_S`) and failures (by name of errno)."""
        return {
            verb: {
                "total_s": durations.total_s,
                "counts": list(durations.counts),
                "failures": {
                    errno.errorcode.get(failure, str(failure)): count
                    for failure, count in sorted(self._failures.get(verb, Counter()).items())
                },
            }
            for verb, durations in sorted(self._durations.items())
        }
