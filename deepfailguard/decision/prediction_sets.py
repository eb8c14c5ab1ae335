"""Sets of classes that contain the true one with a probability that was asked for (split conformal prediction).

Calibrated on n inputs that no version and no predictor was trained on, a set lacks the true class of a new
input from the same source with probability at most the miss rate, whatever the versions are worth (Vovk et al.,
2005). Bad versions make large sets, never false promises. The probability is over the draw of the calibration
inputs and of the new one: it holds on average over inputs (or over those of each class), not for each input.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError

__all__ = ["PredictionSets", "SetScore", "adaptive_score", "calibrate_sets", "least_ambiguous_score"]

SetScore = Callable[[Tensor], Tensor]
"""From class probabilities (B, K) to how strange each class would be as the truth, (B, K) >= 0."""

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996 and means 29
_SUM_TOLERANCE = 1e-3  # of float16 softmax outputs


@dataclass(frozen=True, slots=True)
class PredictionSets:
    """A calibrated rule from class probabilities to sets of classes.

    Attributes:
        score: how strange a class is; the same that it was calibrated with.
        cutoff: (K,) float64 >= 0, a class belongs to the set where its score is not larger; infinite for a class
            that belongs to every set.
        miss_rate: in (0, 1), how often a set may lack the true class.
        by_class: whether this holds within each true class, not only on average over all.
        allow_empty: whether a set may be empty.
    """

    score: SetScore
    cutoff: Tensor
    miss_rate: float
    by_class: bool
    allow_empty: bool

    def __call__(self, probabilities: Tensor) -> Tensor:
        """The sets, (B, K) bool, of inputs with class probabilities (B, K).

        A row of zeros (no version answered) or with a NaN rules nothing out: its set has every class.
        Unless `allow_empty`, a set that would be empty has the most probable class, all of them where several are.

        Raises:
            DataFormatError: not floating (B, K) with the K of calibration.
        """
        _check_shape(probabilities, len(self.cutoff))
        known = _known(probabilities)
        members = _strangeness(self.score, known) <= self.cutoff.to(known.device)
        if self.allow_empty:
            return members
        best = known == known.amax(1, keepdim=True)
        return members | (best & ~members.any(1, keepdim=True))


def calibrate_sets(
    probabilities: Tensor,
    truth: Tensor,
    miss_rate: float,
    *,
    score: SetScore | None = None,
    by_class: bool = False,
    allow_empty: bool = False,
) -> PredictionSets:
    """Learn how strange a class may be and still belong to the set.

    The cutoff is the r-th smallest score of the n true classes, r = ceil((n + 1) (1 - miss_rate)); where r > n,
    too few inputs for any promise, every class belongs to every set.

    Args:
        probabilities: (n, K) floating, of inputs that nothing else was fitted on; rows sum to 1, or are 0
            where no version answered.
        truth: (n,) int64 in [0, K).
        miss_rate: how often a set may lack the true class, in (0, 1).
        score: how strange a class is; `least_ambiguous_score` if left out.
        by_class: keep the promise for the inputs of each class alone (a cutoff for each, learned from its own
            inputs). A class with fewer than 1 / miss_rate - 1 of them, or never seen in calibration, belongs to
            every set. Without it such a class has the common cutoff and nothing is promised for it.
        allow_empty: leave sets empty where even the most probable class is stranger than the cutoff. The promise
            holds either way.

    Raises:
        ConfigurationError: `miss_rate` is not in (0, 1).
        DataFormatError: no inputs, other shapes, or values that are no probabilities or no labels.

    >>> probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.3, 0.1]])
    >>> sets = calibrate_sets(probabilities, torch.tensor([0, 1, 1]), miss_rate=0.25)
    >>> sets(torch.tensor([[0.95, 0.05, 0.0], [0.5, 0.4, 0.1], [0.0, 0.0, 0.0]])).tolist()
    [[True, False, False], [True, True, False], [True, True, True]]
    """
    _check_calibration(probabilities, truth, miss_rate)
    score = least_ambiguous_score if score is None else score
    strangeness = _strangeness(score, probabilities.double()).gather(1, truth[:, None])[:, 0]
    classes = probabilities.shape[1]
    if by_class:
        cutoff = torch.stack([_cutoff(strangeness[truth == k], miss_rate) for k in range(classes)])
    else:
        cutoff = _cutoff(strangeness, miss_rate).repeat(classes)
    return PredictionSets(score, cutoff, miss_rate, by_class, allow_empty)


def least_ambiguous_score(probabilities: Tensor) -> Tensor:
    """1 - probability: the smallest sets on average (LAC; Sadinle et al., 2019), float64 (B, K).

    >>> least_ambiguous_score(torch.tensor([[0.75, 0.25]])).tolist()
    [[0.25, 0.75]]
    """
    return 1 - probabilities.double()


def adaptive_score(probabilities: Tensor, *, penalty: float = 0.0, free: int = 1) -> Tensor:
    """Probability of all classes before this one: larger sets where the input is harder, float64 (B, K).

    That is the score of Romano et al. (2020, APS) without its random part: the most probable class always has 0,
    so no set is empty. Equally probable classes have equal scores.

    Args:
        probabilities: (B, K) floating.
        penalty: >= 0, added for each class beyond the first `free` ones (RAPS; Angelopoulos et al., 2021): keeps
            sets small where many classes have a little probability each.
        free: >= 1, how many classes have no penalty.

    >>> adaptive_score(torch.tensor([[0.25, 0.5, 0.25]])).tolist()
    [[0.5, 0.0, 0.5]]
    >>> adaptive_score(torch.tensor([[0.25, 0.625, 0.125]]), penalty=0.5).tolist()
    [[1.125, 0.0, 1.875]]
    """
    if penalty < 0 or free < 1:
        raise ConfigurationError(f"an adaptive score needs penalty >= 0 and free >= 1, got {penalty} and {free}")
    p = probabilities.double().contiguous()
    ascending = p.sort(1).values
    mass = torch.nn.functional.pad(ascending.cumsum(1), (1, 0))
    not_above = torch.searchsorted(ascending, p, right=True)  # classes at most as probable as this one
    before = mass[:, -1:] - mass.gather(1, not_above)
    rank = p.shape[1] - not_above  # how many are more probable
    return before + penalty * (rank + 1 - free).clamp_min(0)


def _cutoff(strangeness: Tensor, miss_rate: float) -> Tensor:
    """The score () float64 that a new one from the same source exceeds with probability at most the miss rate."""
    count = len(strangeness)
    rank = count + 1 - math.floor((count + 1) * miss_rate + _ROUNDING)
    if rank > count:
        return torch.tensor(math.inf, dtype=torch.float64, device=strangeness.device)
    return strangeness.sort().values[rank - 1]


def _strangeness(score: SetScore, known: Tensor) -> Tensor:
    """The scores (B, K), 0 in rows that tell nothing: there no class is strange, in calibration as later."""
    return torch.where(known.any(1, keepdim=True), score(known), 0.0)


def _known(probabilities: Tensor) -> Tensor:
    """Float64 (B, K) with 0 in every row that has a value which is not finite."""
    sound = torch.isfinite(probabilities).all(1, keepdim=True)
    return torch.where(sound, probabilities, 0.0).double()


def _check_shape(probabilities: Tensor, classes: int) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] != classes or not probabilities.is_floating_point():
        raise DataFormatError(
            f"class probabilities must be floating (B, {classes}), "
            f"got {probabilities.dtype} {tuple(probabilities.shape)}; give one column per class of calibration"
        )


def _check_calibration(probabilities: Tensor, truth: Tensor, miss_rate: float) -> None:
    if not 0 < miss_rate < 1:
        raise ConfigurationError(f"miss_rate must be in (0, 1), got {miss_rate}; 0.1 is usual")
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise DataFormatError(
            f"class probabilities must be (n, K) with n >= 1 inputs and K >= 1 classes, "
            f"got {tuple(probabilities.shape)}; give the guard's on calibration inputs"
        )
    _check_shape(probabilities, probabilities.shape[1])
    if truth.dtype != torch.int64 or truth.shape != probabilities.shape[:1]:
        raise DataFormatError(f"truth must be int64 ({len(probabilities)},), got {truth.dtype} {tuple(truth.shape)}")
    if int(truth.min()) < 0 or int(truth.max()) >= probabilities.shape[1]:
        raise DataFormatError(
            f"truth spans {int(truth.min())}..{int(truth.max())}, but there are {probabilities.shape[1]} classes; "
            "leave out inputs whose class is not known"
        )
    total = probabilities.double().sum(1)
    # NaN fails every comparison, so it is refused too.
    sound = (probabilities >= 0).all(1) & (((total - 1).abs() <= _SUM_TOLERANCE) | (total == 0))
    if not bool(sound.all()):
        raise DataFormatError(
            f"{int((~sound).sum())} rows of class probabilities (the first is number {int((~sound).nonzero()[0])}) "
            "have negative values or do not sum to 1; pass softmax outputs, not logits"
        )
