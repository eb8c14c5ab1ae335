"""The whole path in one call: requests, versions, distances, guard, evaluation."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deepfailguard.data.base import Splits
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.pipeline.evaluating import evaluate_cached, evaluate_live
from deepfailguard.pipeline.evidence import cache_distances
from deepfailguard.pipeline.guarding import GuardParts, fit_distance, train_guard
from deepfailguard.pipeline.training import TrainRequest, train_version
from deepfailguard.training.trainer import Trainer
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool

__all__ = ["Places", "run_path"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are kept.

    Attributes:
        pool: of trained versions.
        cache: folder of distances.
        guard: folder of the guard.
    """

    pool: Pool
    cache: Path
    guard: Path


def run_path(requests: Sequence[TrainRequest], parts: GuardParts, places: Places, device: torch.device) -> Evaluation:
    """Train what the pool lacks, cache distances if needed, fit and save the guard, evaluate it on the test part.

    Everything that exists is found again, so a second run takes seconds.

    Args:
        requests: the ensemble's versions, all of the first request's data set.
        parts: of the guard.
        places: where things are kept.
        device: where to compute.
    """
    trainer = Trainer(device)
    cards = []
    for request in requests:
        filed = train_version(request, places.pool, trainer)
        logger.info("%s", filed.describe())
        cards.append(filed.card)
    splits = requests[0].source.load()
    if "distances" in parts.predictor.needs:
        _cache(cards, splits, parts, places, device)
    guard = train_guard(cards, splits, parts, places.pool, device, places.cache)
    guard.save(places.guard)
    if guard.saved.distance is None:
        return evaluate_live(guard, splits)
    return evaluate_cached(guard.saved, splits, places.cache)


def _cache(
    cards: Sequence[IdentityCard], splits: Splits, parts: GuardParts, places: Places, device: torch.device
) -> None:
    images = {"calibration": splits.calibration.images, "test": splits.test.images}
    distance = fit_distance(cards, splits.calibration.images, parts.distance, places.pool, device, places.cache)
    cache_distances(cards, images, distance, places.cache, places.pool, device)
