"""Several processes of this machine do the work."""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from deepfailguard.boundary.counts import check_count
from deepfailguard.pipeline.launching.base import Outcome
from deepfailguard.pipeline.launching.crew import Crew
from deepfailguard.pipeline.launching.image_files import ImageFile, image_files
from deepfailguard.pipeline.launching.schedule import Schedule
from deepfailguard.pipeline.launching.serving_process import Briefing
from deepfailguard.pipeline.launching.work import Work

__all__ = ["Processes", "cores", "device_of_worker", "threads_of_worker"]


@dataclass(frozen=True, slots=True)
class Processes:
    """Worker processes that share the images and divide the cores or GPUs among them.

    Attributes:
        workers: how many (>= 1); None for one per core, or one per GPU where the versions run on GPUs
            (one if the device names its GPU, as ``cuda:1`` does).
        retries: how often a unit is tried again after an error or a worker's death (>= 0).

    >>> Processes(workers=2).retries
    2
    """

    workers: int | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_count("launcher.workers", self.workers, least=1)
        check_count("launcher.retries", self.retries, least=0)

    def run(self, work: Work) -> Generator[Outcome, None, None]:
        """See `Launcher.run`."""
        schedule = Schedule(work.units, self.retries)
        with image_files(work.images, (unit.part for unit in work.units)) as files:
            size = min(self.workers or _places(work.site.device), len(work.units))
            with closing(Crew(size, _briefings(work, files, size))) as crew:
                while not schedule.over:
                    crew.hand_out(schedule)
                    for report in crew.wait():
                        outcome = schedule.settle(report.unit, report.error)
                        if outcome is not None:
                            yield outcome


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_worker(workers: int) -> int:
    """Threads for each of so many workers: together no more than cores, since threads that compete crawl."""
    return max(1, min(cores() // workers, torch.get_num_threads()))


def device_of_worker(device: torch.device, place: int) -> torch.device:
    """The worker's own GPU; the device itself if it is the CPU, or the one GPU that was asked for.

    >>> device_of_worker(torch.device("cuda:1"), 4)
    device(type='cuda', index=1)
    """
    if device.type == "cpu" or device.index is not None:
        return device
    return torch.device(device.type, place % max(1, torch.accelerator.device_count()))


def _places(device: torch.device) -> int:
    if device.type == "cpu":
        return cores()
    named = device_of_worker(device, 0) == device  # all workers would crowd that one GPU
    return 1 if named else max(1, torch.accelerator.device_count())


def _briefings(work: Work, files: dict[str, ImageFile], size: int) -> Callable[[int], Briefing]:
    def brief(place: int) -> Briefing:
        site = replace(work.site, device=device_of_worker(work.site.device, place))
        return Briefing(work.jobs, files, site, threads_of_worker(size))

    return brief
