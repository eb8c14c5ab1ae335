"""How good the guard's answers are beside the vote, the oracle and the best single version."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.errors import DataFormatError
from deepfailguard.types import Decision

__all__ = [
    "EnsembleMeasures",
    "ErrorClass",
    "check_answers",
    "known_rescue_share",
    "measure_ensemble",
    "oracle",
    "rescue_share",
]


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """The inputs on which exactly k of the versions are wrong (the paper's e1, e2, e3 at three versions).

    Attributes:
        wrong_versions: k in [1, N].
        inputs: how many there are.
        guard_right: on how many of them the guard is right.
        majority_right: on how many the majority vote is right.
        best_single_right: on how many the best single version is right.
        revised: guard right, majority wrong.
        broken: majority right, guard wrong.
    """

    wrong_versions: int
    inputs: int
    guard_right: int
    majority_right: int
    best_single_right: int
    revised: int
    broken: int


@dataclass(frozen=True, slots=True)
class EnsembleMeasures:
    """Measures of one ensemble on B >= 1 inputs. A missing answer is a wrong answer.

    Attributes:
        inputs: B.
        version_accuracy: N accuracies in [0, 1].
        guard: accuracy of the guard's preferred answers, also of those for which it abstains.
        majority: accuracy of the majority vote.
        oracle: share of inputs on which any version is right.
        best_single: accuracy of the version that was best on calibration data.
        lower_limit: share of inputs on which all versions are right.
        coverage: share of inputs for which the guard does not abstain.
        answered_accuracy: the guard's accuracy on these; None if it abstains always.
        error_classes: for k = 1..N.
    """

    inputs: int
    version_accuracy: tuple[float, ...]
    guard: float
    majority: float
    oracle: float
    best_single: float
    lower_limit: float
    coverage: float
    answered_accuracy: float | None
    error_classes: tuple[ErrorClass, ...]

    @property
    def absolute_improvement(self) -> float:
        """Guard minus majority vote, in [-1, 1]."""
        return self.guard - self.majority

    @property
    def headroom(self) -> float:
        """Oracle minus majority vote, in [0, 1]."""
        return self.oracle - self.majority

    @property
    def rescue_share(self) -> float | None:
        """Share of the headroom that the guard wins (the paper's relative improvement); None without headroom."""
        return known_rescue_share(self.guard, self.majority, self.oracle)

    @property
    def revised(self) -> int:
        """Inputs on which the guard is right and the majority vote wrong."""
        return sum(error_class.revised for error_class in self.error_classes)

    @property
    def broken(self) -> int:
        """Inputs on which the majority vote is right and the guard wrong."""
        return sum(error_class.broken for error_class in self.error_classes)

    def as_dict(self) -> dict[str, float | int | None]:
        """All measures by name, flat and ready for JSON; those of error class k start with ``e{k}``."""
        names = ("guard", "majority", "oracle", "best_single", "lower_limit", "coverage", "answered_accuracy")
        derived = ("absolute_improvement", "headroom", "rescue_share", "revised", "broken")
        flat = {name: getattr(self, name) for name in ("inputs", *names, *derived)}
        flat["versions"] = len(self.version_accuracy)
        flat |= {f"version_{i}_accuracy": accuracy for i, accuracy in enumerate(self.version_accuracy)}
        counts = ("guard_right", "majority_right", "best_single_right", "revised", "broken")
        for each in self.error_classes:
            flat[f"e{each.wrong_versions}"] = each.inputs
            flat |= {f"e{each.wrong_versions}_{name}": getattr(each, name) for name in counts}
        return flat


def oracle(labels: Tensor, truth: Tensor) -> Tensor:
    """(B,) bool, whether any version is right.

    Args:
        labels: (B, N) int64, -1 for no answer.
        truth: (B,) int64 in [0, K).

    >>> import torch
    >>> oracle(torch.tensor([[0, 1], [2, 2]]), torch.tensor([1, 1])).tolist()
    [True, False]
    """
    return (labels == truth[:, None]).any(1)


def rescue_share(guard: Tensor, majority: Tensor, oracle: Tensor) -> Tensor:
    """(guard - majority) / (oracle - majority), float64, value by value; NaN without headroom.

    At most 1 for a guard that chooses among the given answers, below 0 for one that is worse than the majority vote.

    Args:
        guard: accuracies, or counts of right answers, of any shape.
        majority: those of the majority vote.
        oracle: those of the oracle.

    >>> rescue_share(torch.tensor([0.75, 0.5]), torch.tensor(0.5), torch.tensor([1.0, 0.5])).tolist()
    [0.5, nan]
    """
    headroom = (oracle - majority).double()
    return torch.where(headroom > 0, (guard - majority).double() / headroom, torch.nan)


def known_rescue_share(guard: float, majority: float, oracle: float) -> float | None:
    """The same of three accuracies; None without headroom."""
    accuracies = torch.tensor([guard, majority, oracle], dtype=torch.float64)
    share = float(rescue_share(*accuracies))
    return None if share != share else share


def measure_ensemble(
    labels: Tensor, truth: Tensor, guard: Decision, majority: Decision, best_single: int
) -> EnsembleMeasures:
    """Measure one ensemble.

    Args:
        labels: (B, N) int64, the versions' answers, -1 for none.
        truth: (B,) int64 in [0, K).
        guard: the guard's decision for the same inputs.
        majority: that of the majority vote.
        best_single: position of the version that was best on calibration data.

    Raises:
        DataFormatError: the inputs do not fit together, or there are none.
    """
    _check(labels, truth, (guard, majority), best_single)
    right = labels == truth[:, None]
    guard_right, majority_right = guard.labels == truth, majority.labels == truth
    answered = ~guard.abstained
    return EnsembleMeasures(
        inputs=len(truth),
        version_accuracy=tuple(_share(right[:, i]) for i in range(labels.shape[1])),
        guard=_share(guard_right),
        majority=_share(majority_right),
        oracle=_share(oracle(labels, truth)),
        best_single=_share(right[:, best_single]),
        lower_limit=_share(right.all(1)),
        coverage=_share(answered),
        answered_accuracy=_share(guard_right[answered]) if bool(answered.any()) else None,
        error_classes=_error_classes(right, guard_right, majority_right, best_single),
    )


def _error_classes(
    right: Tensor, guard_right: Tensor, majority_right: Tensor, best_single: int
) -> tuple[ErrorClass, ...]:
    wrong = (~right).sum(1)

    def one(k: int) -> ErrorClass:
        here = wrong == k
        sets = (guard_right, majority_right, right[:, best_single])
        changes = (guard_right & ~majority_right, majority_right & ~guard_right)
        return ErrorClass(k, int(here.sum()), *(int((here & s).sum()) for s in (*sets, *changes)))

    return tuple(one(k) for k in range(1, right.shape[1] + 1))


def _share(chosen: Tensor) -> float:
    return int(chosen.sum()) / len(chosen)


def check_answers(labels: Tensor, truth: Tensor, *, least: int = 1) -> None:
    """Refuse answers and truth that do not fit together.

    Args:
        labels: (B, N) int64, -1 for no answer.
        truth: (B,) int64 in [0, K).
        least: how many inputs there must be; 0 for a batch among others, which may be empty.

    Raises:
        DataFormatError: other shapes or types, too few inputs, no version, or a true label below 0.
    """
    if labels.ndim != 2 or labels.shape[1] == 0 or len(labels) < least or labels.dtype != torch.int64:
        raise DataFormatError(
            f"labels must be int64 (B, N) with {'B, N' if least else 'N'} >= 1, "
            f"got {labels.dtype} {tuple(labels.shape)}; give one column per version"
        )
    if truth.shape != labels.shape[:1] or truth.dtype != torch.int64:
        raise DataFormatError(
            f"truth must be int64 ({len(labels)},) like the inputs, got {truth.dtype} {tuple(truth.shape)}"
        )
    if bool((truth < 0).any()):
        raise DataFormatError(f"true labels must be >= 0 (-1 means no answer), got {int(truth.min())}")


def _check(labels: Tensor, truth: Tensor, decisions: tuple[Decision, ...], best_single: int) -> None:
    check_answers(labels, truth)
    for decision in decisions:
        if decision.labels.shape != truth.shape:
            raise DataFormatError(
                f"a decision's labels must be ({len(labels)},) like the inputs, got {tuple(decision.labels.shape)}"
            )
    if not 0 <= best_single < labels.shape[1]:
        raise DataFormatError(f"best_single must be in [0, {labels.shape[1]}), got {best_single}")
