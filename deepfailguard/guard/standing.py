"""Which statistics of a watch stand out, since when, and what they were lately."""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from deepfailguard.guard.sequential import Paths
from deepfailguard.guard.watch_report import Alarm

__all__ = ["Standing", "dropped", "forgotten", "noted", "standing", "with_alarms"]

_MEMORY: Final = 32.0  # inputs that "lately" means in reports

_LARGEST_LOG: Final = 700.0  # its exponential is still a number


@dataclass(frozen=True, slots=True)
class Standing:
    """How M statistics stand.

    Attributes:
        usual: (M,) float64, mean in calibration; NaN if it was never finite there.
        lately: (3, M) float64, sums of counts, values and counts of not finite values, the older the less they count.
        raised: (M,) int64, input at which the alarm was raised that stands; -1 for none.
        since: (M,) int64, input with which the change probably began; means something where an alarm stands.
        log_evidence: (M,) float64, likewise, that there was when it was raised.
    """

    usual: Tensor
    lately: Tensor
    raised: Tensor
    since: Tensor
    log_evidence: Tensor

    @property
    def alarmed(self) -> Tensor:
        """(M,) bool, statistics with an alarm that stands."""
        return self.raised >= 0

    def alarm(self, position: int, version: int, name: str, statistic: str) -> Alarm:
        """The alarm of one statistic that stands, in words for whom it concerns."""
        weight, total, missing = self.lately[:, position].tolist()
        return Alarm(
            version=version,
            name=name,
            statistic=statistic,
            since=int(self.since[position]),
            raised=int(self.raised[position]),
            # Divided by their number, so that it is the rate of this much from any statistic.
            evidence=math.exp(min(float(self.log_evidence[position]), _LARGEST_LOG)) / len(self.raised),
            usual=float(self.usual[position]),
            lately=total / weight if weight else math.nan,
            missing=missing / (weight + missing) if weight + missing else 0.0,
        )


def standing(values: Tensor) -> Standing:
    """Before the first input of service, after calibration values (n, M) float64 in which +inf is none."""
    present, statistics = values.isfinite(), values.shape[1]
    return Standing(
        usual=torch.where(present, values, 0.0).sum(0) / present.sum(0),
        lately=torch.zeros(3, statistics, dtype=torch.float64),
        raised=torch.full((statistics,), -1),
        since=torch.zeros(statistics, dtype=torch.int64),
        log_evidence=torch.zeros(statistics, dtype=torch.float64),
    )


def noted(before: Standing, values: Tensor, watched: Tensor) -> Standing:
    """After values (B, M) float64 of service, those of statistics that are watched, (M,) bool."""
    present = values.isfinite()
    told = torch.stack([present.double(), torch.where(present, values, 0.0), (~present).double()])
    keep = 1 - 1 / _MEMORY
    weights = keep ** torch.arange(len(values) - 1, -1, -1, dtype=torch.float64)
    lately = keep ** len(values) * before.lately + torch.einsum("b,sbm->sm", weights, told)
    return replace(before, lately=torch.where(watched, lately, before.lately))


def with_alarms(before: Standing, paths: Paths, first: int, threshold: float, watched: Tensor) -> Standing:
    """With alarms of those statistics whose evidence came over the threshold.

    Args:
        before: the inputs.
        paths: what each of them told.
        first: number of the first of them.
        threshold: of the log evidence.
        watched: (M,) bool, statistics that may raise one.
    """
    over = paths.log_evidence >= threshold
    new = over.any(0) & ~before.alarmed & watched
    if not new.any():
        return before
    at = over.int().argmax(0)[None]
    return replace(
        before,
        raised=torch.where(new, first + at[0], before.raised),
        since=torch.where(new, paths.since.gather(0, at)[0], before.since),
        log_evidence=torch.where(new, paths.log_evidence.gather(0, at)[0], before.log_evidence),
    )


def dropped(before: Standing, which: Tensor) -> Standing:
    """Without the alarms of some statistics, (M,) bool."""
    return replace(before, raised=torch.where(which, -1, before.raised))


def forgotten(before: Standing, which: Tensor) -> Standing:
    """As if nothing had come of some statistics, (M,) bool."""
    return replace(dropped(before, which), lately=torch.where(which, 0.0, before.lately))
