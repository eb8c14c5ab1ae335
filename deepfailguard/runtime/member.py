"""One version as the runtime sees it: where it runs, whether it is trusted, what it did."""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from torch import Tensor

from deepfailguard.guard.verdict import VersionHealth, VersionState
from deepfailguard.runtime.base import Runner, Source
from deepfailguard.runtime.breaker import Breaker
from deepfailguard.runtime.stuck import StuckCheck
from deepfailguard.runtime.tally import VersionTally

__all__ = ["Member", "Pending", "Purpose"]

_PARDON_MEMORY: Final = 100

Purpose = Literal["start", "canary", "weights", "shadow"]
"""What the upkeep asks of a version."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Something that the upkeep waits for.

    Attributes:
        what: that is.
        future: of it.
        until: when it is given up, by the runtime's clock.
        seconds: that it may take.
        opened: how often the version's breaker had opened then.
    """

    what: Purpose
    future: "Future[Any]"
    until: float
    seconds: float
    opened: int


@dataclass(slots=True, eq=False)
class Member:
    """One version of a guard at run time.

    Attributes:
        name: the version's.
        classes: K.
        fingerprint: hash of its sound weights.
        accuracy: in calibration; NaN for one that was not calibrated.
        source: of its sound weights.
        runner: runs it.
        breaker: whether it is asked.
        shadow: whether its answers never count.
        aside: why the operator set it aside; empty if nobody did.
        apart: why the watch set it apart; empty if it did not.
        since: seconds since 1970 of the last change of its state.
        told: the state that was told last.
        tally: what it did.
        stuck: looks for repeated output.
        expected: (M, K) logits for the canary inputs; None until they are known.
        restart: whether it must be started anew before it is tried.
        pardoned: numbers of the batches in which it failed on inputs while it passed the canary.
        pending: what the upkeep waits for.
        next_canary: when it is tried next while it serves, by the runtime's clock.
        memory: bytes that it occupied after its start.
    """

    name: str
    classes: int
    fingerprint: str
    accuracy: float
    source: Source
    runner: Runner
    breaker: Breaker
    shadow: bool = False
    aside: str = ""
    apart: str = ""
    since: float = 0.0
    told: VersionState = "serving"
    tally: VersionTally = field(default_factory=VersionTally)
    stuck: StuckCheck = field(default_factory=StuckCheck)
    expected: Tensor | None = None
    restart: bool = False
    pardoned: deque[int] = field(default_factory=deque)
    pending: Pending | None = None
    next_canary: float = 0.0
    memory: int | None = None

    @property
    def state(self) -> VersionState:
        """How it stands."""
        if self.aside or self.apart:
            return "quarantined"
        if self.breaker.is_open:
            return "suspended"
        return "shadow" if self.shadow else "serving"

    @property
    def reason(self) -> str:
        """Why it does not serve; empty if it does."""
        if self.aside:
            return f"set aside by the operator: {self.aside}"
        if self.apart:
            return self.apart
        if self.breaker.is_open:
            return f"suspended for {self.breaker.fault}: {self.breaker.reason}"
        return ""

    @property
    def usable(self) -> bool:
        """Whether it may be asked."""
        return not (self.aside or self.apart or self.breaker.is_open)

    def pardon(self, batch: int) -> int:
        """Let a fault pass; how many there were in its last hundred batches."""
        self.pardoned.append(batch)
        while self.pardoned[0] <= batch - _PARDON_MEMORY:
            self.pardoned.popleft()
        return len(self.pardoned)

    def absence(self) -> VersionHealth:
        """Its health in a verdict to which it was not asked."""
        fault = self.breaker.fault if self.state == "suspended" else None
        return VersionHealth(self.name, 0, 0, self.reason, fault, self.state)
