"""How well failure probabilities tell wrong answers from right ones.

Everywhere a *wrong* answer is the positive class, and ties in the failure probability are treated such that
the order of the inputs never matters.

torchmetrics also has AUROC, calibration error and mean squared error. Ours stay: its AUROC is rounded to float32 and 0
where it is undefined, it takes NaN and numbers outside [0, 1] without a word, and its import takes seconds.
"""

from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.ties import check_predictions, group_ties

__all__ = [
    "FailurePredictionMeasures",
    "ReliabilityBins",
    "RiskCoverage",
    "area_under_generalised_risk_coverage",
    "area_under_risk_coverage",
    "auroc",
    "brier_score",
    "check_share",
    "coverage_at_risk",
    "expected_calibration_error",
    "false_positive_rate",
    "measure_failure_prediction",
    "merged_bins",
    "reliability_bins",
    "risk_coverage_curve",
]

BINS: Final = 15


@dataclass(frozen=True, slots=True)
class FailurePredictionMeasures:
    """Measures of one version's (or the guard's) failure probabilities on B inputs.

    Attributes:
        inputs: B.
        error_rate: share of wrong answers.
        auroc: in [0, 1], 0.5 for chance; None unless there are right and wrong answers.
        aurc: area under risk against coverage, in [0, 1], small is good.
        fpr_at_95_tpr: share of right answers flagged when 95 % of the wrong ones are; None as for `auroc`.
        ece: expected calibration error, 15 bins of equal width.
        brier: mean squared error of the failure probability.
    """

    inputs: int
    error_rate: float
    auroc: float | None
    aurc: float
    fpr_at_95_tpr: float | None
    ece: float
    brier: float

    def as_dict(self) -> dict[str, float | int | None]:
        """All measures by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Risk if only the most trusted answers are given.

    Attributes:
        coverage: (B,) float64 in (0, 1], i / B for i = 1..B.
        risk: (B,) float64 in [0, 1], expected share of wrong answers among the i most trusted, over all orders
            of answers with equal failure probability.
    """

    coverage: Tensor
    risk: Tensor


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """Predicted beside observed failures, for the M bins that are not empty.

    Attributes:
        low: (M,) float64, lower ends of the bins. A bin has its lower end, the last one both; upper ends are one
            width above unless bins were merged.
        count: (M,) int64 >= 1.
        predicted: (M,) float64, mean failure probability.
        observed: (M,) float64, share of wrong answers.
    """

    low: Tensor
    count: Tensor
    predicted: Tensor
    observed: Tensor


def measure_failure_prediction(failure_probability: Tensor, wrong: Tensor) -> FailurePredictionMeasures:
    """All measures of failure probabilities (B,) in [0, 1] for answers that were wrong, (B,) bool.

    Raises:
        DataFormatError: no inputs, other shapes, or values that are NaN or outside [0, 1].
    """
    return FailurePredictionMeasures(
        inputs=len(wrong),
        error_rate=float(wrong.double().mean()),
        auroc=auroc(failure_probability, wrong),
        aurc=area_under_risk_coverage(failure_probability, wrong),
        fpr_at_95_tpr=false_positive_rate(failure_probability, wrong),
        ece=expected_calibration_error(failure_probability, wrong),
        brier=brier_score(failure_probability, wrong),
    )


def auroc(failure_probability: Tensor, wrong: Tensor) -> float | None:
    """P(a wrong answer has the higher failure probability than a right one), ties counted half.

    >>> auroc(torch.tensor([0.9, 0.2, 0.2]), torch.tensor([True, True, False]))
    0.75
    """
    groups = group_ties(failure_probability, wrong)
    wrong_total, right_total = groups.wrong.sum(), groups.right.sum()
    if wrong_total == 0 or right_total == 0:
        return None
    right_below = groups.right.cumsum(0) - groups.right
    return float((groups.wrong * (right_below + groups.right / 2)).sum() / (wrong_total * right_total))


def false_positive_rate(failure_probability: Tensor, wrong: Tensor, *, recall: float = 0.95) -> float | None:
    """Smallest share of right answers flagged by any threshold that flags this share of the wrong ones.

    None unless there are right and wrong answers. Some papers (ConfidNet, 2019; SURE, 2024) search for the right
    answers instead and report another figure under the same name: that of ``1 - failure_probability`` and ``~wrong``.

    Args:
        failure_probability: (B,) in [0, 1].
        wrong: (B,) bool.
        recall: share of the wrong answers that must be flagged, in [0, 1].

    >>> false_positive_rate(torch.tensor([0.9, 0.2, 0.3, 0.1]), torch.tensor([True, True, False, False]))
    0.5
    """
    check_share("recall", recall)
    groups = group_ties(failure_probability, wrong)
    wrong_total, right_total = groups.wrong.sum(), groups.right.sum()
    if wrong_total == 0 or right_total == 0:
        return None
    # A zero comes first: the threshold that flags nothing.
    flagged_wrong = pad(groups.wrong.flip(0).cumsum(0) / wrong_total, (1, 0))
    flagged_right = pad(groups.right.flip(0).cumsum(0) / right_total, (1, 0))
    return float(flagged_right[flagged_wrong >= recall][0])


def risk_coverage_curve(failure_probability: Tensor, wrong: Tensor) -> RiskCoverage:
    """Risk for every coverage, from the most trusted answer to all."""
    groups = group_ties(failure_probability, wrong)
    size = groups.wrong + groups.right
    # In a random order of a group of ties each place holds a wrong answer with the group's error rate.
    errors = torch.repeat_interleave(groups.wrong / size, size.long()).cumsum(0)
    answers = torch.arange(1, len(wrong) + 1, dtype=torch.float64, device=errors.device)
    return RiskCoverage(answers / len(wrong), errors / answers)


def area_under_risk_coverage(failure_probability: Tensor, wrong: Tensor) -> float:
    """Mean risk over all coverages 1/B..1 (AURC; Geifman & El-Yaniv, 2017), expected over the orders of ties.

    >>> area_under_risk_coverage(torch.tensor([0.1, 0.9]), torch.tensor([False, True]))
    0.25
    """
    return float(risk_coverage_curve(failure_probability, wrong).risk.mean())


def area_under_generalised_risk_coverage(failure_probability: Tensor, wrong: Tensor) -> float:
    """Area under the share of *all* inputs that are answered wrongly, over coverages 0..1 (AUGRC; Traub et al., 2024).

    Trapezoids from no coverage on, so that ties need no order: (1 - AUROC) a (1 - a) + (1 - a)^2 / 2 with accuracy a.

    >>> area_under_generalised_risk_coverage(torch.tensor([0.1, 0.9]), torch.tensor([False, True]))
    0.125
    """
    curve = risk_coverage_curve(failure_probability, wrong)
    answered_wrongly = curve.risk * curve.coverage
    return float((answered_wrongly.sum() - answered_wrongly[-1] / 2) / len(wrong))


def coverage_at_risk(failure_probability: Tensor, wrong: Tensor, *, risk: float) -> float:
    """Largest share of inputs whose answers a threshold may pass so that at most this share of them is wrong.

    A threshold passes answers of equal failure probability together or not at all, so that a large group of ties
    may cost coverage. 0 if no threshold keeps to the risk: only giving no answer does.

    Args:
        failure_probability: (B,) in [0, 1].
        wrong: (B,) bool.
        risk: share of wrong answers among those given, in [0, 1].

    >>> p, wrong = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([False, True, False, True])
    >>> coverage_at_risk(p, wrong, risk=0.0), coverage_at_risk(p, wrong, risk=0.4)
    (0.25, 0.75)
    """
    check_share("risk", risk)
    groups = group_ties(failure_probability, wrong)
    passed = (groups.wrong + groups.right).cumsum(0)
    bearable = groups.wrong.cumsum(0) / passed <= risk
    return float(torch.where(bearable, passed, 0.0).max()) / len(wrong)


def reliability_bins(failure_probability: Tensor, wrong: Tensor, *, bins: int = BINS) -> ReliabilityBins:
    """Predicted and observed failures in bins of equal width over [0, 1]."""
    check_predictions(failure_probability, wrong)
    p = failure_probability.double()
    index = (p * bins).long().clamp_max(bins - 1)
    count = torch.bincount(index, minlength=bins)
    predicted = torch.bincount(index, weights=p, minlength=bins)
    observed = torch.bincount(index, weights=wrong.double(), minlength=bins)
    filled = count > 0
    low = torch.arange(bins, device=p.device).double() / bins
    return ReliabilityBins(
        low[filled], count[filled], predicted[filled] / count[filled], observed[filled] / count[filled]
    )


def merged_bins(filled: ReliabilityBins, *, least: int) -> ReliabilityBins:
    """The bins, each joined with those above it until it has so many inputs; the rest joins the last one.

    What is left has fewer inputs in one case only: there are not so many.

    Args:
        filled: bins in ascending order.
        least: >= 1.
    """
    group, inside, groups = [], 0, 0
    left = int(filled.count.sum())
    for count in filled.count.tolist():
        group.append(groups)
        inside, left = inside + count, left - count
        if inside >= least and left >= least:
            groups, inside = groups + 1, 0
    index = torch.tensor(group, device=filled.count.device)
    first = torch.tensor([group.index(number) for number in range(groups + 1)], device=index.device)
    count = torch.bincount(index, weights=filled.count.double())
    predicted = torch.bincount(index, weights=filled.count * filled.predicted) / count
    observed = torch.bincount(index, weights=filled.count * filled.observed) / count
    return ReliabilityBins(filled.low[first], count.long(), predicted, observed)


def expected_calibration_error(failure_probability: Tensor, wrong: Tensor, *, bins: int = BINS) -> float:
    """Mean distance of predicted from observed failures over the bins, weighted by their counts (ECE).

    >>> round(expected_calibration_error(torch.tensor([0.3, 0.3]), torch.tensor([True, False])), 6)
    0.2
    """
    filled = reliability_bins(failure_probability, wrong, bins=bins)
    gap = (filled.predicted - filled.observed).abs()
    return float((gap * filled.count).sum() / filled.count.sum())


def brier_score(failure_probability: Tensor, wrong: Tensor) -> float:
    """Mean squared difference of failure probability and outcome (1 for wrong).

    >>> brier_score(torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
    0.25
    """
    check_predictions(failure_probability, wrong)
    return float((failure_probability.double() - wrong.double()).square().mean())


def check_share(name: str, share: float) -> None:
    """Refuse a setting that is no share.

    Raises:
        ConfigurationError: NaN or outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ConfigurationError(f"{name} must be in [0, 1], got {share}; write 5 % as 0.05")
