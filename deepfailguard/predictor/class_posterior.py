"""What the predictors share that tell the probability of every class: softmaxes that can be believed, and smoothing."""

import math
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.types import Evidence

__all__ = [
    "FLOOR",
    "CalibratedSoftmax",
    "failure_of",
    "fit_sharpness",
    "heard",
    "log_loss",
    "logits_of",
    "opinion",
    "smoothed",
]

FLOOR: Final = -12.0
"""Log-probability below which nothing counts: else a version that is wrongly sure would outvote all others."""

_SHARPEST: Final = 1e3  # and its inverse: the range of sharpness
_ANY_CLASS: Final = 0.1  # of an input
_CLOSE: Final = 1e-4  # to the logarithm of the best sharpness


@dataclass(frozen=True, slots=True)
class CalibratedSoftmax:
    """Each version's softmax, made as sharp as its calibration answers bear out ("temperature scaling", Guo 2017).

    Attributes:
        sharpness: (N,) float64 > 0, the factor of each version's logits: one over its temperature.
        classes: K.
        inputs: M, how many calibration inputs there were.
    """

    STATE: ClassVar[tuple[str, ...]] = ("sharpness", "classes", "inputs")

    sharpness: Tensor
    classes: int
    inputs: int

    @classmethod
    def fit(cls, evidence: Evidence, truth: Tensor) -> Self:
        """The sharpness with the smallest log loss; 1 for a version that never answered.

        Args:
            evidence: with logits, M inputs.
            truth: (M,) int64 >= 0.

        Raises:
            DataFormatError: the evidence holds no logits, or a true class has none.
        """
        logits, said = logits_of(evidence), heard(evidence)
        if int(truth.max()) >= logits.shape[2]:
            raise DataFormatError(
                f"true classes go up to {int(truth.max())}, but there are logits of {logits.shape[2]} classes; "
                "give truth and logits of the same data set"
            )
        target = truth.to(logits.device)
        columns = [(logits[rows, column].double(), target[rows]) for column, rows in enumerate(said.unbind(1))]
        sharpness = [fit_sharpness(scores, right) if len(right) else 1.0 for scores, right in columns]
        return cls(torch.tensor(sharpness, dtype=torch.float64), logits.shape[2], len(truth))

    def scaled(self, evidence: Evidence) -> Tensor:
        """Logits times sharpness, (B, N, K) float64; zero where a version was not `heard`.

        Raises:
            ConfigurationError: logits of another number of classes than those of calibration.
            DataFormatError: the evidence holds no logits.
        """
        logits = logits_of(evidence)
        if logits.shape[2] != self.classes:
            raise ConfigurationError(
                f"the predictor was fitted on {self.classes} classes, got logits of {logits.shape[2]}; "
                "fit it again on the versions that you ask"
            )
        known = torch.where(heard(evidence)[:, :, None], logits.double(), 0.0)
        return known * self.sharpness.to(logits.device)[:, None]

    def log_probability(self, evidence: Evidence) -> Tensor:
        """Class log-probabilities of each version, (B, N, K) float64; all the same where it was not `heard`."""
        return self.scaled(evidence).log_softmax(2)

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors under the names in `STATE`."""
        return {
            "sharpness": self.sharpness,
            "classes": torch.tensor(self.classes),
            "inputs": torch.tensor(self.inputs),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned."""
        return cls(state["sharpness"], int(state["classes"]), int(state["inputs"]))


def heard(evidence: Evidence) -> Tensor:
    """Which versions have a say: (B, N) bool, those that answered with logits that are all finite."""
    return evidence.answered & logits_of(evidence).isfinite().all(2)


def failure_of(probability: Tensor, evidence: Evidence) -> Tensor:
    """P(version's answer is wrong), (B, N) float64 in [0, 1], from class probabilities (B, K); 1 for no answer."""
    right = probability.gather(1, evidence.labels.clamp_min(0))
    return torch.where(evidence.answered, (1 - right).clamp(0, 1), 1.0)


def opinion(log_probabilities: Tensor) -> Tensor:
    """Log-probabilities (B, K), not below a floor, less their mean."""
    kept = log_probabilities.clamp_min(FLOOR)
    return kept - kept.mean(1, keepdim=True)


def fit_sharpness(scores: Tensor, truth: Tensor) -> float:
    """The factor > 0 of scores (M, K) whose softmax has the smallest log loss (one over the "temperature").

    A tenth of an input is added that may have any class: without it a factor is arbitrarily large where no score is
    wrong, and what is left of the ranking of sure and unsure answers is rounding.
    """
    from scipy.optimize import minimize_scalar  # heavy: only who fits pays for it

    def loss(logarithm: float) -> float:
        told = (scores * math.exp(logarithm)).log_softmax(1)
        right, any_class = told.gather(1, truth[:, None]).sum(), told.mean()
        return -float(right + _ANY_CLASS * any_class) / (len(truth) + _ANY_CLASS)

    # The loss is convex in the factor, so it has one valley in the logarithm as well.
    bounds = (-math.log(_SHARPEST), math.log(_SHARPEST))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": _CLOSE})
    return math.exp(float(best.x))


def log_loss(scores: Tensor, truth: Tensor) -> float:
    """Mean log loss of the softmax of scores (M, K) for classes (M,)."""
    return float(torch.nn.functional.cross_entropy(scores, truth))


def smoothed(probability: Tensor, inputs: int) -> Tensor:
    """Class probabilities (B, K), none below 1 / (K (M + 2)): M inputs cannot tell that one never occurs."""
    unknown = 1 / (inputs + 2)
    return (1 - unknown) * probability + unknown / probability.shape[1]


def logits_of(evidence: Evidence) -> Tensor:
    """The logits (B, N, K).

    Raises:
        DataFormatError: there are none, or of another shape.
    """
    logits = evidence.logits
    if logits is None:
        raise DataFormatError("this predictor needs evidence with logits; ask the versions for them")
    if logits.ndim != 3 or logits.shape[:2] != evidence.labels.shape:
        raise DataFormatError(
            f"logits must be {(*evidence.labels.shape, 'K')}, got {tuple(logits.shape)}; "
            "give a row of logits for each version's answer to each input"
        )
    return logits
