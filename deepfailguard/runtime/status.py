"""How a runtime and its versions stand: for people, for dashboards and for metrics."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from deepfailguard.guard.verdict import FaultKind, VersionState

__all__ = ["Status", "VersionStatus", "plain"]


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """How one version stands. Counts are since the start.

    Attributes:
        name: the version's.
        state: whether its answers count.
        since: seconds since 1970 of the last change of its state.
        reason: why it does not serve; empty if it does.
        fault: the last one; None if there was none.
        last_fault: when that was, seconds since 1970.
        faults: how many, by kind.
        asked: inputs.
        answered: inputs.
        restarts: how often it was started anew.
        seconds_p50: that half of its last 256 batches took at most; NaN if there were none.
        seconds_p99: the same for 99 %.
        disagreement: share of its answers that were not the guard's, over about the last 1000; NaN if it gave none.
        failure_probability: mean of what the guard thought of its answers, likewise.
        weight: mean of its weights, likewise.
        accuracy: in calibration; NaN for one that was not calibrated.
        memory: bytes that its process occupies; None if it has none of its own.
        fingerprint: hash of its sound weights.
        shadow: whether its answers never count, be it sound or not.
    """

    name: str
    state: VersionState
    since: float
    reason: str
    fault: FaultKind | None
    last_fault: float | None
    faults: dict[str, int]
    asked: int
    answered: int
    restarts: int
    seconds_p50: float
    seconds_p99: float
    disagreement: float
    failure_probability: float
    weight: float
    accuracy: float
    memory: int | None
    fingerprint: str
    shadow: bool = False

    def as_dict(self) -> Any:
        """The fields by name, ready for JSON."""
        return plain(asdict(self))


@dataclass(frozen=True, slots=True)
class Status:
    """How a runtime stands. Counts are since the start.

    Attributes:
        versions: all, also shadows.
        ready: whether as many versions serve as must.
        degraded: whether one that should serve does not.
        serving: how many do.
        least_versions: how many must.
        inputs: that came.
        batches: that came.
        abstained: inputs for which the guard declined to answer.
        unanswered: inputs for which there was no answer at all.
        bad_inputs: inputs that were not finite or out of bounds.
        drift: what the watch thinks: "nothing", "versions", "inputs", "unclear" or "not watched".
        drift_text: the same for people.
        started: seconds since 1970.
        isolation: where versions run.
        predictor: its class.
        decision: the rule's name.
        events: the newest 50, the newest last.
    """

    versions: tuple[VersionStatus, ...]
    ready: bool
    degraded: bool
    serving: int
    least_versions: int
    inputs: int
    batches: int
    abstained: int
    unanswered: int
    bad_inputs: int
    drift: str
    drift_text: str
    started: float
    isolation: str
    predictor: str
    decision: str
    events: tuple[dict[str, Any], ...]

    def as_dict(self) -> Any:
        """The fields by name, ready for JSON."""
        return plain(asdict(self))


def plain(value: Any) -> Any:
    """The same without NaN, which JSON has not, and without tuples.

    >>> plain({"a": (1.0, math.nan)})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
