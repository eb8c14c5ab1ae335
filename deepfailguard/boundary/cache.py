"""Boundary distances that are computed once: an estimator with a memory on disk."""

import math
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.searching import check_inputs
from deepfailguard.boundary.shards import Entry, ShardFolder, merge
from deepfailguard.boundary.weights_check import WeightsCheck
from deepfailguard.boundary.write_buffer import WriteBuffer
from deepfailguard.data.hashing import image_hashes
from deepfailguard.errors import CacheMissError, ConfigurationError
from deepfailguard.identity import describe, digest
from deepfailguard.progress import track
from deepfailguard.types import Bounds, Distances

__all__ = ["CachedDistance"]

_SHORT = 16  # characters of each hash in the folder's name; the shards carry the whole ones
_CHUNK = 256  # for estimators that have no batch_size
_ANYTHING = Bounds(-math.inf, math.inf)


class CachedDistance:
    """An estimator that remembers, on disk, what it computed for one version.

    An entry is found by the version's weights, the estimator's settings and the image's content, so a stale
    one is impossible. Whole chunks of the estimator's `batch_size` are computed, cut from the start of the input
    as the estimator itself cuts them: a live run, a cached one and one that was killed and resumed give the same
    bits. Entries that exist win over computed ones, and equal images share one entry.

    Use it as a context manager, or call `close`: the last new entries wait in memory until then (or until the
    object goes away), see `WriteBuffer`.

    Args:
        estimator: what computes the distances. If it has `batch_size` and `bounds` these are used; without,
            chunks have 256 images and only NaN is refused before the estimator is asked.
        folder: of all caches; this one lies in ``FINGERPRINT-SETTINGS`` below it.
        fingerprint: of the version's weights; a model with other weights is refused.
        flush_every: this many new entries are written at once, whatever the time (>= 1).
        progress: a label under which progress is shown; None shows nothing.

    Example:
        >>> import tempfile
        >>> from deepfailguard.boundary.deepfool import FoolboxDeepFool
        >>> from deepfailguard.identity import weights_fingerprint
        >>> model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.full((1, 1, 2, 2), 0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with CachedDistance(FoolboxDeepFool(), Path(folder), weights_fingerprint(model)) as cached:
        ...         live = cached(model, images)
        ...     bool(cached.lookup(images).size == live.size)
        True
    """

    def __init__(
        self,
        estimator: DistanceEstimator,
        folder: Path,
        fingerprint: str,
        flush_every: int = 4096,
        progress: str | None = None,
    ) -> None:
        if flush_every < 1:
            raise ConfigurationError(f"flush_every must be at least 1, got {flush_every}")
        self.estimator = estimator
        self.folder = folder
        self.fingerprint = fingerprint
        self.flush_every = flush_every
        self.progress = progress
        self._weights = WeightsCheck(fingerprint)
        self._known: dict[bytes, Entry] = {}
        description = describe(estimator)
        settings = digest(description)
        place = Path(folder) / f"{fingerprint[:_SHORT]}-{settings[:_SHORT]}"
        self._shards = ShardFolder(place, f"{fingerprint}-{settings}")
        manifest = {"version": fingerprint, "estimator": description}
        self._buffer = WriteBuffer(self._shards, manifest, flush_every, self.batch_size)
        weakref.finalize(self, self._buffer.rescue)

    @property
    def batch_size(self) -> int:
        """Images per chunk: the estimator's."""
        return int(getattr(self.estimator, "batch_size", _CHUNK))

    @property
    def bounds(self) -> Bounds:
        """The range of input values: the estimator's."""
        bounds: Bounds = getattr(self.estimator, "bounds", _ANYTHING)
        return bounds

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        """Distances of inputs (B, ...), computed where they are not known.

        Raises:
            ConfigurationError: the model's weights are not those of this cache's version.
            DataFormatError: an input is not finite or not in the bounds.
        """
        check_inputs(x, self.bounds)
        self._weights.check(model)
        keys, size = image_hashes(x), self.batch_size
        starts = range(0, len(x), size)
        quiet = self.progress is None or self._count_missing(keys) == 0
        try:
            for start in track(starts, len(starts), self.progress or "", quiet):
                self._complete(model, x[start : start + size], keys[start : start + size])
        finally:
            self._buffer.end_call()
        return self._gather(keys)

    def lookup(self, images: Tensor) -> Distances:
        """Known distances of images (B, ...); never computes.

        Raises:
            CacheMissError: some are not known.
        """
        keys = image_hashes(images)
        missing = self._count_missing(keys)
        if missing:
            raise CacheMissError(
                f"{missing} of {len(keys)} distances of version {self.fingerprint[:_SHORT]} are not cached in "
                f"{self._shards.folder}; run scripts/cache_distances.py with the same distance settings"
            )
        return self._gather(keys)

    def missing(self, images: Tensor) -> int:
        """How many of the images (B, ...) have no known distance."""
        return self._count_missing(image_hashes(images))

    def refresh(self) -> None:
        """Read what other processes wrote in the meantime."""
        merge(self._known, self._shards.read_new())

    def flush(self) -> None:
        """Write the new entries now."""
        self._buffer.flush()

    def compact(self) -> int:
        """Merge all shards into one; returns how many entries it holds. Other processes may go on."""
        self.flush()
        return self._shards.compact()

    def close(self) -> None:
        """Write the new entries; the object can still be used."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count_missing(self, keys: list[bytes]) -> int:
        if any(key not in self._known for key in keys):
            self.refresh()
        return sum(key not in self._known for key in keys)

    def _complete(self, model: nn.Module, images: Tensor, keys: list[bytes]) -> None:
        if self._count_missing(keys) == 0:
            return
        got = self.estimator(model, images)
        rows = zip(keys, got.labels.tolist(), got.size.tolist(), got.found.tolist(), strict=True)
        new: dict[bytes, Entry] = {}
        for key, label, size, found in rows:
            if key not in self._known:
                self._known[key] = new[key] = Entry(label, size, found)
        self._buffer.add(new)

    def _gather(self, keys: list[bytes]) -> Distances:
        entries = [self._known[key] for key in keys]
        return Distances(
            labels=torch.tensor([entry.label for entry in entries], dtype=torch.int64),
            size=torch.tensor([entry.size for entry in entries], dtype=torch.float32),
            found=torch.tensor([entry.found for entry in entries], dtype=torch.bool),
        )
