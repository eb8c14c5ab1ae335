"""Where versions may run."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.errors import ConfigurationError
from deepfailguard.runtime.base import Runner, Source
from deepfailguard.runtime.runners.in_process import InProcessRunner
from deepfailguard.runtime.runners.lane import Lane
from deepfailguard.runtime.runners.worker_process import ProcessRunner

__all__ = ["Housing", "InProcessHousing", "Isolation", "housing_for"]

Isolation = Literal["in process", "processes"]
"""In this process: fast; a version that hangs or raises is left out, one that crashes takes the program with it.
In processes: each version in one of its own, which may crash, run out of memory, or be killed where it hangs."""

Housing = Callable[[str, Source, DistanceEstimator | None, Path | None], Runner]
"""Makes the runner of a version from its name, its source, what tells distances, and where these are cached."""


def housing_for(isolation: Isolation | Housing) -> Housing:
    """What makes runners.

    Raises:
        ConfigurationError: there is no such isolation.
    """
    if callable(isolation):
        return isolation
    if isolation == "in process":
        return InProcessHousing()
    if isolation == "processes":
        return lambda name, source, distance, cache: ProcessRunner(name, source, distance, cache)
    raise ConfigurationError(f"versions run 'in process' or in 'processes', got isolation={isolation!r}")


class InProcessHousing:
    """Makes runners that share a lane; `close` ends it when none of them is needed any more."""

    def __init__(self) -> None:
        self._lane = Lane()

    def __call__(
        self, name: str, source: Source, distance: DistanceEstimator | None, cache: Path | None
    ) -> InProcessRunner:
        """The runner of a version."""
        return InProcessRunner(name, source, distance, cache, self._lane)

    def close(self) -> None:
        """End the lane's thread."""
        self._lane.close()
