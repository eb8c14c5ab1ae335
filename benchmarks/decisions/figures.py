"""From outcomes to the figures of a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np
import torch

from benchmarks.decisions.outcomes import ORACLE, Outcome
from benchmarks.decisions.pools import DEVELOPMENT
from benchmarks.decisions.rules import GUARD, MAJORITY, RULES, SIMPLE, SOFT_VOTE
from deepfailguard.evaluation.measures import known_rescue_share, rescue_share
from deepfailguard.seeding import derive_seed

__all__ = ["Row", "ShiftRow", "best_simple", "is_worse", "rows_of", "share_of", "shift_rows"]

_RESAMPLES: Final = 2000
_LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    """One rule on some ensembles.

    Attributes:
        rule: its name.
        ensembles: how many.
        share: of the headroom that it rescues, of the mean accuracies.
        low: lower end of the 95 % interval of the share, from resampled inputs.
        high: its upper end.
        ahead: of the guard's share over this rule's, with the same resamples.
        ahead_low: lower end of its interval.
        accuracy: mean.
        worse: ensembles in which it is significantly worse than the best simple rule.
        ece: mean calibration error of the chosen answer's failure probability; None for rules that tell none.
    """

    rule: str
    ensembles: int
    share: float
    low: float
    high: float
    ahead: float
    ahead_low: float
    accuracy: float
    worse: int
    ece: float | None


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """The guard under one shift.

    Attributes:
        shift: which.
        ensembles: how many.
        majority: mean accuracy of the majority vote.
        soft_vote: mean accuracy of the soft vote.
        guard: mean accuracy of the guard.
        oracle: mean share of inputs on which any version is right.
        share: of the headroom that the guard rescues.
        soft_share: that of the soft vote.
        below: ensembles in which the guard is significantly below majority or soft vote.
        ece: mean calibration error of the guard.
    """

    shift: str
    ensembles: int
    majority: float
    soft_vote: float
    guard: float
    oracle: float
    share: float
    soft_share: float
    below: int
    ece: float


def share_of(outcomes: Sequence[Outcome], rule: str) -> float:
    """The rescue share over all ensembles; NaN without headroom.

    >>> yes, no = torch.tensor([True, True]), torch.tensor([True, False])
    >>> right = {MAJORITY: no, ORACLE: yes, GUARD: yes}
    >>> share_of([Outcome("digits", 0, "sound", ("a", "b"), None, right, {})], GUARD)
    1.0
    """
    majority, best = (fmean(each.accuracy(name) for each in outcomes) for name in (MAJORITY, ORACLE))
    reached = fmean(each.accuracy(rule) for each in outcomes)
    share = known_rescue_share(reached, majority, best)
    return float("nan") if share is None else share


def is_worse(outcome: Outcome, rule: str, other: str, resamples: int = _RESAMPLES) -> bool:
    """Whether a rule is significantly worse than another: the paired bootstrap interval lies below zero.

    The differences are -1, 0 or 1, so that a resample is a draw of how many there are of each.
    """
    mine, theirs = outcome.right[rule], outcome.right[other]
    better, worse = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    if better >= worse:
        return False
    count = len(mine)
    draw = np.random.default_rng(derive_seed(0, "decision benchmark", better, worse, count))
    shares = [better / count, worse / count, (count - better - worse) / count]
    came = draw.multinomial(count, shares, resamples)
    return bool(np.quantile(came[:, 0] - came[:, 1], (1 + _LEVEL) / 2) < 0)


def best_simple(outcome: Outcome) -> str:
    """The simple rule that is right most often on these very inputs: the hardest one to stand beside."""
    return max(SIMPLE, key=outcome.accuracy)


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each rule that was measured on all of these ensembles."""
    rules = [rule for rule in RULES if outcomes and all(rule in each.right for each in outcomes)]
    resampled = _resampled_shares(outcomes, rules)
    middle = {rule: share_of(outcomes, rule) for rule in rules}
    return [_row(rule, outcomes, middle, resampled) for rule in rules]


def shift_rows(outcomes: Sequence[Outcome]) -> list[ShiftRow]:
    """A row for each shift among the outcomes, in their order."""
    shifts = dict.fromkeys(each.shift for each in outcomes if each.shift is not None)
    return [_shift_row(shift, [each for each in outcomes if each.shift == shift]) for shift in shifts]


def _row(
    rule: str, outcomes: Sequence[Outcome], middle: Mapping[str, float], resampled: Mapping[str, np.ndarray]
) -> Row:
    low, high = np.nanquantile(resampled[rule], ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    ahead = float(np.nanquantile(resampled[GUARD] - resampled[rule], (1 - _LEVEL) / 2))
    told = [each.ece[rule] for each in outcomes if rule in each.ece]
    return Row(
        rule=rule,
        ensembles=len(outcomes),
        share=middle[rule],
        low=float(low),
        high=float(high),
        ahead=middle[GUARD] - middle[rule],
        ahead_low=ahead,
        accuracy=fmean(each.accuracy(rule) for each in outcomes),
        worse=sum(is_worse(each, rule, best_simple(each)) for each in outcomes),
        ece=fmean(told) if told else None,
    )


def _shift_row(shift: str, outcomes: Sequence[Outcome]) -> ShiftRow:
    mean: Callable[[str], float] = lambda rule: fmean(each.accuracy(rule) for each in outcomes)  # noqa: E731
    below = sum(any(is_worse(each, GUARD, other) for other in (MAJORITY, SOFT_VOTE)) for each in outcomes)
    return ShiftRow(
        shift=shift,
        ensembles=len(outcomes),
        majority=mean(MAJORITY),
        soft_vote=mean(SOFT_VOTE),
        guard=mean(GUARD),
        oracle=mean(ORACLE),
        share=share_of(outcomes, GUARD),
        soft_share=share_of(outcomes, SOFT_VOTE),
        below=below,
        ece=fmean(each.ece[GUARD] for each in outcomes),
    )


def _resampled_shares(outcomes: Sequence[Outcome], rules: Sequence[str]) -> dict[str, np.ndarray]:
    """Rescue shares (resamples,) by rule, the same images drawn anew for all ensembles that answered them."""
    names = [*rules, *({MAJORITY, ORACLE} - set(rules))]
    totals = np.zeros((_RESAMPLES, len(names)))
    for images in dict.fromkeys(map(_images_of, outcomes)):
        mine = [each for each in outcomes if _images_of(each) == images]
        right = torch.stack([sum((each.right[name].double() for each in mine), torch.zeros(())) for name in names], 1)
        count = len(right)
        draw = np.random.default_rng(derive_seed(0, "decision benchmark", *images))
        weights = draw.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
        totals += weights @ right.numpy()
    came = {name: torch.from_numpy(totals[:, column]) for column, name in enumerate(names)}
    return {rule: rescue_share(came[rule], came[MAJORITY], came[ORACLE]).numpy() for rule in rules}


def _images_of(outcome: Outcome) -> tuple[str, int | str]:
    """Which test images were answered: all evaluation seeds answer the same ones, a development seed its own."""
    return outcome.data, outcome.seed if outcome.seed >= DEVELOPMENT else "official"
