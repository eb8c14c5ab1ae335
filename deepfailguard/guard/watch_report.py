"""What a watch over versions reports: alarms, whom they concern, and whether it is the inputs instead."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["DISAGREEMENT", "Alarm", "Cause", "Quarantined", "WatchReport", "cause_of"]

DISAGREEMENT = "disagreement"
Cause = Literal["nothing", "versions", "inputs", "unclear"]

_CAUSES: dict[Cause, str] = {
    "nothing": "no change",
    "versions": "versions changed while most others did not",
    "inputs": "most versions changed at once: it is the inputs",
    "unclear": "something changed; whether versions or inputs cannot be told from this evidence",
}


@dataclass(frozen=True, slots=True)
class Alarm:
    """One statistic of one version that is no longer distributed as in calibration.

    Inputs are numbered from 0, the first one after calibration.

    Attributes:
        version: position of the version, in [0, N).
        name: the version's name.
        statistic: "disagreement" or the name of a score.
        since: the input with which the change probably began.
        raised: the input at which it was noticed, >= since.
        evidence: by chance this much comes at most once in so many inputs.
        usual: mean of the statistic in calibration (for disagreement: a rate); NaN if it was never there.
        lately: its mean over about the last 32 inputs, recent ones counting more; NaN if it was not there.
        missing: share of about the last 32 inputs at which it was not finite or the version did not answer.
    """

    version: int
    name: str
    statistic: str
    since: int
    raised: int
    evidence: float
    usual: float
    lately: float
    missing: float

    def __str__(self) -> str:
        if self.statistic == DISAGREEMENT:
            what = f"disagrees with the other versions on {self.lately:.0%} of its answers ({self.usual:.0%} usual)"
        else:
            what = f"has {self.statistic} {self.lately:.3g} on average ({self.usual:.3g} usual)"
        gaps = f", none on {self.missing:.0%} of the inputs" if self.missing >= 0.005 else ""
        return (
            f"{self.name} {what}{gaps}; changed since about input {self.since}, noticed at input {self.raised}; "
            f"by chance at most once in {self.evidence:.1e} inputs"
        )


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A version that is no longer asked.

    Attributes:
        version: its position, in [0, N).
        name: its name.
        since: the first input that it does not answer.
    """

    version: int
    name: str
    since: int

    def __str__(self) -> str:
        return f"{self.name} is in quarantine since input {self.since}: it is not asked"


@dataclass(frozen=True, slots=True)
class WatchReport:
    """How each of N versions stands.

    Attributes:
        inputs: how many inputs were watched so far.
        names: N names.
        alarms: those that stand, in the order in which they were raised.
        changed: (N,) bool, versions with an alarm.
        cause: what most probably changed: "versions" (all of `changed` or some), "inputs" (also where not all
            versions have an alarm yet), or "unclear".
        quarantined: versions that are not asked, in the order in which they were set apart.
    """

    inputs: int
    names: tuple[str, ...]
    alarms: tuple[Alarm, ...]
    changed: Tensor
    cause: Cause
    quarantined: tuple[Quarantined, ...] = ()

    def of(self, version: int) -> tuple[Alarm, ...]:
        """The alarms of one version; none if it is as in calibration."""
        return tuple(alarm for alarm in self.alarms if alarm.version == version)

    def __str__(self) -> str:
        lines = [f"  - {each}" for each in (*self.alarms, *self.quarantined)]
        return "\n".join([f"{self.inputs} inputs: {_CAUSES[self.cause]}", *lines])


def cause_of(alarmed: Tensor, suspected: Tensor, disagreement: bool) -> Cause:
    """Tell apart versions that changed from inputs that did.

    A broken version leaves the other versions' scores alone, changed inputs do not. So it is the inputs if the
    scores of more than half of the versions changed, and versions if those of fewer did. Disagreement is shared: a
    broken version may change that of all others. It tells only where no score changed.

    - One version: its scores change with the inputs too, so the cause is unclear.
    - More than half with a changed disagreement and none with changed scores (or without scores): unclear. So it is
      for two versions that disagree more, unless the scores of one or both changed.

    Args:
        alarmed: (N, S) bool, statistics with an alarm.
        suspected: (N, S) bool, statistics with an alarm or on the way to one.
        disagreement: whether the first of the S statistics is the disagreement; the others are scores.

    >>> import torch
    >>> few, many = torch.tensor([[True, True], [False, False], [False, False]]), torch.ones(3, 2).bool()
    >>> cause_of(few, few, True), cause_of(few, many, True), cause_of(few & False, many, True)
    ('versions', 'inputs', 'nothing')
    """
    half = len(alarmed) / 2
    if not alarmed.any():
        return "nothing"
    if len(alarmed) == 1:
        return "unclear"
    own = suspected[:, int(disagreement) :].any(1).sum()
    if own > 0:
        return "inputs" if own > half else "versions"
    shared = suspected.any(1).sum()
    return "unclear" if shared > half else "versions"
