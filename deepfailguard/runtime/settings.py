"""What a runtime is allowed, and what it demands."""

import math
from dataclasses import dataclass

from deepfailguard.errors import ConfigurationError

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a runtime is allowed, and what it demands. Times are in seconds.

    Attributes:
        deadline: for a batch, unless a call brings its own; versions that answer later are left out.
        least_versions: with fewer answers to a batch the guard abstains, >= 1.
        fallback: label that is given where no version answered at all, with failure probability 1; None to abstain.
        first_probe: from a fault to the first probe of the version.
        longest_probe: between probes at most; the time doubles with each that fails.
        start_seconds: that loading a version may take.
        upkeep_share: of the time that is spent on comparing weights, in [0, 1].
        canary_every: between canary inputs for a version that serves; 0 for never.
        memory_growth: bytes by which a process of a version may grow before it is started anew; 0 for any.
        pardons: how many times in its last 100 batches a version may fail on inputs while it passes the canary.
        watch: whether versions are watched without labels, where the guard can be; see `WatchedGuard`.
        standby: names of versions that start as shadows: ready to take the place of one that serves.
    """

    deadline: float = 2.0
    least_versions: int = 1
    fallback: int | None = None
    first_probe: float = 0.1
    longest_probe: float = 60.0
    start_seconds: float = 120.0
    upkeep_share: float = 0.01
    canary_every: float = 10.0
    memory_growth: int = 1 << 30
    pardons: int = 5
    watch: bool = True
    standby: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("deadline", "first_probe", "longest_probe", "start_seconds"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigurationError(f"{name} must be a positive number of seconds, got {value}")
        if self.longest_probe < self.first_probe:
            raise ConfigurationError(
                f"longest_probe {self.longest_probe} is shorter than first_probe {self.first_probe}"
            )
        if not 0 <= self.upkeep_share <= 1:
            raise ConfigurationError(f"upkeep_share must be in [0, 1], got {self.upkeep_share}; 0.01 is usual")
        if self.least_versions < 1:
            raise ConfigurationError(f"least_versions must be >= 1, got {self.least_versions}")
        for name in ("canary_every", "memory_growth", "pardons"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must be >= 0, got {getattr(self, name)}")
