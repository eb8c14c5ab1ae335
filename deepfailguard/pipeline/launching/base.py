"""The protocol of everything that gets units of work done."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from deepfailguard.pipeline.launching.work import Unit, Work

__all__ = ["Launcher", "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a unit.

    Attributes:
        unit: of the work.
        error: why it was given up; None if its distances are on disk.
        cause: the error itself, where it happened in this process and nobody raised it on purpose.
    """

    unit: Unit
    error: str | None = None
    cause: Exception | None = None


class Launcher(Protocol):
    """Gets units done, in this process or elsewhere.

    The distances go to the cache, never back to the caller, and are bit for bit those of one process.
    """

    def run(self, work: Work) -> Generator[Outcome, None, None]:
        """Yield the outcome of each unit when it is known.

        After a unit was given up, the remaining ones of its version may be left out; those of other versions
        are done. Closing the iterator ends every worker; chunks that were finished are kept.
        """
        ...
