"""What runs inside a Ray cluster, and the images that it is fed with."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from deepfailguard.pipeline.launching.runner import UnitRunner, explain
from deepfailguard.pipeline.launching.work import Job, Site, Unit, Work

__all__ = ["ActorBriefing", "Block", "Blocks", "DistanceActor", "Place", "Tally", "site_of_actor"]

Place = tuple[str, int]  # part and start: names a unit among those of one version


@dataclass(frozen=True, slots=True)
class Block:
    """Images as Ray's object store keeps them best: one array of bytes that all actors of a machine share.

    Attributes:
        raw: (bytes,) uint8.
        shape: (B, C, H, W).
        dtype: of the images.
    """

    raw: "np.ndarray[Any, np.dtype[np.uint8]]"
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, images: Tensor) -> "Block":
        """A block of images (B, C, H, W) of any device and dtype.

        >>> Block.of(torch.eye(2)).images()
        tensor([[1., 0.],
                [0., 1.]])
        """
        plain = images.detach().cpu().contiguous()
        return cls(plain.flatten().view(torch.uint8).numpy(), tuple(plain.shape), plain.dtype)

    def images(self) -> Tensor:
        """A copy of the images: the store's memory is read-only, and a model may work in place."""
        return torch.from_numpy(self.raw.copy()).view(self.dtype).view(self.shape)


class Blocks:
    """Images in Ray's object store, laid down once for all versions.

    Args:
        ray: the module, connected.
        work: what there is to compute.
    """

    def __init__(self, ray: ModuleType, work: Work) -> None:
        self.ray = ray
        self.work = work
        self._stored: dict[Place, Any] = {}

    def put(self, unit: Unit) -> Any:
        """Reference to the block of a unit's images."""
        place = unit.part, unit.start
        if place not in self._stored:
            self._stored[place] = self.ray.put(Block.of(self.work.images_of(unit)))
        return self._stored[place]


class Tally:
    """Counts, in an actor of its own, how often each unit was begun: an actor that died cannot tell.

    >>> tally = Tally()
    >>> tally.begin("test", 0), tally.begin("test", 0), tally.begin("test", 8)
    (1, 2, 1)
    """

    def __init__(self) -> None:
        self._begun: Counter[Place] = Counter()

    def begin(self, part: str, start: int) -> int:
        """The number of this attempt, from 1."""
        self._begun[part, start] += 1
        return self._begun[part, start]


@dataclass(frozen=True, slots=True)
class ActorBriefing:
    """What an actor must know.

    Attributes:
        job: the version; its model is not among it, the actor loads it from the pool.
        site: where versions and cache are.
        blocks: references to the images of each unit.
        tally: handle of the `Tally`.
        retries: how often a unit is tried again (>= 0).
        threads: of torch (>= 1).
    """

    job: Job
    site: Site
    blocks: Mapping[Place, Any]
    tally: Any
    retries: int
    threads: int


def site_of_actor(site: Site) -> Site:
    """The site as an actor sees it: Ray shows it only its own GPU, which is number 0 there whatever it is here."""
    return replace(site, device=torch.device(site.device.type))


class DistanceActor:
    """Computes units of one version, which stays loaded as long as the actor lives.

    Ray gives a unit whose actor died to another one, without end; the tally ends it.

    Args:
        briefing: what it must know.
    """

    def __init__(self, briefing: ActorBriefing) -> None:
        torch.set_num_threads(briefing.threads)
        self.briefing = briefing
        self._runner = UnitRunner(briefing.site)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Compute the distances of units into the cache.

        Args:
            rows: part and start of each.

        Returns:
            For each, its part and start, how often it was begun, and what went wrong ("" for nothing).
        """
        return pa.Table.from_pylist([self._attempt(row["part"], row["start"]) for row in rows.to_pylist()])

    def _attempt(self, part: str, start: int) -> dict[str, Any]:
        import ray

        attempt: int = ray.get(self.briefing.tally.begin.remote(part, start))
        error = ""
        if attempt > self.briefing.retries + 1:
            attempt, error = attempt - 1, "each actor that took it died (out of memory, perhaps)"
        else:
            try:
                self._runner.run(self.briefing.job, ray.get(self.briefing.blocks[part, start]).images())
            except Exception as problem:
                error = explain(problem)
        return {"part": part, "start": start, "attempt": attempt, "error": error}
