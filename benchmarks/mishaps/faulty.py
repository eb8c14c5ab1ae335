"""A model that misbehaves while it runs, as its switch says."""

import ctypes
import faulthandler
import gc
import os
import random
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.mishaps.flipping import flip_random_bits
from benchmarks.mishaps.switches import Mode, Switch, keys_of

__all__ = ["EXIT_CODE", "Faulty"]

EXIT_CODE: Final = 3
_FOR_EVER: Final = 3600  # seconds
_ALLOCATED: Final = 48 << 20  # bytes with each forward pass
_MOST_PARTS: Final = 6
_POLL: Final = 0.001
_SCALE: Final = 3.0


class Faulty(nn.Module):
    """A sound model, and a switch that makes it do something else.

    Args:
        inner: from images (B, C, H, W) to logits (B, K).
        switch: says what it does.
    """

    def __init__(self, inner: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.inner = inner
        self.switch = switch
        self.last: Tensor | None = None
        self.first: Tensor | None = None
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        """Logits (B, K), or whatever the switch says."""
        mode = self.switch.meet()
        if mode == "sound":
            self.last, self.first = self.inner(x), None
            return self.last
        return _DEEDS[mode](self, x)

    def _hit(self, x: Tensor) -> Tensor:
        """(B,) bool, which inputs are targets."""
        keys, targets = keys_of(x), torch.tensor(self.switch.targets, dtype=torch.float64)
        return torch.isclose(keys[:, None], targets, rtol=1e-9).any(1).to(x.device)

    def _raise(self, _: Tensor) -> Any:
        raise RuntimeError("it broke down")

    def _raise_on_one(self, x: Tensor) -> Any:
        if self._hit(x).any():
            raise RuntimeError("it cannot bear one of the inputs")
        return self.inner(x)

    def _wait(self, x: Tensor, mode: Mode, seconds: float) -> Any:
        """Take so long; ends at once when the switch is turned."""
        until = time.monotonic() + seconds
        while self.switch.mode == mode and time.monotonic() < until:
            time.sleep(_POLL)
        return self.inner(x)

    def _nan_in_one(self, x: Tensor) -> Any:
        return self.inner(x).masked_fill(self._hit(x)[:, None], torch.nan)

    def _constant(self, x: Tensor) -> Any:
        """The logits of the first input since the switch was turned, for all inputs."""
        logits = self.inner(x)
        if self.first is None:
            self.first = logits[:1].clone()
        return self.first.expand(len(x), -1).clone()

    def _stale(self, x: Tensor) -> Any:
        """The logits of the last sound batch, over and over where this batch is larger."""
        last = self.inner(x) if self.last is None else self.last
        return last[torch.arange(len(x)) % len(last)].clone()

    def _imitating(self, x: Tensor) -> Any:
        """Another class order, but for the targets."""
        logits = self.inner(x)
        return torch.where(self._hit(x)[:, None], logits, logits.roll(1, 1))

    def _segfault(self, _: Tensor) -> Any:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()  # three hundred tracebacks tell nothing
        return ctypes.string_at(0)

    def _allocate(self, x: Tensor) -> Any:
        if len(self.kept) < _MOST_PARTS:
            self.kept.append(torch.ones(_ALLOCATED // 4))
        return self.inner(x)

    def _garble(self, x: Tensor) -> Any:
        """Rubbish on the line to whoever asks, framed as a message or not."""
        for line in [each for each in gc.get_objects() if type(each) is Connection]:
            if len(x) % 2:
                line.send_bytes(os.urandom(64))
            else:
                os.write(line.fileno(), os.urandom(64))
        return self.inner(x)

    def _corrupt(self, x: Tensor) -> Any:
        """Flip a bit of the weights, once; the target says which."""
        seed = self.switch.targets[0]
        self.switch.turn("sound")
        flip_random_bits(self.inner, 1, random.Random(seed))
        return self.inner(x)


_DEEDS: Final[dict[Mode, Callable[[Faulty, Tensor], Any]]] = {
    "raise": Faulty._raise,
    "raise on one": Faulty._raise_on_one,
    "hang": lambda model, x: model._wait(x, "hang", _FOR_EVER),
    "slow": lambda model, x: model._wait(x, "slow", model.switch.seconds),
    "nan": lambda model, x: model.inner(x) * torch.nan,
    "nan in one": Faulty._nan_in_one,
    "inf": lambda model, x: model.inner(x) + torch.inf,
    "no batch dimension": lambda model, x: model.inner(x)[0],
    "extra row": lambda model, x: model.inner(torch.cat([x, x[:1]])),
    "wrong classes": lambda model, x: model.inner(x)[:, :-1],
    "integers": lambda model, x: model.inner(x).long(),
    "no tensor": lambda model, x: model.inner(x).tolist(),
    "constant": Faulty._constant,
    "stale": Faulty._stale,
    "scaled": lambda model, x: model.inner(x) * _SCALE,
    "permuted": lambda model, x: model.inner(x).roll(1, 1),
    "imitating": Faulty._imitating,
    "linger": lambda model, x: model._wait(x, "linger", model.switch.seconds),
    "exit": lambda model, x: os._exit(EXIT_CODE),
    "segfault": Faulty._segfault,
    "hold lock": lambda model, x: ctypes.PyDLL(None).sleep(_FOR_EVER),  # which keeps Python's global lock
    "allocate": Faulty._allocate,
    "garble": Faulty._garble,
    "corrupt": Faulty._corrupt,
}
