"""A version of a runtime that is to be broken, and what can be seen of it from outside."""

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from benchmarks.mishaps.loading import Load, Request
from benchmarks.mishaps.switches import Switch
from deepfailguard.errors import ConfigurationError
from deepfailguard.runtime.runners.in_process import InProcessRunner
from deepfailguard.runtime.runners.loaded import LoadedVersion
from deepfailguard.runtime.runners.worker_process import ProcessRunner
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.runtime.tally import VersionTally

__all__ = ["Patient", "is_out", "live_model", "live_rounds"]


@dataclass(slots=True)
class Patient:
    """One version that gets a fault.

    Attributes:
        runtime: that it belongs to.
        load: on the runtime.
        column: its position.
        switch: its own.
        folder: of the guard that the runtime loads versions from.
        draw: makes the choices of this trial.
        after: what is done when the fault is taken away.
        otherwise: what is done besides where it was not noticed: the runtime has nothing to repair then.
        faults: how many the runtime had counted of it before.
    """

    runtime: GuardRuntime
    load: Load
    column: int
    switch: Switch
    folder: Path
    draw: random.Random
    after: ExitStack = field(default_factory=ExitStack)
    otherwise: ExitStack = field(default_factory=ExitStack)
    faults: int = field(init=False)

    def __post_init__(self) -> None:
        self.faults = self._tally.faults.total()

    @property
    def name(self) -> str:
        """The version's."""
        return self.runtime.card.names[self.column]

    @property
    def pid(self) -> int:
        """Of its process."""
        runner = self.runtime._core.roster.members[self.column].runner
        pid = runner.pid if isinstance(runner, ProcessRunner) else None
        if pid is None:
            raise ConfigurationError(f"version {self.name!r} runs in no process of its own")
        return pid

    @property
    def _tally(self) -> VersionTally:
        return self.runtime._core.roster.members[self.column].tally

    @property
    def last_fault(self) -> str:
        """What the runtime called the last one."""
        return str(self._tally.fault)

    def is_out(self, request: Request) -> bool:
        """Whether its answers, or some of them, do not count in a request."""
        return is_out(request, self.column)

    def was_caught(self, request: Request) -> bool:
        """Whether the runtime had counted a new fault of it before a request was made.

        A version may be repaired between two requests, so that none of them lacks it.
        """
        last, ago = self._tally.last_fault, time.monotonic() - request.start
        return self._tally.faults.total() > self.faults and last is not None and last < time.time() - ago

    def heal(self, noticed: bool) -> None:
        """Take away what keeps the fault alive, and the fault itself where nobody noticed it."""
        self.switch.turn("sound")
        self.after.close()
        if not noticed:
            self.otherwise.close()


def is_out(request: Request, column: int) -> bool:
    """Whether answers of a version do not count in a request, or some of them; no if no version had its turn."""
    if request.verdict is None:
        return False
    health = request.verdict.health
    if all(each.state == "serving" and each.asked == 0 for each in health):
        return False
    return health[column].state != "serving" or health[column].fault is not None


def live_model(runtime: GuardRuntime, column: int) -> nn.Module:
    """The model of a version that runs in this process, as it is right now."""
    return _loaded(runtime, column).version.model


def live_rounds(runtime: GuardRuntime, column: int) -> int:
    """How often all weights of a version that runs in this process were compared."""
    return _loaded(runtime, column).rotation.rounds


def _loaded(runtime: GuardRuntime, column: int) -> LoadedVersion:
    runner = runtime._core.roster.members[column].runner
    if not isinstance(runner, InProcessRunner) or runner._loaded is None:
        raise ConfigurationError(f"version {runner.name!r} does not run in this process")
    return runner._loaded
