"""What there is to compute, cut into units that any worker can take."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool

__all__ = ["Job", "Site", "Unit", "Work"]


@dataclass(frozen=True, slots=True)
class Job:
    """One version and what tells its distances.

    Attributes:
        card: of the version; a worker loads it from the pool.
        estimator: in the version's bounds.
    """

    card: IdentityCard
    estimator: DistanceEstimator


@dataclass(frozen=True, slots=True)
class Unit:
    """Whole chunks of one part of the images for one version: what one worker computes without a break.

    Attributes:
        job: the version's place in `Work.jobs`.
        part: name of the images.
        start: the first image, where a chunk of the estimator begins.
        stop: one behind the last image.
        chunks: how many chunks these are (>= 1).
        wave: a unit may start when all units of its version with a smaller wave are on disk, see `waves`.
    """

    job: int
    part: str
    start: int
    stop: int
    chunks: int
    wave: int = 0


@dataclass(frozen=True, slots=True)
class Site:
    """Where workers find versions and leave distances.

    Attributes:
        pool: where the versions are.
        cache: folder of the cache.
        device: where the versions run.
    """

    pool: Pool
    cache: Path
    device: torch.device


@dataclass(frozen=True, slots=True)
class Work:
    """All that the cache lacks.

    Attributes:
        jobs: the versions.
        units: ordered by version, wave and place.
        images: (B, C, H, W) of each part.
        site: where workers find versions and leave distances.
    """

    jobs: tuple[Job, ...]
    units: tuple[Unit, ...]
    images: Mapping[str, Tensor]
    site: Site

    @property
    def chunks(self) -> int:
        """How many chunks there are in all units."""
        return sum(unit.chunks for unit in self.units)

    def images_of(self, unit: Unit) -> Tensor:
        """The images of a unit: (stop - start, C, H, W)."""
        return self.images[unit.part][unit.start : unit.stop]

    def describe(self, unit: Unit) -> str:
        """The unit in words."""
        return f"version {self.jobs[unit.job].card.name}, {unit.part} inputs {unit.start} to {unit.stop - 1}"
