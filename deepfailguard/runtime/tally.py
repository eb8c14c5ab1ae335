"""Counting what a version did: for the status, never for a decision."""

import math
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from deepfailguard.guard.verdict import FaultKind, Verdict

__all__ = ["GuardTally", "VersionTally", "note_answers"]

_BATCHES: Final = 256
_MEMORY: Final = 1000.0  # inputs that "lately" means


@dataclass(slots=True)
class _Mean:
    """A mean over about the last thousand inputs."""

    weight: float = 0.0
    total: float = 0.0

    def add(self, values: Tensor) -> None:
        count = len(values)
        if count:
            keep = math.exp(-count / _MEMORY)
            self.weight = keep * self.weight + count
            self.total = keep * self.total + float(values.double().sum())

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else math.nan


@dataclass(slots=True)
class VersionTally:
    """What one version did since the start."""

    asked: int = 0
    answered: int = 0
    restarts: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    fault: FaultKind | None = None
    last_fault: float | None = None
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_BATCHES))
    disagreement: _Mean = field(default_factory=_Mean)
    failure_probability: _Mean = field(default_factory=_Mean)
    weight: _Mean = field(default_factory=_Mean)

    def note_fault(self, fault: FaultKind, now: float) -> None:
        """Count a fault; `now` is seconds since 1970."""
        self.faults[fault] += 1
        self.fault, self.last_fault = fault, now

    def note_seconds(self, seconds: float) -> None:
        """How long it took for a batch."""
        self.seconds.append(seconds)

    def quantile(self, share: float) -> float:
        """Of its last 256 batches, seconds that this share took at most; NaN if there were none."""
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else math.nan


@dataclass(slots=True)
class GuardTally:
    """What the guard answered since the start."""

    inputs: int = 0
    batches: int = 0
    abstained: int = 0
    unanswered: int = 0
    bad_inputs: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, verdict: Verdict) -> None:
        """Count a batch."""
        with self._lock:
            self.batches += 1
            self.inputs += len(verdict)
            self.abstained += int(verdict.abstained.sum())
            self.unanswered += int((verdict.labels < 0).sum())
            self.bad_inputs += len(verdict.problems)


def note_answers(tally: VersionTally, verdict: Verdict, column: int) -> None:
    """Count a version's column of a verdict."""
    labels = verdict.version_labels[:, column]
    answered = labels >= 0
    tally.asked += verdict.health[column].asked
    tally.answered += verdict.health[column].answered
    other = labels[answered] != verdict.labels[answered]
    tally.disagreement.add(other)
    tally.failure_probability.add(verdict.version_failure_probability[:, column][answered])
    tally.weight.add(verdict.weights[:, column][answered])
