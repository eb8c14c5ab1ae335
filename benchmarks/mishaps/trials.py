"""One trial: break versions under load, wait until that is noticed, take the fault away, wait for the recovery."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.mishaps.injecting import Injection
from benchmarks.mishaps.judging import Broken, Tale, tell
from benchmarks.mishaps.patients import Patient
from benchmarks.mishaps.scenarios import Promise
from benchmarks.mishaps.service import Service

__all__ = ["Limit", "Outcome", "columns_for", "run_trial"]

_PATIENCE: Final = 30.0  # seconds beyond what was promised, until a fault counts as missed
_UNNOTICED: Final = 0.5  # seconds that a fault lasts that nothing is expected to notice
_SECONDS_TO_RECOVER: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limit:
    """A promise in requests or seconds, with what a round of checksums takes put in; none of both if there is none."""

    requests: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, promise: Promise | None, round_seconds: float) -> "Limit":
        """The promise of a class of faults."""
        if promise is None:
            return cls()
        seconds = promise.seconds
        return cls(promise.requests, None if seconds is None else seconds + promise.rotations * round_seconds)

    @property
    def patience(self) -> float:
        """Seconds until a fault counts as missed."""
        if self.requests is None and self.seconds is None:
            return _UNNOTICED
        return _PATIENCE + (self.seconds or 0.0)

    def is_kept(self, latency: float, requests: int) -> bool:
        """Whether so many seconds, or so many requests with a broken version's answers, are within it."""
        if self.requests is not None and requests > self.requests:
            return False
        return self.seconds is None or latency <= self.seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    Attributes:
        number: of the trial.
        columns: positions of the versions that were broken.
        kinds: what was done to each.
        faults: what the runtime called it, for each; empty where it did not notice.
        kept: whether all were noticed as soon as was promised.
        latency: seconds until a request showed that the last one was noticed; NaN if one was not.
        recovery: seconds from the end of the fault until all served again; NaN if they did not.
        tale: of the requests; None where there were none.
    """

    number: int
    columns: tuple[int, ...]
    kinds: tuple[str, ...]
    faults: tuple[str, ...]
    kept: bool
    latency: float
    recovery: float
    tale: Tale | None

    @property
    def detected(self) -> bool:
        """Whether all were noticed, be it late."""
        return not math.isnan(self.latency)

    @property
    def recovered(self) -> bool:
        """Whether all served again."""
        return not math.isnan(self.recovery)


def run_trial(service: Service, number: int, limit: Limit, draw: random.Random) -> Outcome:
    """Make a trial. All versions serve when it starts, and when it ends if they recovered.

    Args:
        service: under load.
        number: of the trial; versions take turns by it.
        limit: how soon the fault must be noticed.
        draw: makes all choices.
    """
    scenario, first = service.scenario, service.told
    columns = columns_for(number, scenario.victims or service.versions, service.versions)
    patients = [service.patient(column, draw) for column in columns]
    kinds = [draw.choice(scenario.kinds) for _ in patients]
    broken: list[Broken] = []
    try:
        moments = [_inject(patient, kind) for patient, kind in zip(patients, kinds, strict=True)]
        broken += [_notice(*each, first, limit) for each in zip(patients, kinds, moments, strict=True)]
        time.sleep(draw.uniform(0.0, scenario.hold))
    finally:
        noticed = {each.column for each in broken if each.noticed is not None}
        for patient in patients:
            patient.heal(patient.column in noticed)
    healed = time.monotonic()
    whole = service.wait_whole(first, _SECONDS_TO_RECOVER)
    tale = tell(service.new_requests(), service.plan.references, broken)
    latency = _latency(broken)
    return Outcome(
        number=number,
        columns=tuple(columns),
        kinds=tuple(map(str, kinds)),
        faults=tuple(_fault(*each) for each in zip(patients, broken, strict=True)),
        kept=not math.isnan(latency) and limit.is_kept(latency, tale.begun),
        latency=latency,
        recovery=math.nan if whole is None else whole.end - healed,
        tale=tale,
    )


def columns_for(number: int, count: int, versions: int) -> list[int]:
    """Which versions a trial breaks: they take turns, and so do all pairs of two.

    >>> [columns_for(number, 1, 3) for number in range(4)]
    [[0], [1], [2], [0]]
    >>> [columns_for(number, 2, 3) for number in range(4)]
    [[0, 1], [1, 2], [0, 2], [0, 2]]
    """
    stride = 1 + (number // versions) % (versions - 1) if versions > 1 and count < versions else 1
    return sorted({(number + step * stride) % versions for step in range(count)})


def _inject(patient: Patient, kind: Injection) -> float:
    """Break a version; when that was done, seconds of `time.monotonic`."""
    kind.inject(patient)
    return time.monotonic()


def _notice(patient: Patient, kind: Injection, since: float, first: int, limit: Limit) -> Broken:
    """Wait until a request shows that it was noticed."""
    noticed = patient.load.wait(
        first, lambda request: request.end > since and kind.noticed(patient, request), limit.patience
    )
    return Broken(patient.column, since, noticed)


def _latency(broken: Sequence[Broken]) -> float:
    seconds = [each.noticed.end - each.since for each in broken if each.noticed is not None]
    return max(seconds) if len(seconds) == len(broken) else math.nan


def _fault(patient: Patient, broken: Broken) -> str:
    """What the runtime called it."""
    if broken.noticed is None or broken.noticed.verdict is None:
        return ""
    health = broken.noticed.verdict.health[broken.column]
    return str(health.fault if patient.is_out(broken.noticed) else patient.last_fault)
