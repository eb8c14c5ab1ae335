"""Evidence of pool versions on the parts of a data set, computed into the cache or read from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.searching import for_version, within
from deepfailguard.data.base import Splits
from deepfailguard.errors import CacheMissError, ConfigurationError
from deepfailguard.faults.inject import inject_all
from deepfailguard.pipeline.launching.base import Launcher
from deepfailguard.pipeline.launching.computing import compute
from deepfailguard.pipeline.launching.inline import Inline
from deepfailguard.pipeline.launching.planning import locate, plan
from deepfailguard.pipeline.launching.work import Job
from deepfailguard.types import Distances, Evidence
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool

__all__ = ["cache_distances", "check_same_data", "read_evidence", "with_test_faults"]


def cache_distances(
    cards: Sequence[IdentityCard],
    images: Mapping[str, Tensor],
    estimator: DistanceEstimator,
    cache: Path,
    pool: Pool,
    device: torch.device,
    launcher: Launcher | None = None,
) -> dict[str, Distances]:
    """Compute what the cache lacks; what it has is not computed again.

    Args:
        cards: versions of the pool.
        images: parts of a data set by name, (B, C, H, W) each.
        estimator: tells the distances.
        cache: folder of the cache.
        pool: where the versions are.
        device: where they run.
        launcher: who computes; None for this process. The distances do not depend on it.

    Returns:
        The distances by ``VERSION/PART``.

    Raises:
        VersionError: distances of some versions could not be computed; all others are in the cache.
    """
    jobs = [Job(card, for_version(within(estimator, card.bounds), card.fingerprint)) for card in cards]
    compute(plan(jobs, images, locate(pool, cache, device)), launcher or Inline())
    results = {}
    for job in jobs:
        cached = CachedDistance(job.estimator, cache, job.card.fingerprint)
        for part, x in images.items():
            results[f"{job.card.name}/{part}"] = cached.lookup(x)
    return results


def read_evidence(
    fingerprints: Mapping[str, str], images: Tensor, estimator: DistanceEstimator, cache: Path
) -> Evidence:
    """Evidence of versions on images from the cache alone; no model is needed.

    Args:
        fingerprints: of each version by its name.
        images: (B, C, H, W).
        estimator: what computed the distances.
        cache: folder of the cache.

    Raises:
        CacheMissError: a distance was never computed.
    """
    lookups = []
    for name, fingerprint in fingerprints.items():
        cached = CachedDistance(for_version(estimator, fingerprint), cache, fingerprint)
        missing = cached.missing(images)
        if missing:
            raise CacheMissError(
                f"{missing} of {len(images)} distances of version {name} are not cached in {cache}; "
                "run scripts/cache_distances.py with the same dataset, distance, limit and fault settings"
            )
        lookups.append(cached.lookup(images))
    return Evidence.stack(lookups)


def with_test_faults(splits: Splits, faults: Sequence[Any], seed: int) -> Splits:
    """The splits with faults in their test part; refuses faults of any other kind."""
    for fault in faults:
        if getattr(fault, "acts_on", None) != "test_data":
            raise ConfigurationError(
                f"fault {getattr(fault, 'name', fault)!r} does not act on test inputs; "
                "give it to scripts/train_model.py"
            )
    changed: Splits = inject_all(faults, splits, seed).target
    return changed


def check_same_data(cards: Sequence[IdentityCard], splits: Splits) -> None:
    """Refuse versions that answer other classes, take other inputs, or may have seen the other parts in training."""
    for card in cards:
        if card.classes != splits.classes:
            raise ConfigurationError(
                f"version {card.name} answers for {len(card.classes)} classes {_some(card.classes)}, "
                f"but data set {splits.name!r} has {len(splits.classes)}: {_some(splits.classes)}"
            )
        if card.input_shape != splits.input_shape:
            raise ConfigurationError(
                f"version {card.name} takes images of shape {card.input_shape}, "
                f"but those of data set {splits.name!r} have {splits.input_shape}"
            )
        if card.source_fingerprint != splits.train.fingerprint:
            raise ConfigurationError(
                f"version {card.name} was trained on another split of {splits.name!r}, so it may have seen the "
                "calibration images; use the same data set settings as in training (dataset.limit, for one; "
                "limit.calibration and limit.test shorten these parts and nothing else), "
                "or name the versions that fit: ensemble.versions=[NAME@KEY,...]"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
