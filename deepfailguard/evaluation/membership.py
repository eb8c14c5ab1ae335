"""What adding, dropping or swapping one version of an ensemble would change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from scipy.stats import binom
from torch import Tensor

from deepfailguard.decision.base import DecisionRule
from deepfailguard.errors import DataFormatError
from deepfailguard.evaluation.coincidence import holm_corrected, names_of
from deepfailguard.evaluation.intervals import Interval, paired_difference
from deepfailguard.evaluation.measures import check_answers
from deepfailguard.evaluation.report.figures import percent, points
from deepfailguard.evaluation.trial import TIE_AWARE_VOTE, Outcome, trial_of

__all__ = ["MemberChange", "MemberChanges", "membership_changes"]

_Kind = Literal["add", "drop", "swap"]

_SHOWN: Final = 5  # changes named in the text


@dataclass(frozen=True, slots=True)
class MemberChange:
    """An ensemble after one change beside the ensemble as it is, on the same inputs.

    Attributes:
        kind: what is done.
        leaving: name of the version that goes; None for "add".
        entering: name of the candidate that comes; None for "drop".
        accuracy: what the rule's accuracy gains; 0.02 is two points.
        headroom: what the headroom (oracle minus tie-aware majority vote) gains: what a better rule could still win.
        better: inputs that become right.
        worse: inputs that become wrong.
        p_value: of the exact sign test that accuracy does not gain, one-sided, corrected by Holm's method for the
            number of changes that were tried.
    """

    kind: _Kind
    leaving: str | None
    entering: str | None
    accuracy: Interval
    headroom: Interval
    better: int
    worse: int
    p_value: float

    @property
    def is_gain(self) -> bool:
        """Whether accuracy gains: its interval lies above zero, and not because many changes were tried."""
        # The sign test stands beside the interval because a bootstrap of a handful of changed answers is too sure.
        return self.accuracy.low > 0 and self.p_value <= (1 - self.accuracy.level) / 2

    @property
    def action(self) -> str:
        """What to do, in words."""
        if self.kind == "swap":
            return f"swap {self.leaving} for {self.entering}"
        return f"{self.kind} {self.leaving or self.entering}"

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, flat and ready for JSON."""
        flat: dict[str, Any] = {"kind": self.kind, "leaving": self.leaving, "entering": self.entering}
        for name, gain in (("accuracy", self.accuracy), ("headroom", self.headroom)):
            flat |= {name: gain.estimate, f"{name}_low": gain.low, f"{name}_high": gain.high}
        counts = {"better": self.better, "worse": self.worse, "p_value": self.p_value}
        return flat | {"level": self.accuracy.level} | counts | {"is_gain": self.is_gain}

    def __str__(self) -> str:
        return (
            f"{self.action}: accuracy {points(self.accuracy.estimate)} points ({percent(self.accuracy.level, 0)} "
            f"interval {points(self.accuracy.low)} to {points(self.accuracy.high)}), headroom "
            f"{points(self.headroom.estimate)}; {self.better} inputs become right, {self.worse} wrong"
        )


@dataclass(frozen=True, slots=True)
class MemberChanges:
    """All single changes of one ensemble.

    Attributes:
        inputs: B.
        accuracy: of the rule with the ensemble as it is.
        headroom: of the ensemble as it is.
        changes: the one whose gain of accuracy is surest (highest lower end) first; of equal ones that which leaves
            the smaller ensemble.
    """

    inputs: int
    accuracy: float
    headroom: float
    changes: tuple[MemberChange, ...]

    @property
    def best(self) -> MemberChange | None:
        """The surest gain; None if the ensemble should stay as it is."""
        return next((change for change in self.changes if change.is_gain), None)

    @property
    def recommendation(self) -> str:
        """What to do, in one sentence."""
        if self.best is not None:
            return str(self.best)
        if not self.changes:
            return "keep as it is: there is nothing to change"
        return f"keep as it is: none of {len(self.changes)} single changes is shown to gain on {self.inputs} inputs"

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, nested and ready for JSON."""
        own = {"inputs": self.inputs, "accuracy": self.accuracy, "headroom": self.headroom}
        changes = [change.as_dict() for change in self.changes]
        return own | {"recommendation": self.recommendation, "changes": changes}

    def __str__(self) -> str:
        now = f"The ensemble is right on {percent(self.accuracy)} of {self.inputs} inputs"
        lines = [f"{now}, headroom {percent(self.headroom)}.", f"Recommendation: {self.recommendation}."]
        return "\n".join([*lines, *(f"- {change}." for change in self.changes[:_SHOWN])])


def membership_changes(
    labels: Tensor,
    truth: Tensor,
    candidates: Tensor | None = None,
    *,
    seed: int,
    rule: DecisionRule = TIE_AWARE_VOTE,
    failure_probability: Tensor | None = None,
    names: Sequence[str] | None = None,
    level: float = 0.95,
) -> MemberChanges:
    """Measure every addition, drop and swap of one version.

    The last version is not dropped. In a swap the candidate takes the place of the version that leaves, so that a
    rule that looks at the order is told no more than needed.

    Args:
        labels: (B, N) int64, the ensemble's answers, -1 for none.
        truth: (B,) int64 in [0, K).
        candidates: (B, C) int64, the candidates' answers to the same inputs; None for C = 0.
        seed: of folds and resamples; all changes are measured on the same resamples.
        rule: from labels (B, n) and failure probabilities (B, n) of n versions to a decision.
        failure_probability: (B, N + C) in [0, 1] of the versions and then the candidates, by predictors that did not
            learn from the input that they judge; if None, the share of wrong answers on other folds.
        names: of the N + C versions and candidates; numbered if None.
        level: of each interval, in (0, 1).

    Raises:
        DataFormatError: the inputs do not fit together, or there are none.

    >>> truth = torch.arange(40) % 2
    >>> changes = membership_changes(torch.zeros(40, 1, dtype=torch.int64), truth, truth[:, None], seed=0)
    >>> changes.best.action
    'swap version 0 for version 1'
    """
    check_answers(labels, truth)
    answers = labels if candidates is None else _beside(labels, candidates)
    trial = trial_of(answers, truth, rule, failure_probability, seed=seed)
    named, now = names_of(names, answers.shape[1]), list(range(labels.shape[1]))
    before = trial.of(now)
    measured = [
        _measured(before, trial.of(_after(now, *who)), [None if i is None else named[i] for i in who], seed, level)
        for who in _single_changes(len(now), answers.shape[1])
    ]
    corrected = holm_corrected([change.p_value for change in measured])
    changes = [replace(change, p_value=p) for change, p in zip(measured, corrected, strict=True)]
    changes.sort(key=lambda change: (-change.accuracy.low, -change.accuracy.estimate))
    return MemberChanges(len(truth), float(before.right.double().mean()), float(before.headroom.mean()), tuple(changes))


def _beside(labels: Tensor, candidates: Tensor) -> Tensor:
    if candidates.ndim != 2 or len(candidates) != len(labels) or candidates.dtype != torch.int64:
        raise DataFormatError(
            f"candidates must be int64 ({len(labels)}, C) like the inputs, got {candidates.dtype} "
            f"{tuple(candidates.shape)}; give one column per candidate"
        )
    return torch.cat([labels, candidates], dim=1)


def _single_changes(versions: int, among: int) -> Iterator[tuple[int | None, int | None]]:
    """Who leaves and who enters, None for nobody; what leaves the smaller ensemble first."""
    if versions > 1:
        yield from ((leaving, None) for leaving in range(versions))
    yield from ((leaving, entering) for leaving in range(versions) for entering in range(versions, among))
    yield from ((None, entering) for entering in range(versions, among))


def _after(now: list[int], leaving: int | None, entering: int | None) -> list[int]:
    kept = [version for version in now if version != leaving]
    if entering is not None:
        kept.insert(len(now) if leaving is None else leaving, entering)
    return kept


def _measured(before: Outcome, after: Outcome, who: Sequence[str | None], seed: int, level: float) -> MemberChange:
    """One change, its p-value not yet corrected."""
    leaving, entering = who
    better, worse = int((after.right & ~before.right).sum()), int((before.right & ~after.right).sum())
    return MemberChange(
        kind="add" if leaving is None else "drop" if entering is None else "swap",
        leaving=leaving,
        entering=entering,
        accuracy=paired_difference(after.right, before.right, seed=seed, level=level),
        headroom=paired_difference(after.headroom, before.headroom, seed=seed, level=level),
        better=better,
        worse=worse,
        # Were a changed answer as likely to change for good as for ill, how often would so many change for good?
        p_value=float(binom.sf(better - 1, better + worse, 0.5)),
    )
