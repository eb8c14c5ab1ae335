"""Measures that are gathered batch by batch, also over processes, as `torchmetrics.Metric` objects.

`update` takes batches, `compute` gives the measure of all of them as a float64 scalar, NaN where it is undefined.
The formulas are those of `failure_prediction` and `measures`. AUROC, calibration error and Brier score over batches
are in torchmetrics itself: `BinaryAUROC`, `BinaryCalibrationError`, `MeanSquaredError`.

Only this module imports torchmetrics, which takes seconds: it brings torchvision and scipy.signal with it.
"""

from abc import abstractmethod
from typing import Any, Final

import torch
from torch import Tensor

from deepfailguard.decision.rules import majority_vote
from deepfailguard.errors import DataFormatError
from deepfailguard.evaluation.failure_prediction import (
    area_under_generalised_risk_coverage,
    area_under_risk_coverage,
    check_share,
    coverage_at_risk,
    false_positive_rate,
)
from deepfailguard.evaluation.measures import check_answers, oracle, rescue_share
from deepfailguard.evaluation.ties import check_predictions
from deepfailguard.torchvision_import import import_torchvision

import_torchvision()  # torchmetrics imports it, which beside a CPU-only torch would fail
from torchmetrics import Metric  # noqa: E402
from torchmetrics.utilities import dim_zero_cat  # noqa: E402

__all__ = ["AUGRC", "AURC", "FPR95", "CoverageAtRisk", "Headroom", "RescueShare"]

_UNDEFINED: Final = float("nan")


class _FailurePrediction(Metric):
    """Keeps all failure probabilities and outcomes: nothing smaller tells the ties across batches."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    failure_probability: list[Tensor]
    wrong: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("failure_probability", [], dist_reduce_fx="cat")
        self.add_state("wrong", [], dist_reduce_fx="cat")
        # float64 holds every narrower number exactly: ties stay ties.
        self.set_dtype(torch.float64)

    def update(self, failure_probability: Tensor, wrong: Tensor) -> None:
        """Add a batch, which may be empty and lie on another device than the metric.

        Args:
            failure_probability: (B,) floating in [0, 1].
            wrong: (B,) bool, whether the answer was wrong; a missing answer is wrong.

        Raises:
            DataFormatError: other shapes, or values that are NaN or outside [0, 1].
        """
        check_predictions(failure_probability, wrong, least=0)
        # Both in the metric's dtype: with this one torchmetrics speaks for a process that was given no batch.
        self.failure_probability.append(failure_probability.detach().to(self.device, self.dtype))
        self.wrong.append(wrong.to(self.device, self.dtype))

    def compute(self) -> Tensor:
        """The measure of all batches: float64 scalar, NaN without inputs."""
        value = None
        if len(self.failure_probability) > 0:
            failure_probability, wrong = dim_zero_cat(self.failure_probability), dim_zero_cat(self.wrong).bool()
            value = self._measure(failure_probability, wrong) if len(wrong) > 0 else None
        return torch.tensor(_UNDEFINED if value is None else value, dtype=torch.float64, device=self.device)

    @abstractmethod
    def _measure(self, failure_probability: Tensor, wrong: Tensor) -> float | None:
        """The measure of B >= 1 inputs, None where it is undefined."""


class AURC(_FailurePrediction):
    """Area under the risk-coverage curve: mean share of wrong answers among the i most trusted, i = 1..B.

    Expected over the orders of answers with equal failure probability; see `area_under_risk_coverage`. In [0, 1],
    small is good. Source: Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural
    Classifiers", ICLR 2019, on the curve of Geifman & El-Yaniv, NeurIPS 2017.

    >>> metric = AURC()
    >>> metric.update(torch.tensor([0.1]), torch.tensor([False]))
    >>> metric.update(torch.tensor([0.9]), torch.tensor([True]))
    >>> float(metric.compute())
    0.25
    """

    def _measure(self, failure_probability: Tensor, wrong: Tensor) -> float:
        return area_under_risk_coverage(failure_probability, wrong)


class AUGRC(_FailurePrediction):
    """Area under the generalised risk-coverage curve: P(answered and wrong), averaged over coverages 0..1.

    Unlike AURC it does not weigh the few most trusted answers more than the others. In [0, 1/2], small is good;
    see `area_under_generalised_risk_coverage`. Source: Traub et al., "Overcoming Common Flaws in the Evaluation of
    Selective Classification Systems", NeurIPS 2024.

    >>> metric = AUGRC()
    >>> metric.update(torch.tensor([0.1]), torch.tensor([False]))
    >>> metric.update(torch.tensor([0.9]), torch.tensor([True]))
    >>> float(metric.compute())
    0.125
    """

    def _measure(self, failure_probability: Tensor, wrong: Tensor) -> float:
        return area_under_generalised_risk_coverage(failure_probability, wrong)


class FPR95(_FailurePrediction):
    """False positive rate: smallest share of right answers that is flagged when 95 % of the wrong ones are.

    In [0, 1], small is good, NaN unless there are right and wrong answers; see `false_positive_rate`, also for
    papers that search for right answers instead. Source: Liang, Li & Srikant, "Enhancing the Reliability of
    Out-of-Distribution Image Detection in Neural Networks", ICLR 2018, with wrong answers as what is detected.

    Args:
        recall: share of the wrong answers that must be flagged, in [0, 1].
        kwargs: settings of `torchmetrics.Metric`.

    >>> metric = FPR95()
    >>> metric.update(torch.tensor([0.9, 0.2]), torch.tensor([True, True]))
    >>> metric.update(torch.tensor([0.3, 0.1]), torch.tensor([False, False]))
    >>> float(metric.compute())
    0.5
    """

    def __init__(self, recall: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_share("recall", recall)
        self.recall = recall

    def _measure(self, failure_probability: Tensor, wrong: Tensor) -> float | None:
        return false_positive_rate(failure_probability, wrong, recall=self.recall)


class CoverageAtRisk(_FailurePrediction):
    """Largest coverage that a threshold reaches with at most this share of wrong answers among those it passes.

    In [0, 1], large is good, 0 if no threshold keeps to the risk; see `coverage_at_risk`. It is measured, not
    promised: a threshold found on some inputs may exceed the risk on others. Source: Geifman & El-Yaniv, "Selective
    Classification for Deep Neural Networks", NeurIPS 2017.

    Args:
        risk: share of wrong answers among those given, in [0, 1].
        kwargs: settings of `torchmetrics.Metric`.

    >>> metric = CoverageAtRisk(risk=0.4)
    >>> metric.update(torch.tensor([0.1, 0.2]), torch.tensor([False, True]))
    >>> metric.update(torch.tensor([0.3, 0.4]), torch.tensor([False, True]))
    >>> float(metric.compute())
    0.75
    """

    higher_is_better = True

    def __init__(self, risk: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_share("risk", risk)
        self.risk = risk

    def _measure(self, failure_probability: Tensor, wrong: Tensor) -> float:
        return coverage_at_risk(failure_probability, wrong, risk=self.risk)


class _RightAnswers(Metric):
    """Counts the inputs that the majority vote and the oracle get right."""

    is_differentiable = False
    full_state_update = False

    inputs: Tensor
    majority_right: Tensor
    oracle_right: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("inputs", "majority_right", "oracle_right"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def _count(self, labels: Tensor, truth: Tensor) -> None:
        check_answers(labels, truth, least=0)
        # Failure probabilities do not decide this vote; ties go to the smallest label as in the paper.
        majority = majority_vote(labels, torch.zeros(labels.shape, device=labels.device))
        self.inputs += len(truth)
        self.majority_right += (majority.labels == truth).sum().to(self.device)
        self.oracle_right += oracle(labels, truth).sum().to(self.device)


class Headroom(_RightAnswers):
    """Accuracy of the oracle (right if any version is right) minus accuracy of the majority vote.

    In [0, 1]: what a perfect choice among the versions' answers could add; as `EnsembleMeasures.headroom`.

    >>> metric = Headroom()
    >>> metric.update(torch.tensor([[0, 0, 1], [1, 1, 0]]), torch.tensor([0, 0]))
    >>> float(metric.compute())
    0.5
    """

    def update(self, labels: Tensor, truth: Tensor) -> None:
        """Add a batch, which may be empty.

        Args:
            labels: (B, N) int64, the versions' answers, -1 for none, which is wrong.
            truth: (B,) int64 in [0, K).

        Raises:
            DataFormatError: the inputs do not fit together.
        """
        self._count(labels, truth)

    def compute(self) -> Tensor:
        """Headroom over all batches: float64 scalar, NaN without inputs."""
        return (self.oracle_right - self.majority_right).double() / self.inputs


class RescueShare(_RightAnswers):
    """How much of what a choice among the answers can add the guard does add; see `rescue_share` of `measures`.

    The paper's relative improvement. The counts of all batches are divided, never averaged shares of batches.

    >>> metric = RescueShare()
    >>> labels, truth = torch.tensor([[0, 0, 1], [1, 1, 0], [2, 2, 0]]), torch.tensor([0, 0, 0])
    >>> metric.update(labels, truth, guard=torch.tensor([0, 0, 2]))
    >>> float(metric.compute())
    0.5
    """

    higher_is_better = True

    guard_right: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("guard_right", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, labels: Tensor, truth: Tensor, guard: Tensor) -> None:
        """Add a batch, which may be empty.

        Args:
            labels: (B, N) int64, the versions' answers, -1 for none, which is wrong.
            truth: (B,) int64 in [0, K).
            guard: (B,) int64, the guard's preferred answers (`Decision.labels`), also where it abstains.

        Raises:
            DataFormatError: the inputs do not fit together.
        """
        if guard.shape != truth.shape:
            raise DataFormatError(
                f"the guard's labels must be {tuple(truth.shape)} like truth, got {tuple(guard.shape)}"
            )
        guard_right = (guard == truth).sum().to(self.device)
        self._count(labels, truth)
        self.guard_right += guard_right

    def compute(self) -> Tensor:
        """Rescue share over all batches: float64 scalar, NaN without inputs or headroom."""
        return rescue_share(self.guard_right, self.majority_right, self.oracle_right)
