"""Putting a fault into one version of a runtime that answers, and taking it away."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from benchmarks.mishaps.flipping import flip_random_bits, tensors_of
from benchmarks.mishaps.loading import Request
from benchmarks.mishaps.patients import Patient, live_model
from benchmarks.mishaps.spoiling import Spoil, marker_of, spoil
from benchmarks.mishaps.switches import Mode, keys_of
from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.folders import weights_file

__all__ = ["Flip", "FlipInside", "Injection", "Kill", "Overwrite", "SpoilFile", "Stop", "Turn"]

_SECONDS_TO_BEGIN: Final = 30.0
_LINGER: Final = 5.0
_NOT_STARTED: Final = "starting it failed"


class Injection(Protocol):
    """A way to break a version."""

    def inject(self, patient: Patient) -> None:
        """Break it now."""
        ...

    def noticed(self, patient: Patient, request: Request) -> bool:
        """Whether a request that ended shows that the runtime noticed."""
        ...


class _Plain:
    """Noticed as soon as answers of the version do not count, or the runtime has told of a fault."""

    def noticed(self, patient: Patient, request: Request) -> bool:
        """Whether that came about before a request, or in it."""
        return patient.is_out(request) or patient.was_caught(request)


@dataclass(frozen=True, slots=True)
class Turn(_Plain):
    """The version does what its switch says until it is healed.

    Attributes:
        mode: of the switch.
        seconds: how long it takes, where it is slow.
        one: whether one image is the target, which each request holds meanwhile.
        canary: whether the canary inputs are the targets.
    """

    mode: Mode
    seconds: float = 0.0
    one: bool = False
    canary: bool = False

    def inject(self, patient: Patient) -> None:
        """Turn the switch."""
        targets: list[float] = []
        if self.one:
            row = patient.draw.randrange(len(patient.load.images))
            patient.after.enter_context(patient.load.insisting(row))
            targets = keys_of(patient.load.images[row : row + 1]).tolist()
        if self.canary:
            targets = keys_of(patient.runtime._core.roster.canary).tolist()
        patient.switch.turn(self.mode, self.seconds, targets)


@dataclass(frozen=True, slots=True)
class Flip(_Plain):
    """Random bits of random numbers of a random tensor of the live weights.

    Attributes:
        bits: how many.
    """

    bits: int

    def inject(self, patient: Patient) -> None:
        """Flip them."""
        restore = flip_random_bits(live_model(patient.runtime, patient.column), self.bits, patient.draw)
        patient.otherwise.callback(restore)


@dataclass(frozen=True, slots=True)
class FlipInside(_Plain):
    """A random bit of the live weights in the version's process."""

    def inject(self, patient: Patient) -> None:
        """Let the version flip it in its next forward pass."""
        met, pid = patient.switch.met, patient.pid
        patient.switch.turn("corrupt", targets=[patient.draw.random()])
        _wait(lambda: patient.switch.met > met, f"{patient.name} was not asked")
        patient.otherwise.callback(lambda: _kill(pid))


@dataclass(frozen=True, slots=True)
class Overwrite(_Plain):
    """All weights become numbers of another version."""

    def inject(self, patient: Patient) -> None:
        """Write them over."""
        versions = len(patient.runtime.card.names)
        other = live_model(patient.runtime, (patient.column + 1) % versions)
        numbers = torch.cat([each.detach().flatten() for each in tensors_of(other)])
        for tensor in tensors_of(live_model(patient.runtime, patient.column)):
            patient.otherwise.callback(tensor.detach().copy_, tensor.detach().clone())
            places = torch.arange(tensor.numel()) + patient.draw.randrange(len(numbers))
            tensor.detach().view(-1).copy_(numbers[places % len(numbers)])


@dataclass(frozen=True, slots=True)
class Kill(_Plain):
    """The version's process is killed.

    Attributes:
        answering: whether in the midst of an answer; at any time if not.
    """

    answering: bool

    def inject(self, patient: Patient) -> None:
        """Kill it."""
        if self.answering:
            met = patient.switch.met
            patient.switch.turn("linger", _LINGER)
            _wait(lambda: patient.switch.met > met, f"{patient.name} was not asked")
        os.kill(patient.pid, signal.SIGKILL)
        patient.switch.turn("sound")


@dataclass(frozen=True, slots=True)
class Stop(_Plain):
    """The version's process is stopped, as by a debugger: it hangs wherever it is."""

    def inject(self, patient: Patient) -> None:
        """Stop it."""
        os.kill(patient.pid, signal.SIGSTOP)


@dataclass(frozen=True, slots=True)
class SpoilFile:
    """The file that the version would be repaired from is spoilt, and the version has to be started anew.

    Attributes:
        way: of spoiling.
    """

    way: Spoil

    def inject(self, patient: Patient) -> None:
        """Spoil the file; then let the version fail such that it has to be loaded again."""
        path = patient.folder / weights_file(patient.column, patient.name)
        kept = path.with_name(f".{path.name}.kept")
        shutil.copy2(path, kept)
        patient.after.callback(lambda: kept.replace(path))
        spoil(path, self.way, patient.draw)
        number = patient.load.count
        patient.switch.turn("wrong classes")
        if patient.load.wait(number, patient.is_out, _SECONDS_TO_BEGIN) is None:
            raise ConfigurationError(f"{patient.name} answers for a class too few, and nobody minds")
        patient.switch.turn("sound")

    def noticed(self, patient: Patient, request: Request) -> bool:
        """Whether the runtime refused to load it, and nobody ran what is in it."""
        path = patient.folder / weights_file(patient.column, patient.name)
        if marker_of(path).exists():
            return False
        return patient.is_out(request) and _NOT_STARTED in patient.runtime.status().versions[patient.column].reason


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + _SECONDS_TO_BEGIN
    while not condition():
        if time.monotonic() > until:
            raise ConfigurationError(f"{otherwise} within {_SECONDS_TO_BEGIN:g} s")
        time.sleep(0.001)
