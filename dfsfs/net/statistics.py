"""What sessions have done, in numbers."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class SessionStatistics:
    """Counters of one session, or the sum of several. They only grow."""

    bytes_sent: int = 0
    bytes_received: int = 0
    calls_sent: int = 0
    calls_served: int = 0
    calls_refused: int = 0  # answered with a failure that is no bug
    handler_failures: int = 0  # answered with `PeerFailed`: bugs here

    def add(self, other: "SessionStatistics") -> None:
        """Add another's counters to these."""
        for field in fields(self):
            name = field.name
            setattr(self, name, getattr(self, name) + getattr(other, name))
