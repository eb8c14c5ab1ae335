"""What every worker does with a unit, wherever it runs."""

import traceback
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.errors import DeepfailguardError
from deepfailguard.pipeline.launching.work import Job, Site
from deepfailguard.versions.version import Version

__all__ = ["UnitRunner", "explain"]


@dataclass(frozen=True, slots=True)
class _Loaded:
    job: Job
    version: Version
    cached: CachedDistance


class UnitRunner:
    """Computes units of one version after the other; the version that it used last stays loaded.

    Args:
        site: where versions and cache are.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._loaded: _Loaded | None = None

    def run(self, job: Job, images: Tensor) -> None:
        """Compute what the cache lacks of the images (B, C, H, W) of one unit and write it.

        What was finished is written even if an error or an interrupt ends the rest.
        """
        loaded = self._load(job)
        try:
            loaded.cached(loaded.version.model, images)
        finally:
            loaded.cached.flush()

    def _load(self, job: Job) -> _Loaded:
        if self._loaded is None or self._loaded.job is not job:
            self._loaded = None  # two versions at once may not fit on a GPU
            version = self.site.pool.load(job.card, self.site.device)
            cached = CachedDistance(job.estimator, self.site.cache, job.card.fingerprint)
            self._loaded = _Loaded(job, version, cached)
        return self._loaded


def explain(error: Exception) -> str:
    """An error in one line; with its place in the code if nobody raised it on purpose.

    >>> explain(DeepfailguardError("no such version"))
    'DeepfailguardError: no such version'
    """
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, DeepfailguardError) or not frames:
        return text
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
