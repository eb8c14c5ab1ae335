"""The gate before a hot swap: may this newcomer take that version's place?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from scipy.stats import norm
from torch import Tensor

from deepfailguard.decision.base import DecisionRule
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.evaluation.coincidence import failures_of, names_of
from deepfailguard.evaluation.intervals import Interval, paired_difference
from deepfailguard.evaluation.measures import check_answers
from deepfailguard.evaluation.report.figures import percent, points
from deepfailguard.evaluation.trial import TIE_AWARE_VOTE, trial_of

__all__ = ["SwapGate", "SwapLimits", "gate_swap"]


@dataclass(frozen=True, slots=True)
class SwapLimits:
    """What a swap must keep to.

    Attributes:
        most_shared: of the inputs on which the newcomer or a version that stays is wrong, both are wrong on less than
            this share, in (0, 1]. The share is 1 for copies. Versions that merely find the same inputs hard stay far
            below 0.9; so does a newcomer that fails only where a worse version does, which is no reproach.
        fewest_failures: with fewer such inputs the share is not judged, >= 1.
        precision: half the width that the interval of the gain may have, in (0, 1): how small a loss must be seen.
        level: of the interval, in (0, 1).
    """

    most_shared: float = 0.9
    fewest_failures: int = 5
    precision: float = 0.02
    level: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.most_shared <= 1:
            raise ConfigurationError(f"most_shared must be in (0, 1], got {self.most_shared}; 0.9 is usual")
        if self.fewest_failures < 1:
            raise ConfigurationError(f"fewest_failures must be >= 1, got {self.fewest_failures}; 5 is usual")
        if not 0 < self.precision < 1:
            raise ConfigurationError(f"precision must be in (0, 1), got {self.precision}; 0.02 is usual")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be in (0, 1), got {self.level}; 0.95 is usual")


@dataclass(frozen=True, slots=True)
class SwapGate:
    """Whether a swap may happen.

    Attributes:
        leaving: name of the version that would go.
        entering: name of the newcomer.
        objections: why not; empty if the swap is allowed.
        gain: what the rule's accuracy would gain.
        inputs: B.
        inputs_needed: B from which the gain is known precisely enough, as far as these inputs tell.
        closest: name of the staying version whose failures are most like the newcomer's; None where that cannot be
            judged.
        shared: of the inputs on which either of these two is wrong, the share on which both are; None likewise.
    """

    leaving: str
    entering: str
    objections: tuple[str, ...]
    gain: Interval
    inputs: int
    inputs_needed: int
    closest: str | None
    shared: float | None

    @property
    def allowed(self) -> bool:
        """Whether nothing speaks against the swap."""
        return not self.objections

    @property
    def reason(self) -> str:
        """Why it is allowed or refused, in plain words."""
        if self.objections:
            return "; ".join(self.objections)
        alike = "" if self.shared is None else f", and its failures are its own (closest: {self.closest}, "
        alike += "" if self.shared is None else f"{percent(self.shared, 0)} shared)"
        return f"not shown to be worse: accuracy {_in_words(self.gain)} on {self.inputs} inputs{alike}"

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, flat and ready for JSON."""
        return {
            "allowed": self.allowed,
            "reason": self.reason,
            "leaving": self.leaving,
            "entering": self.entering,
            "gain": self.gain.estimate,
            "gain_low": self.gain.low,
            "gain_high": self.gain.high,
            "level": self.gain.level,
            "inputs": self.inputs,
            "inputs_needed": self.inputs_needed,
            "closest": self.closest,
            "shared": self.shared,
        }

    def __str__(self) -> str:
        return f"swap {self.leaving} for {self.entering}: {'allowed' if self.allowed else 'refused'}; {self.reason}"


_USUAL: Final = SwapLimits()


def gate_swap(
    labels: Tensor,
    truth: Tensor,
    newcomer: Tensor,
    leaving: int,
    *,
    seed: int,
    rule: DecisionRule = TIE_AWARE_VOTE,
    failure_probability: Tensor | None = None,
    names: Sequence[str] | None = None,
    limits: SwapLimits = _USUAL,
) -> SwapGate:
    """Judge one swap on inputs that neither the versions nor the newcomer learned from.

    It is refused if the new ensemble is worse (the interval of its gain lies below zero), if the newcomer fails
    almost exactly where a version does that stays, or if there are too few inputs to see a loss. All that speaks
    against it is said.

    Args:
        labels: (B, N) int64, the ensemble's answers, -1 for none.
        truth: (B,) int64 in [0, K).
        newcomer: (B,) int64, its answers to the same inputs.
        leaving: position in [0, N) of the version that it would replace.
        seed: of folds and resamples.
        rule: decides.
        failure_probability: (B, N + 1) in [0, 1] of the versions and then the newcomer, by predictors that did not
            learn from the input that they judge; if None, the share of wrong answers on other folds.
        names: of the N versions and then the newcomer; numbered if None.
        limits: what the swap must keep to.

    Raises:
        DataFormatError: the inputs do not fit together, or there are none.
        ConfigurationError: there is no version at `leaving`.

    >>> truth = torch.arange(400) % 4
    >>> gate = gate_swap(truth[:, None], truth, torch.zeros(400, dtype=torch.int64), 0, seed=0)
    >>> gate.allowed, gate.objections[0][:27]
    (False, 'the ensemble would be worse')
    """
    check_answers(labels, truth)
    _check(labels, newcomer, leaving)
    versions = labels.shape[1]
    answers, named = torch.cat([labels, newcomer[:, None]], dim=1), names_of(names, versions + 1)
    trial = trial_of(answers, truth, rule, failure_probability, seed=seed)
    now = list(range(versions))
    before, after = trial.of(now), trial.of([*now[:leaving], versions, *now[leaving + 1 :]])
    alike = _most_alike(failures_of(answers, truth), [version for version in now if version != leaving], limits)
    gate = SwapGate(
        leaving=named[leaving],
        entering=named[-1],
        objections=(),
        gain=paired_difference(after.right, before.right, seed=seed, level=limits.level),
        inputs=len(truth),
        inputs_needed=_inputs_needed(after.right, before.right, limits),
        closest=None if alike is None else named[alike[0]],
        shared=None if alike is None else alike[1],
    )
    return replace(gate, objections=tuple(_objections(gate, limits)))


def _check(labels: Tensor, newcomer: Tensor, leaving: int) -> None:
    if newcomer.shape != labels.shape[:1] or newcomer.dtype != torch.int64:
        raise DataFormatError(
            f"the newcomer's answers must be int64 ({len(labels)},) like the inputs, got {newcomer.dtype} "
            f"{tuple(newcomer.shape)}"
        )
    if not 0 <= leaving < labels.shape[1]:
        raise ConfigurationError(f"leaving must be in [0, {labels.shape[1]}), got {leaving}")


def _objections(gate: SwapGate, limits: SwapLimits) -> Iterator[str]:
    if gate.gain.high < 0:
        yield f"the ensemble would be worse: accuracy {_in_words(gate.gain)}"
    if gate.shared is not None and gate.shared >= limits.most_shared:
        where = f"{percent(gate.shared, 0)} of the inputs on which either is wrong"
        yield f"{gate.entering} fails where {gate.closest} does, which stays: both are wrong on {where}"
    if gate.inputs < gate.inputs_needed:
        loss = f"{percent(limits.precision)} of accuracy"
        yield f"{gate.inputs} inputs are too few to see a loss of {loss}; about {gate.inputs_needed} are needed"


def _inputs_needed(after: Tensor, before: Tensor, limits: SwapLimits) -> int:
    """B at which the normal interval of the gain is as narrow as wanted.

    The answers seen to change are smoothed as if two more inputs had come, one of them changed: that nothing changed
    on ten inputs does not show that nothing ever does.
    """
    better, worse = int((after & ~before).sum()), int((before & ~after).sum())
    changed, gain = (better + worse + 1) / (len(after) + 2), (better - worse) / (len(after) + 2)
    quantile = float(norm.ppf((1 + limits.level) / 2))
    return math.ceil((quantile / limits.precision) ** 2 * (changed - gain**2))


def _most_alike(failed: Tensor, staying: list[int], limits: SwapLimits) -> tuple[int, float] | None:
    """Which of the staying versions fails most like the last one, and how much they share."""
    newcomer = failed[:, -1:]
    both, either = (failed[:, staying] & newcomer).sum(0), (failed[:, staying] | newcomer).sum(0)
    shares = [
        (int(b) / int(e), version)
        for b, e, version in zip(both, either, staying, strict=True)
        if int(e) >= limits.fewest_failures
    ]
    if not shares:
        return None
    share, version = max(shares, key=lambda one: one[0])
    return version, share


def _in_words(gain: Interval) -> str:
    interval = f"{percent(gain.level, 0)} interval {points(gain.low)} to {points(gain.high)}"
    return f"{points(gain.estimate)} points ({interval})"
