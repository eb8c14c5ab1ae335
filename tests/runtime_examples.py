"""Versions that misbehave while they run, whenever they are told to, in whatever process they are."""

import ctypes
import mmap
import os
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepfailguard.types import Bounds
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, template_model

MODES = (
    "sound",
    "hang",  # until it is switched to something else
    "sleep",  # for a while, then it answers
    "raise",
    "leave",  # as if the program was to end
    "exit",  # without any clean-up
    "segfault",
    "close files",  # and with them the line to whoever asks
    "nan",
    "wrong shape",
    "wrong classes",
    "wrong dtype",
    "no tensor",
    "stuck",  # the same logits for all inputs
    "corrupt",  # its weights, once; then it answers
    "allocate",  # memory that is not given back, with each answer
    "breed",  # a process that has all its files, and goes on
)
SECONDS = 120.0  # for anything that a test waits for: only what hangs takes so long
EXIT_CODE = 3
ALLOCATED = 32 << 20  # bytes
_MODE, _MET, _SECONDS, _CHILD, _SIZE = 0, 8, 16, 24, 64  # places in the file


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"not {what} within {SECONDS} s"
        time.sleep(0.005)


class Switch:
    """What a version does, in a small file that all processes share: who copies or sends it gets the same switch.

    Args:
        path: of the file, which is made if it is not there. A new switch stands at "sound".
    """

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            self._memory = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)

    def __reduce__(self) -> tuple[type["Switch"], tuple[str]]:
        return Switch, (self.path,)

    @property
    def mode(self) -> str:
        return MODES[self._memory[_MODE]]

    def set(self, mode: str, seconds: float = 0.0) -> None:
        """Change what happens from now on; what hangs goes on. `seconds` is for how long it sleeps."""
        struct.pack_into("=d", self._memory, _SECONDS, seconds)
        self._memory[_MODE] = MODES.index(mode)

    @property
    def seconds(self) -> float:
        return float(struct.unpack_from("=d", self._memory, _SECONDS)[0])

    @property
    def met(self) -> int:
        """How many forward passes began since the switch was made."""
        return int(struct.unpack_from("=Q", self._memory, _MET)[0])

    @property
    def child(self) -> int:
        """Number of the process that was bred last; 0 for none."""
        return int(struct.unpack_from("=Q", self._memory, _CHILD)[0])

    def note_child(self, pid: int) -> None:
        struct.pack_into("=Q", self._memory, _CHILD, pid)

    def meet(self) -> str:
        """The mode, by the version that acts on it."""
        struct.pack_into("=Q", self._memory, _MET, self.met + 1)
        return self.mode

    def wait_met(self, count: int) -> None:
        """Wait until so many forward passes began."""
        until(lambda: self.met >= count, f"met {count} times")


class Switched(nn.Module):
    """A model that does what its switch says."""

    def __init__(self, inner: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.inner = inner
        self.switch = switch
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        return _DEEDS[self.switch.meet()](self, x)

    def hang(self, x: Tensor) -> Any:
        while self.switch.mode == "hang":
            time.sleep(0.002)
        return self.inner(x)

    def sleep(self, x: Tensor) -> Any:
        time.sleep(self.switch.seconds)
        return self.inner(x)

    def fail(self, x: Tensor) -> Any:
        raise RuntimeError("it broke down")

    def leave(self, x: Tensor) -> Any:
        sys.exit(EXIT_CODE)

    def exit(self, x: Tensor) -> Any:
        os._exit(EXIT_CODE)

    def segfault(self, x: Tensor) -> Any:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return ctypes.string_at(0)

    def close_files(self, x: Tensor) -> Any:
        os.closerange(3, 256)
        time.sleep(600)

    def corrupt(self, x: Tensor) -> Any:
        with torch.no_grad():
            next(self.inner.parameters()).view(-1)[0] += 1.0
        self.switch.set("sound")
        return self.inner(x)

    def allocate(self, x: Tensor) -> Any:
        self.kept.append(torch.ones(ALLOCATED // 4))
        return self.inner(x)

    def breed(self, x: Tensor) -> Any:
        pid = os.fork()
        while pid == 0:
            time.sleep(1)
        self.switch.note_child(pid)
        return self.inner(x)


_DEEDS: dict[str, Callable[[Switched, Tensor], Any]] = {
    "sound": lambda model, x: model.inner(x),
    "hang": Switched.hang,
    "sleep": Switched.sleep,
    "raise": Switched.fail,
    "leave": Switched.leave,
    "exit": Switched.exit,
    "segfault": Switched.segfault,
    "close files": Switched.close_files,
    "nan": lambda model, x: model.inner(x) * torch.nan,
    "wrong shape": lambda model, x: model.inner(x).flatten(),
    "wrong classes": lambda model, x: model.inner(x)[:, :-1],
    "wrong dtype": lambda model, x: model.inner(x).long(),
    "no tensor": lambda model, x: "a cat",
    "stuck": lambda model, x: model.inner(torch.zeros_like(x)) + torch.arange(CLASSES),
    "corrupt": Switched.corrupt,
    "allocate": Switched.allocate,
    "breed": Switched.breed,
}


@dataclass(frozen=True)
class SwitchedNet:
    """The architecture of a switched classifier of `bars`; a guard's folder can name it."""

    path: str
    seed: int = 0

    def build(self, classes: int) -> nn.Module:
        return Switched(template_model(self.seed, noise=0.1), Switch(self.path))


def switched(path: Path | str, seed: int = 0) -> tuple[Version, Switch]:
    """A version that classifies `bars`, and its switch."""
    model = SwitchedNet(str(path), seed).build(CLASSES).eval()
    return Version.of(model, f"version {seed}", CLASSES, Bounds()), Switch(path)


@dataclass(frozen=True)
class Kept:
    """A source that gives a switched version, or fails, as it is told; it counts how often it is asked."""

    path: str
    seed: int = 0

    @property
    def loading(self) -> Switch:
        """The switch of the loading itself: sound, hang, raise, exit or leave."""
        return Switch(f"{self.path}.loading")

    def load(self) -> Version:
        loading = self.loading
        mode = loading.meet()
        while loading.mode == "hang":
            time.sleep(0.002)
        if mode == "raise":
            raise OSError("the disk is gone")
        if mode == "exit":
            os._exit(EXIT_CODE)
        if mode == "leave":
            sys.exit(EXIT_CODE)
        return switched(self.path, self.seed)[0]
