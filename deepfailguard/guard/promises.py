"""Promises about a guard's answers, learned on labelled inputs that nothing was fitted on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.data.base import ImageSet
from deepfailguard.decision.base import Rule
from deepfailguard.decision.prediction_sets import PredictionSets, calibrate_sets
from deepfailguard.decision.risk import RiskBound, bound_risk
from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.calibration import MAY_BE_ALIKE, how_many_known
from deepfailguard.guard.judging import with_threshold
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.guard.verdict import Verdict

__all__ = ["GuardedSets", "bounded_decision", "kept_apart", "promised_sets"]

_PIECE = 256


@dataclass(frozen=True, slots=True, repr=False)
class GuardedSets:
    """From images to sets of classes that contain the true one as often as was promised.

    Attributes:
        class_probability: from images (B, C, H, W) to (B, K); that of the guard as it was when this was made.
        rule: from class probabilities to sets.
    """

    class_probability: Callable[[Tensor], Tensor]
    rule: PredictionSets

    def __call__(self, images: Tensor) -> Tensor:
        """The sets, (B, K) bool; every class for an input that is not answered."""
        return self.rule(self.class_probability(images))

    def __repr__(self) -> str:
        each = " for each class alone" if self.rule.by_class else ""
        asked = getattr(self.class_probability, "__self__", self.class_probability)  # the guard, of its method
        share = f"at most {self.rule.miss_rate:.3g} of the sets lack the true one{each}"
        return f"GuardedSets of {len(self.rule.cutoff)} classes, {share}; by {asked!r}"


def kept_apart(labelled: ImageSet | tuple[Tensor, Tensor], saved: SavedGuard) -> ImageSet:
    """Labelled images that the guard did not learn from.

    Raises:
        ConfigurationError: it did learn from more than one in a hundred of them, in whatever order they come. A few may
            be alike by nature, as blank images are.
    """
    data = labelled if isinstance(labelled, ImageSet) else ImageSet(*labelled)
    _refuse_known(data, saved.calibration.images, "those of calibration")
    if saved.service is not None:
        _refuse_known(data, saved.service.images, "given to update")
    return data


def _refuse_known(data: ImageSet, hashes: Tensor, what: str) -> None:
    known = how_many_known(data.images, hashes)
    if known > MAY_BE_ALIKE * len(data):
        raise ConfigurationError(
            f"{known} of these {len(data)} images were {what}, so the guard looks better on them than it is; "
            "keep some labelled images apart and pass those"
        )


def bounded_decision(
    ask: Callable[[Tensor], Verdict], data: ImageSet, decision: Rule, *, risk: float, confidence: float
) -> tuple[Rule, RiskBound]:
    """The decision, abstaining above a threshold that promises the risk, and the promise.

    Args:
        ask: the guard.
        data: labelled images that it was not fitted on.
        decision: its rule.
        risk: largest share of wrong answers among those that are given, in (0, 1).
        confidence: in (0, 1).

    Raises:
        ConfigurationError: the data bear no such promise; the message says what would do.
    """
    verdicts = [ask(piece) for piece in data.images.split(_PIECE)]
    failure = torch.cat([verdict.failure_probability for verdict in verdicts])
    answers = torch.cat([verdict.labels for verdict in verdicts]).cpu()
    bound = bound_risk(failure, answers != data.labels.cpu(), risk=risk, confidence=confidence)
    if not bound.guaranteed:
        raise ConfigurationError(bound.explain())
    return with_threshold(decision, bound.threshold), bound


def promised_sets(
    class_probability: Callable[[Tensor], Tensor], data: ImageSet, *, miss_rate: float, by_class: bool
) -> GuardedSets:
    """Sets of classes that lack the true one at most this often.

    Args:
        class_probability: the guard's.
        data: labelled images that it was not fitted on.
        miss_rate: in (0, 1).
        by_class: keep the promise for the inputs of each class alone.
    """
    told = torch.cat([class_probability(piece) for piece in data.images.split(_PIECE)])
    return GuardedSets(class_probability, calibrate_sets(told, data.labels.cpu(), miss_rate, by_class=by_class))
