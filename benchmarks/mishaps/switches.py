"""What a version does, told from outside while it runs, in whatever process that is."""

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import Tensor

__all__ = ["MODES", "Mode", "Switch", "keys_of"]

Mode = Literal[
    "sound",
    "raise",
    "raise on one",
    "hang",
    "slow",
    "nan",
    "nan in one",
    "inf",
    "no batch dimension",
    "extra row",
    "wrong classes",
    "integers",
    "no tensor",
    "constant",
    "stale",
    "scaled",
    "permuted",
    "imitating",
    "linger",
    "exit",
    "segfault",
    "hold lock",
    "allocate",
    "garble",
    "corrupt",
]
"""What a `Faulty` model does; see there."""

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
_MODE, _MET, _SECONDS, _COUNT, _TARGETS, _SIZE = 0, 8, 16, 24, 32, 256  # places in the file


class Switch:
    """A small file that all processes share: who copies a switch, or gets one sent, has the same one.

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
    def mode(self) -> Mode:
        """What the version does."""
        return MODES[self._memory[_MODE]]

    @property
    def seconds(self) -> float:
        """How long it takes, where it is slow."""
        return float(struct.unpack_from("=d", self._memory, _SECONDS)[0])

    @property
    def targets(self) -> tuple[float, ...]:
        """Keys of the inputs that are concerned, see `keys_of`."""
        count = struct.unpack_from("=Q", self._memory, _COUNT)[0]
        return struct.unpack_from(f"={count}d", self._memory, _TARGETS)

    @property
    def met(self) -> int:
        """How many forward passes began that were not sound."""
        return int(struct.unpack_from("=Q", self._memory, _MET)[0])

    def turn(self, mode: Mode, seconds: float = 0.0, targets: Sequence[float] = ()) -> None:
        """Change what the version does from its next forward pass on; one that hangs or lingers ends that.

        Args:
            mode: what it does.
            seconds: how long it takes, where it is slow or lingers.
            targets: keys of the inputs that are concerned, 28 at most.
        """
        struct.pack_into("=d", self._memory, _SECONDS, seconds)
        struct.pack_into(f"=Q{len(targets)}d", self._memory, _COUNT, len(targets), *targets)
        self._memory[_MODE] = MODES.index(mode)  # last: whoever sees it sees the rest

    def meet(self) -> Mode:
        """The mode, by the version that acts on it."""
        mode = self.mode
        if mode != "sound":
            struct.pack_into("=Q", self._memory, _MET, self.met + 1)
        return mode


def keys_of(images: Tensor) -> Tensor:
    """A number for each image (B, C, H, W), (B,) float64, by which a model knows it again; equal up to rounding.

    >>> keys_of(torch.ones(1, 1, 2, 2)).shape
    torch.Size([1])
    """
    flat = images.flatten(1).double().cpu()
    return flat @ torch.arange(1, flat.shape[1] + 1, dtype=torch.float64).sqrt()
