"""A Ray cluster does the work: Ray Data hands out the units to a pool of actors per version."""

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from types import ModuleType
from typing import Any

import torch

from deepfailguard.boundary.counts import check_count
from deepfailguard.errors import ConfigurationError
from deepfailguard.pipeline.launching.base import Outcome
from deepfailguard.pipeline.launching.processes import cores
from deepfailguard.pipeline.launching.ray_actor import ActorBriefing, Blocks, DistanceActor, Place, Tally, site_of_actor
from deepfailguard.pipeline.launching.ray_cluster import cluster, require_ray
from deepfailguard.pipeline.launching.work import Unit, Work

__all__ = ["RayData"]


@dataclass(frozen=True, slots=True)
class RayData:
    """Actors on a Ray cluster. All its machines must see the pool and the cache under the same paths.

    Attributes:
        workers: how many actors (>= 1); None for one per core of the cluster, or one per GPU.
        address: of a running cluster (``auto`` for the one of this machine); None starts one on this machine.
        retries: how often a unit is tried again after an error or an actor's death (>= 0).

    >>> RayData(workers=2).address is None
    True
    """

    workers: int | None = None
    address: str | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_count("launcher.workers", self.workers, least=1)
        check_count("launcher.retries", self.retries, least=0)
        require_ray()

    def run(self, work: Work) -> Generator[Outcome, None, None]:
        """See `Launcher.run`."""
        with cluster(self.address, max(self.workers or 1, cores())) as ray:
            share = _share(ray, self.workers, work.site.device)
            blocks = Blocks(ray, work)
            given_up: set[int] = set()
            for (job, _), units in groupby(work.units, key=lambda unit: (unit.job, unit.wave)):
                if job in given_up:
                    continue
                with closing(_Wave(blocks, share, list(units), self.retries).run()) as outcomes:
                    for outcome in outcomes:
                        yield outcome
                        if outcome.error is not None:
                            given_up.add(job)
                            break


@dataclass(frozen=True, slots=True)
class _Share:
    """How many actors there are, and what each takes of the cluster."""

    actors: int
    cpus: int
    gpus: float


def _share(ray: ModuleType, workers: int | None, device: torch.device) -> _Share:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    if device.type != "cpu" and gpus == 0:
        raise ConfigurationError(
            f"device={device} was asked for, but no machine of the Ray cluster offers Ray's resource 'GPU'; "
            "use device=cpu, or launcher=inline or processes where this machine has such a device"
        )
    actors = workers or max(1, cpus if device.type == "cpu" else gpus)
    if cpus < actors:
        raise ConfigurationError(
            f"launcher.workers={actors} need a core each, but the Ray cluster has {cpus}; use fewer workers"
        )
    smallest = min(int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1)
    threads = max(1, min(smallest, cpus // actors))
    return _Share(actors, threads, 0.0 if device.type == "cpu" else 1.0 / math.ceil(actors / gpus))


class _Wave:
    """Units of one version that may be computed at the same time."""

    def __init__(self, blocks: Blocks, share: _Share, units: list[Unit], retries: int) -> None:
        self.ray = blocks.ray
        self.work = blocks.work
        self.share = share
        self.retries = retries
        self.left: dict[Place, Unit] = {(unit.part, unit.start): unit for unit in units}
        tally = self.ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()
        stored = {place: blocks.put(unit) for place, unit in self.left.items()}
        job = self.work.jobs[units[0].job]
        self.briefing = ActorBriefing(job, site_of_actor(self.work.site), stored, tally, retries, share.cpus)

    def run(self) -> Generator[Outcome, None, None]:
        """Passes over what is left, each with fresh actors."""
        for _ in range(self.retries + 1):
            with closing(self._stream()) as rows:
                for row in rows:
                    place = row["part"], row["start"]
                    if not row["error"]:
                        yield Outcome(self.left.pop(place))
                    elif row["attempt"] > self.retries:
                        tries = f" (tried {row['attempt']} times)" if self.retries else ""
                        yield Outcome(self.left.pop(place), f"{row['error']}{tries}")
            if not self.left:
                return
        for unit in self.left.values():
            yield Outcome(unit, "Ray lost it; its logs lie in the session folder, /tmp/ray if nobody moved it")

    def _stream(self) -> Generator[dict[str, Any], None, None]:
        """What became of each unit, as soon as it is known."""
        data = self.ray.data
        context = data.DataContext.get_current().copy()
        context.enable_progress_bars = False  # there is one for the whole work
        context.print_on_execution_start = False
        context.max_errored_blocks = -1  # an error of Ray's own must not end the other units
        rows = [{"part": part, "start": start} for part, start in self.left]
        with data.DataContext.current(context):
            results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                DistanceActor,
                fn_constructor_args=(self.briefing,),
                batch_size=1,
                batch_format="pyarrow",
                compute=data.ActorPoolStrategy(size=min(self.share.actors, len(rows)), max_tasks_in_flight_per_actor=1),
                num_cpus=self.share.cpus,
                num_gpus=self.share.gpus,
            )
            for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from batch.to_pylist()
