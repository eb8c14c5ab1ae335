"""A circuit breaker: who failed is left alone for a while, then tried, the more rarely the more often in vain."""

import math
from dataclasses import dataclass
from typing import Final

from deepfailguard.guard.verdict import FaultKind

__all__ = ["Breaker"]

_RELAPSE: Final = 10.0
"""Who fails again within this many of its last waiting times has not recovered: it goes on to wait longer."""


@dataclass(slots=True)
class Breaker:
    """Whether a version is asked. Times come from the caller's clock.

    Attributes:
        first: seconds to the first probe.
        longest: seconds between probes at most.
        fault: why it is open; None while it is closed.
        reason: the same in words.
        next_probe: when it may be tried.
        wait: seconds between the last two tries.
        closed_at: when it was last closed.
        opened: how often it was opened.
    """

    first: float
    longest: float
    fault: FaultKind | None = None
    reason: str = ""
    next_probe: float = 0.0
    wait: float = 0.0
    closed_at: float = -math.inf
    opened: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the version is left alone."""
        return self.fault is not None

    def open(self, now: float, fault: FaultKind, reason: str) -> None:
        """Leave the version alone from now on.

        >>> breaker = Breaker(first=1.0, longest=8.0)
        >>> breaker.open(0.0, "exception", "it raised")
        >>> breaker.is_open, breaker.is_due(0.5), breaker.is_due(1.0)
        (True, False, True)
        """
        relapsed = self.wait > 0 and now - self.closed_at < _RELAPSE * self.wait
        self.wait = min(2 * self.wait, self.longest) if relapsed else self.first
        self.opened += 1
        self.fault, self.reason, self.next_probe = fault, reason, now + self.wait

    def fail(self, now: float, fault: FaultKind, reason: str) -> None:
        """A try was in vain.

        >>> breaker = Breaker(first=1.0, longest=3.0)
        >>> breaker.open(0.0, "timeout", "it hangs")
        >>> waits = []
        >>> for now in (1.0, 3.0, 6.0):
        ...     breaker.fail(now, "timeout", "it hangs")
        ...     waits.append(breaker.wait)
        >>> waits
        [2.0, 3.0, 3.0]
        """
        self.wait = min(max(2 * self.wait, self.first), self.longest)
        self.fault, self.reason, self.next_probe = fault, reason, now + self.wait

    def close(self, now: float) -> None:
        """It is healthy again."""
        self.fault, self.reason, self.closed_at = None, "", now

    def is_due(self, now: float) -> bool:
        """Whether it may be tried."""
        return self.is_open and now >= self.next_probe
