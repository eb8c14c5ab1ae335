"""Abstention with a guarantee: among the answers that are given, at most a set share is wrong.

It is the promise of selective classification (Geifman & El-Yaniv, 2017), kept by a sequence of exact tests as in
"Learn then test" (Angelopoulos et al., 2021). Nothing is asked of the failure probabilities: good ones let more
inputs be answered, bad ones fewer or none. But calibration and later inputs must come from one source.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv  # scipy.stats would take seconds to import
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.types import Decision

__all__ = ["ANSWER_NOTHING", "RiskBound", "abstaining", "bound_risk"]

ANSWER_NOTHING: Final = -1.0  # below every failure probability; a rule's `abstain_above` refuses it aloud
_STARTS: Final = 5  # where the tests may begin; the error budget is split evenly among them
_SPREAD: Final = 2.0  # least ratio of neighbouring starts: fewer that are far apart let more be answered


@dataclass(frozen=True, slots=True)
class RiskBound:
    """Up to which failure probability to answer, and what that promises.

    Attributes:
        risk: the largest share of wrong answers among those that are given.
        confidence: how surely, over the draw of the calibration inputs.
        threshold: answer where the failure probability is at most this, in [0, 1]; `ANSWER_NOTHING`, -1, where
            nothing can be promised.
        inputs: n, how many calibration inputs there were.
        answered: how many of them have a failure probability up to the threshold.
        errors: how many of these were answered wrong.
        error_bound: upper bound of Clopper and Pearson for the share of wrong answers among the given ones, at the
            level of the test that they passed last; <= `risk`, 1 where nothing is answered. It shows how tight the
            test was; the promise is about `risk`.
    """

    risk: float
    confidence: float
    threshold: float
    inputs: int
    answered: int
    errors: int
    error_bound: float

    @property
    def guaranteed(self) -> bool:
        """Whether anything is answered."""
        return self.answered > 0

    @property
    def coverage(self) -> float:
        """Share of the calibration inputs that are answered."""
        return self.answered / self.inputs

    @property
    def error_rate(self) -> float | None:
        """Share of wrong answers among the given ones; None where nothing is answered."""
        return self.errors / self.answered if self.guaranteed else None

    @property
    def least_inputs(self) -> int:
        """How many calibration inputs it takes to promise this, if all of them are answered right."""
        return _error_free(self.risk, 1 - self.confidence) + 1

    def explain(self) -> str:
        """The promise in words, or why there is none."""
        promise = f"at most {self.risk:.3g} of the given answers are wrong (confidence {self.confidence:.3g})"
        if self.guaranteed:
            return (
                f"Answered up to failure probability {self.threshold:.3g}, {promise}: so {self.answered} of "
                f"{self.inputs} calibration inputs ({self.coverage:.1%}) are answered, {self.errors} of them wrong."
            )
        if self.inputs < self.least_inputs:
            return (
                f"Nothing is answered: {self.inputs} calibration inputs are too few to promise that {promise}; give at "
                f"least {self.least_inputs}, and more where some are answered wrong, or allow a larger risk."
            )
        return (
            f"Nothing is answered: too many of the least doubtful of {self.inputs} calibration inputs are wrong to "
            f"promise that {promise}; allow a larger risk, give more calibration inputs or better versions "
            f"({self.least_inputs} inputs would do if all were answered right)."
        )


def bound_risk(failure_probability: Tensor, wrong: Tensor, *, risk: float, confidence: float = 0.95) -> RiskBound:
    """The largest failure probability up to which at most a share `risk` of the answers is wrong.

    For calibration inputs drawn independently from the source of the later ones, P(wrong | failure probability <=
    threshold) is at most `risk`, in at least a share `confidence` of all draws. The way, and why it is exact:

    - A threshold fixed beforehand answers some calibration inputs; given their number, their errors are binomial,
      so the binomial tail is a p-value of "the risk is larger than allowed". Every number in [0, 1] may be the
      threshold: they are tested in ascending order until one fails. The first one that is too risky passes by
      luck with a probability of at most the error budget, and those above are only reached through it. The
      p-value changes at the calibration inputs' failure probabilities alone, so only these are computed.
    - The tests must not begin where too few are answered to pass. They begin at ranks, chosen from n, `risk` and
      `confidence`, never from what was wrong. Given the k-th smallest failure probability, the k - 1 below are a
      plain sample of all inputs below it: they alone are counted there. Which inputs happened to lie below a
      start cannot favour a later test: between two thresholds at which the risk is just the allowed one, the
      errors of that stretch have just the allowed rate, however many inputs fell into it.
    - Several starts share the budget 1 - `confidence` evenly. Each that passes adds its share to the level at which
      the thresholds above are tested, until one fails and all that was gathered is lost (Wiens, 2003).
    - Equal failure probabilities are answered together or not at all. A start between them counts its errors as if
      the wrong ones came first: never fewer than in a random order, for which the above holds.

    Args:
        failure_probability: (n,) floating in [0, 1], of the guard's answers to inputs that nothing else was fitted
            on; 1 where nobody answered.
        wrong: (n,) bool, whether these answers were wrong; True where nobody answered.
        risk: allowed share of wrong answers among those that are given, in (0, 1).
        confidence: in (0, 1).

    Raises:
        ConfigurationError: `risk` or `confidence` is not in (0, 1).
        DataFormatError: no inputs, other shapes, or failure probabilities that are NaN or outside [0, 1].

    >>> failure_probability = torch.linspace(0, 1, 1001)
    >>> bound = bound_risk(failure_probability, failure_probability > 0.5, risk=0.05)
    >>> bound.guaranteed, bound.errors / bound.answered < 0.05
    (True, True)
    >>> bound_risk(torch.zeros(58), torch.zeros(58, dtype=torch.bool), risk=0.05).least_inputs
    60
    """
    _check(failure_probability, wrong, risk, confidence)
    steps = _Steps.of(failure_probability, wrong)
    starts = _starts(len(wrong), risk, 1 - confidence)
    levels = _passed(steps, starts, (1 - confidence) / max(1, len(starts)), risk)
    passed = np.flatnonzero(levels)
    if len(passed) == 0:
        return RiskBound(risk, confidence, ANSWER_NOTHING, len(wrong), 0, 0, 1.0)
    last = passed[-1]
    answered, errors = int(steps.answered[last]), int(steps.errors[last])
    bound = float(betaincinv(errors + 1, answered - errors, 1 - levels[last]))
    return RiskBound(risk, confidence, float(steps.value[last]), len(wrong), answered, errors, bound)


def abstaining(decision: Decision, threshold: float) -> Decision:
    """The same decision, which also abstains where the failure probability is above a threshold.

    Args:
        decision: a rule's.
        threshold: in [0, 1], as of a `RiskBound`, or `ANSWER_NOTHING` to abstain everywhere. A failure probability
            that is NaN is above every threshold.

    Raises:
        ConfigurationError: the threshold is something else.

    >>> doubtful = Decision(torch.tensor([3, 4]), torch.tensor([0.1, 0.2]), torch.ones(2, 1), torch.zeros(2).bool())
    >>> abstaining(doubtful, 0.15).abstained.tolist()
    [False, True]
    """
    if not (0 <= threshold <= 1 or threshold == ANSWER_NOTHING):
        raise ConfigurationError(
            f"a threshold must be in [0, 1], or {ANSWER_NOTHING} to answer nothing, got {threshold}; "
            "take it from bound_risk"
        )
    doubtful = ~(decision.failure_probability <= threshold)
    return replace(decision, abstained=decision.abstained | doubtful)


@dataclass(frozen=True, slots=True)
class _Steps:
    """Calibration inputs by their M distinct failure probabilities, ascending.

    Attributes:
        value: (M,) float64.
        answered: (M,) int64, how many inputs have at most this failure probability.
        errors: (M,) int64, how many of these are wrong.
    """

    value: NDArray[np.float64]
    answered: NDArray[np.int64]
    errors: NDArray[np.int64]

    @classmethod
    def of(cls, failure_probability: Tensor, wrong: Tensor) -> "_Steps":
        p = failure_probability.detach().cpu().double()
        value, index, count = torch.unique(p, sorted=True, return_inverse=True, return_counts=True)
        errors = torch.bincount(index[wrong.cpu()], minlength=len(value))
        return cls(value.numpy(), count.cumsum(0).numpy(), errors.cumsum(0).numpy())


def _passed(steps: _Steps, starts: NDArray[np.int64], share: float, risk: float) -> NDArray[np.float64]:
    """The level at which each step passed its test, (M,) float64; 0 where it did not, or was not reached."""
    gained = _gained(steps, starts, share, risk)
    tails = bdtr(steps.errors, steps.answered, risk)
    levels = np.zeros(len(tails))
    level = 0.0
    for step, tail in enumerate(tails):
        level += gained[step]
        if tail > level:
            level = 0.0
        levels[step] = level
    return levels


def _gained(steps: _Steps, starts: NDArray[np.int64], share: float, risk: float) -> NDArray[np.float64]:
    """Which part of the error budget the starts that pass add from each step on, (M,) float64."""
    step = np.searchsorted(steps.answered, starts)  # the first with so many answers
    before = np.where(step > 0, steps.answered[step - 1], 0)
    errors_before = np.where(step > 0, steps.errors[step - 1], 0)
    tied_errors = np.minimum(steps.errors[step] - errors_before, starts - 1 - before)
    tails = bdtr(errors_before + tied_errors, starts - 1, risk)
    gained = np.zeros(len(steps.value))
    np.add.at(gained, step, share * (tails <= share))
    return gained


def _starts(inputs: int, risk: float, budget: float) -> NDArray[np.int64]:
    """Ranks in [1, inputs] at which the tests begin, ascending; none where no test can pass.

    The first is the lowest that can pass with its share of the budget; each next one is larger by one factor. Where
    that would crowd them, there are fewer, with larger shares.
    """
    for count in range(_STARTS, 0, -1):
        first = _error_free(risk, budget / count) + 1
        if first <= inputs and (count == 1 or (inputs / first) ** (1 / count) >= _SPREAD):
            ranks = first * (inputs / first) ** (np.arange(count) / count)
            return np.round(ranks).astype(np.int64)
    return np.empty(0, dtype=np.int64)


def _error_free(risk: float, budget: float) -> int:
    """How many answers, all of them right, it takes to pass a test."""
    return math.ceil(math.log(budget) / math.log1p(-risk))


def _check(failure_probability: Tensor, wrong: Tensor, risk: float, confidence: float) -> None:
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ConfigurationError(f"{name} must be in (0, 1), got {value}; risk=0.05, confidence=0.95 are usual")
    if wrong.ndim != 1 or wrong.dtype != torch.bool or len(wrong) == 0:
        raise DataFormatError(
            f"wrong must be bool (n,) with n >= 1 calibration inputs, got {wrong.dtype} {tuple(wrong.shape)}; "
            "use decision.labels != truth"
        )
    if failure_probability.shape != wrong.shape or not failure_probability.is_floating_point():
        raise DataFormatError(
            f"failure probabilities must be floating ({len(wrong)},) like wrong, "
            f"got {failure_probability.dtype} {tuple(failure_probability.shape)}; use decision.failure_probability"
        )
    inside = (failure_probability >= 0) & (failure_probability <= 1)
    if not bool(inside.all()):
        raise DataFormatError(
            f"failure probabilities must be in [0, 1], but {int((~inside).sum())} are outside or NaN, "
            f"the first is {failure_probability[~inside][0].item()}; a version that gave no answer has 1"
        )
