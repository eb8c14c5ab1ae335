"""A worker process: takes units from a connection until it is closed."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType

import torch

from deepfailguard.pipeline.launching.image_files import ImageFile
from deepfailguard.pipeline.launching.runner import UnitRunner, explain
from deepfailguard.pipeline.launching.work import Job, Site, Unit

__all__ = ["Briefing", "serve"]


@dataclass(frozen=True, slots=True)
class Briefing:
    """What a worker must know before it takes its first unit.

    Attributes:
        jobs: the versions; their models are not among it, a worker loads them from the pool.
        images: files of each part.
        site: where versions and cache are, and the worker's own device.
        threads: of torch (>= 1).
    """

    jobs: tuple[Job, ...]
    images: Mapping[str, ImageFile]
    site: Site
    threads: int


def serve(connection: Connection, briefing: Briefing) -> None:
    """Answer each unit with None, or with an error and the end: a fresh process may fare better."""
    brake = _Brake()
    signal.signal(signal.SIGTERM, brake.pull)
    torch.set_num_threads(briefing.threads)
    runner = UnitRunner(briefing.site)
    try:
        while not brake.pulled:
            unit: Unit = connection.recv()
            with brake.armed():
                error = _attempt(runner, briefing, unit)
            connection.send(error)
            if error is not None:
                return
    except (EOFError, OSError, KeyboardInterrupt):
        return  # the launcher is done, gone, or wants an end


def _attempt(runner: UnitRunner, briefing: Briefing, unit: Unit) -> str | None:
    try:
        runner.run(briefing.jobs[unit.job], briefing.images[unit.part].read(unit.start, unit.stop))
    except Exception as error:
        return explain(error)
    return None


class _Brake:
    """Turns the first signal into an interrupt of the unit, if there is one: what it has finished is written."""

    def __init__(self) -> None:
        self.pulled = False
        self._armed = False

    def pull(self, _: int, __: FrameType | None) -> None:
        self.pulled = True
        if self._armed:
            self._armed = False  # a second signal must not stop the first from writing
            raise KeyboardInterrupt

    @contextmanager
    def armed(self) -> Iterator[None]:
        self._armed = True
        try:
            if self.pulled:
                raise KeyboardInterrupt
            yield
        finally:
            self._armed = False
