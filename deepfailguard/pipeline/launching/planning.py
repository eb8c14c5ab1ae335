"""From versions and images to the units that the cache lacks."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.searching import check_inputs
from deepfailguard.data.hashing import image_hashes
from deepfailguard.identity import describe, digest
from deepfailguard.pipeline.launching.work import Job, Site, Unit, Work
from deepfailguard.versions.pool import Pool

__all__ = ["locate", "plan", "waves"]

_LARGEST_UNIT = 1024  # images: what a dead worker loses at most, and what one shard holds at least
_FEWEST_UNITS = 64  # that a long run is cut into, so that all workers finish at about the same time


def locate(pool: Pool, cache: Path, device: torch.device) -> Site:
    """A site with absolute paths: a worker may run in another folder."""
    there = copy.copy(pool)
    there.folder = pool.folder.resolve()
    return Site(there, cache.resolve(), device)


def plan(jobs: Sequence[Job], images: Mapping[str, Tensor], site: Site) -> Work:
    """Find what the cache lacks.

    Args:
        jobs: versions; of several with the same weights and estimator only the first has work.
        images: (B, C, H, W) of each part.
        site: where versions and cache are.

    Raises:
        DataFormatError: images are not finite or not in a version's bounds.
    """
    keys = {part: image_hashes(x) for part, x in images.items()}
    units: list[Unit] = []
    seen: set[tuple[str, str]] = set()
    for number, job in enumerate(jobs):
        identity = job.card.fingerprint, digest(describe(job.estimator))
        if identity not in seen:
            units += _ordered(_missing(number, job, images, site), keys)
        seen.add(identity)
    return Work(tuple(jobs), tuple(units), images, site)


def waves(contents: Sequence[Sequence[bytes]]) -> list[int]:
    """Which units may be computed at the same time: those of one wave.

    Equal images share one entry of the cache, the one of the first chunk that has them, and chunks of another
    size or order may differ from it in the last bit. So a unit waits for the units before it that hold one of
    its images; then any number of workers leave the entries that one process leaves.

    Args:
        contents: hashes of each unit's images, in the order in which one process computes them.

    Example:
        >>> waves([[b"a", b"b"], [b"c"], [b"b", b"d"], [b"d"]])
        [0, 0, 1, 2]
    """
    brought: dict[bytes, int] = {}  # the wave that brings an image
    found = []
    for hashes in contents:
        wave = 1 + max((brought[key] for key in hashes if key in brought), default=-1)
        for key in hashes:
            brought.setdefault(key, wave)
        found.append(wave)
    return found


def _missing(number: int, job: Job, images: Mapping[str, Tensor], site: Site) -> Iterator[Unit]:
    cached = CachedDistance(job.estimator, site.cache, job.card.fingerprint)
    chunk = cached.batch_size
    for part, x in images.items():
        check_inputs(x, cached.bounds)
        if cached.missing(x) == 0:
            continue
        size = chunk * _chunks_per_unit(math.ceil(len(x) / chunk), chunk)
        for start in range(0, len(x), size):
            stop = min(start + size, len(x))
            if cached.missing(x[start:stop]):
                yield Unit(number, part, start, stop, math.ceil((stop - start) / chunk))


def _chunks_per_unit(chunks: int, chunk: int) -> int:
    # It must depend on neither cache nor launcher: Ray's blocks are shared by all versions.
    return max(1, min(chunks // _FEWEST_UNITS, _LARGEST_UNIT // chunk))


def _ordered(units: Iterator[Unit], keys: Mapping[str, Sequence[bytes]]) -> list[Unit]:
    found = list(units)
    numbers = waves([keys[unit.part][unit.start : unit.stop] for unit in found])
    placed = [
        Unit(unit.job, unit.part, unit.start, unit.stop, unit.chunks, wave)
        for unit, wave in zip(found, numbers, strict=True)
    ]
    return sorted(placed, key=lambda unit: unit.wave)  # stable: within a wave the order of the images
