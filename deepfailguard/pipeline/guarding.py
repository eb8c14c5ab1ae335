"""From versions of the pool and calibration inputs to a fitted guard."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.fitting import LearningDistance, fitted, needs_teacher
from deepfailguard.boundary.searching import within
from deepfailguard.data.base import Splits
from deepfailguard.decision.base import Rule
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.pipeline.evidence import cache_distances, check_same_data
from deepfailguard.pipeline.launching.base import Launcher
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool

__all__ = ["GuardParts", "fit_distance", "train_guard"]


@dataclass(frozen=True, slots=True)
class GuardParts:
    """The exchangeable parts of a guard.

    Attributes:
        predictor: unfitted.
        decision: the rule.
        distance: tells boundary distances, to a predictor that needs them.
    """

    predictor: FailurePredictor
    decision: Rule
    distance: DistanceEstimator


def fit_distance(
    cards: Sequence[IdentityCard],
    calibration: Tensor,
    distance: DistanceEstimator,
    pool: Pool,
    device: torch.device,
    cache: Path,
    launcher: Launcher | None = None,
) -> DistanceEstimator:
    """The estimator, fitted to the versions where it is one that learns from a search; call it before any use.

    What was learned is kept in the cache, so a second call costs next to nothing and gives the same bits.

    Args:
        cards: versions of the pool, all with the bounds of one data set.
        calibration: images (B, C, H, W) that no version was trained on.
        distance: tells boundary distances.
        pool: where the versions are.
        device: where they run.
        cache: folder of distances.
        launcher: who searches what the estimator learns from, which is the costly part; None for this process. What
            is learned does not depend on it.

    Raises:
        VersionError: the search failed for some versions; what it found for others is in the cache.
    """
    if not hasattr(distance, "fit"):
        return distance
    if launcher is not None:
        untaught = [c for c in cards if needs_teacher(within(distance, c.bounds), c.fingerprint, calibration, cache)]
        teacher = cast(LearningDistance, distance).teacher
        cache_distances(untaught, {"calibration": calibration}, teacher, cache, pool, device, launcher)
    for card in cards:
        bounded, model = within(distance, card.bounds), pool.load(card, device).model
        distance = fitted(bounded, model, card.fingerprint, calibration, cache, card.name)
    return distance


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
