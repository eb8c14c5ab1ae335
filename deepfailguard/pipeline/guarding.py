"""From versions of the pool and calibration inputs to a fitted guard."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.searching import within
from deepfailguard.data.base import Splits
from deepfailguard.decision.base import DecisionRule
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.pipeline.evidence import check_same_data
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool

__all__ = ["GuardParts", "train_guard"]


@dataclass(frozen=True, slots=True)
class GuardParts:
    """The exchangeable parts of a guard.

    Attributes:
        predictor: unfitted.
        decision: the rule.
        distance: tells boundary distances.
    """

    predictor: FailurePredictor
    decision: DecisionRule
    distance: DistanceEstimator


def train_guard(
    cards: Sequence[IdentityCard], splits: Splits, parts: GuardParts, pool: Pool, device: torch.device, cache: Path
) -> GuardedPredictor:
    """Fit a guard on the calibration part; distances come from the cache where it has them.

    Args:
        cards: the ensemble.
        splits: the data set; only its calibration part is used.
        parts: predictor, decision and distance.
        pool: where the versions are.
        device: where they run.
        cache: folder of distances.
    """
    check_same_data(cards, splits)
    return GuardedPredictor.fit(
        [pool.load(card, device) for card in cards],
        splits.calibration,
        predictor=parts.predictor,
        decision=parts.decision,
        distance=within(parts.distance, splits.bounds),
        classes=splits.classes,
        bounds=splits.bounds,
        cache=cache,
    )
