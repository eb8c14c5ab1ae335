"""This process does all the work."""

from collections.abc import Generator
from dataclasses import dataclass

from deepfailguard.errors import DeepfailguardError
from deepfailguard.pipeline.launching.base import Outcome
from deepfailguard.pipeline.launching.runner import UnitRunner, explain
from deepfailguard.pipeline.launching.work import Work

__all__ = ["Inline"]


@dataclass(frozen=True, slots=True)
class Inline:
    """One unit after the other in this process; no retries.

    >>> Inline()
    Inline()
    """

    def run(self, work: Work) -> Generator[Outcome, None, None]:
        """See `Launcher.run`."""
        runner = UnitRunner(work.site)
        given_up: set[int] = set()
        for unit in work.units:
            if unit.job in given_up:
                continue
            try:
                runner.run(work.jobs[unit.job], work.images_of(unit))
            except Exception as error:
                given_up.add(unit.job)
                yield Outcome(unit, explain(error), None if isinstance(error, DeepfailguardError) else error)
            else:
                yield Outcome(unit)
