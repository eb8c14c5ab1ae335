"""Weights compared with what they were when they were loaded, a little at a time."""

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError

__all__ = ["WeightRotation"]

_LARGEST_ELEMENT = 16  # bytes of a complex128


@dataclass(frozen=True, slots=True)
class _Known:
    """What a tensor was: shape, dtype and the checksums of its chunks in order."""

    shape: torch.Size
    dtype: torch.dtype
    sums: tuple[int, ...]

    def same_kind(self, tensor: Tensor) -> bool:
        return tensor.shape == self.shape and tensor.dtype == self.dtype


class WeightRotation:
    """Checksums of every parameter and buffer (saved or not), taken when it is made and compared in rotation.

    A single flipped bit changes a CRC-32, so do up to 32 bits in a row; of other changes one in 2^32 goes unseen. A
    bit that flips is found at the latest when as many chunks were compared as there are; a tensor or a module that
    is exchanged, vanishes or comes on top, by the end of the round after. The device and the layout in memory do not
    matter. What a model keeps in plain attributes is not seen, and a model that writes to its buffers as it answers
    counts as changed. Not for several threads at once.

    Args:
        model: stays as it is.
        chunk_bytes: how much is compared at once.

    Attributes:
        bytes: how many bytes one round compares; a tensor with several names counts for each.
        rounds: how often everything was compared.

    Example:
        rotation = WeightRotation(model)
        changed = rotation.check(seconds=0.001)  # go on where the last call stopped
    """

    def __init__(self, model: nn.Module, chunk_bytes: int = 1 << 20) -> None:
        if chunk_bytes < _LARGEST_ELEMENT:
            raise ConfigurationError(f"chunk_bytes must be at least {_LARGEST_ELEMENT}, got {chunk_bytes}")
        self.chunk_bytes = chunk_bytes
        self.rounds = 0
        self._model = model
        self._places = dict(_places(model))
        tensors = {name: tensor for name, place in self._places.items() if (tensor := _at(place)) is not None}
        self._known = {name: self._taken(tensor) for name, tensor in tensors.items()}
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self._chunks = [(name, chunk) for name, known in self._known.items() for chunk in range(len(known.sums))]
        self._next = 0
        self._changed: dict[str, None] = {}  # a set in the order in which changes were found

    def check(self, seconds: float) -> tuple[str, ...]:
        """Go on comparing for about this long: one chunk at least, one round at most.

        Returns:
            names of all tensors that were found changed since the rotation was made, also of those that are as before
            again.
        """
        end = time.perf_counter() + seconds
        for _ in range(max(1, len(self._chunks))):
            if self._next == 0:
                self._compare_names()
            if self._chunks:
                self._compare(*self._chunks[self._next])
            self._next += 1
            if self._next >= len(self._chunks):
                self._next, self.rounds = 0, self.rounds + 1
            if time.perf_counter() >= end:
                break
        return tuple(self._changed)

    def _compare_names(self) -> None:
        """Look up where tensors are now: too slow to be done for each chunk."""
        self._places = dict(_places(self._model))
        for name in self._places.keys() ^ self._known.keys():
            self._changed[name] = None
        for name in self._places.keys() & self._known.keys():
            tensor = _at(self._places[name])
            if tensor is None or not self._known[name].same_kind(tensor):
                self._changed[name] = None

    def _compare(self, name: str, chunk: int) -> None:
        known, place = self._known[name], self._places.get(name)
        tensor = None if place is None else _at(place)
        if tensor is None or not known.same_kind(tensor) or self._sum(tensor, chunk) != known.sums[chunk]:
            self._changed[name] = None

    def _taken(self, tensor: Tensor) -> _Known:
        chunks = -(-tensor.numel() // self._elements(tensor))
        return _Known(tensor.shape, tensor.dtype, tuple(self._sum(tensor, chunk) for chunk in range(chunks)))

    def _elements(self, tensor: Tensor) -> int:
        """How many elements make a chunk."""
        return self.chunk_bytes // tensor.element_size()

    def _sum(self, tensor: Tensor, chunk: int) -> int:
        elements = self._elements(tensor)
        piece = _piece(tensor.detach(), chunk * elements, min((chunk + 1) * elements, tensor.numel()))
        return zlib.crc32(piece.cpu().view(torch.uint8).numpy().data)


_Place = tuple[nn.Module, str]
"""The module that holds a tensor, and its name there: the tensor itself may be exchanged."""


def _places(model: nn.Module) -> Iterator[tuple[str, _Place]]:
    for prefix, module in model.named_modules():
        own = (module.named_parameters, module.named_buffers)
        for key in (key for named in own for key, _ in named(recurse=False, remove_duplicate=False)):
            yield f"{prefix}.{key}" if prefix else key, (module, key)


def _at(place: _Place) -> Tensor | None:
    found = getattr(*place, None)
    return found if isinstance(found, Tensor) else None


def _piece(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements `start` to `stop` of the flattened tensor, (stop - start,), contiguous; copies no more than it must."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    row = tensor.numel() // len(tensor)  # not contiguous: it has elements and dimensions
    first = start // row
    rows = tensor[first : -(-stop // row)].reshape(-1)
    return rows[start - first * row : stop - first * row].contiguous()
