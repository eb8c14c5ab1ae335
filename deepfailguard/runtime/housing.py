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

__all__ = ["Housing", "Isolation", "housing_for"]

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
        lane = Lane()
        return lambda name, source, distance, cache: InProcessRunner(name, source, distance, cache, lane)
    if isolation == "processes":
        return lambda name, source, distance, cache: ProcessRunner(name, source, distance, cache)
    raise ConfigurationError(f"versions run 'in process' or in 'processes', got isolation={isolation!r}")
