"""Promises about a guard's answers, learned on labelled inputs that nothing was fitted on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.data.base import ImageSet
from deepfailguard.data.hashing import image_hashes
from deepfailguard.decision.base import Rule
from deepfailguard.decision.prediction_sets import PredictionSets, calibrate_sets
from deepfailguard.decision.risk import RiskBound, bound_risk
from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.judging import with_threshold
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.guard.verdict import Verdict

__all__ = ["GuardedSets", "bounded_decision", "kept_apart", "promised_sets"]

_PIECE = 256


@dataclass(frozen=True, slots=True)
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


def kept_apart(labelled: ImageSet | tuple[Tensor, Tensor], saved: SavedGuard) -> ImageSet:
    """Labelled images that the guard did not learn from.

    Raises:
        ConfigurationError: it did.
    """
    data = labelled if isinstance(labelled, ImageSet) else ImageSet(*labelled)
    if data.fingerprint == saved.card.calibration_fingerprint:
        raise ConfigurationError(
            "the guard was fitted on these very images, on which it looks better than it is; "
            "keep some labelled images apart and pass those"
        )
    known = set() if saved.service is None else {bytes(each) for each in saved.service.images.tolist()}
    twice = sum(each in known for each in image_hashes(data.images)) if known else 0
    if twice:
        raise ConfigurationError(
            f"{twice} of these images were given to update, so the guard looks better on them than it is; "
            "keep some labelled images apart and pass those"
        )
    return data


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
