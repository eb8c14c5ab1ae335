"""Layers that got each other's weights, as by a checkpoint loaded under wrong names."""

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from deepfailguard.errors import FaultNotApplicableError
from deepfailguard.faults.amounts import check_count
from deepfailguard.faults.base import ActsOn
from deepfailguard.faults.receipts import receipt_of
from deepfailguard.faults.weight_tensors import weight_changes
from deepfailguard.seeding import generator
from deepfailguard.types import Receipt

__all__ = ["SwappedLayers"]

Pair = tuple[nn.Module, nn.Module]


@dataclass(frozen=True, slots=True)
class SwappedLayers:
    """Pairs of layers of the same kind and shape whose weights (and biases) are exchanged.

    Attributes:
        count: how many pairs >= 1; no layer is in two of them.
        layers: pattern on the names of the layers' weights.
    """

    count: int = 1
    layers: str = "*"

    name: ClassVar[str] = "swapped_layers"
    acts_on: ClassVar[ActsOn] = "weights"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_count("swapped_layers.count", self.count)

    def apply(self, target: nn.Module, seed: int) -> tuple[nn.Module, Receipt]:
        """Exchange the weights of layers in a copy of the model.

        Raises:
            FaultNotApplicableError: there are not so many pairs of layers of the same shape.
        """
        changed = deepcopy(target)
        rng = generator(seed, "swapped_layers")
        pairs = [pair for twins in _twins(changed, self.layers) for pair in _random_pairs(twins, rng)]
        if len(pairs) < self.count:
            raise FaultNotApplicableError(
                f"asked for {self.count} pairs of layers of the same shape under layers={self.layers!r}, but there "
                f"are only {len(pairs)}; lower count, widen the pattern, or choose an architecture that repeats a layer"
            )
        for index in torch.randperm(len(pairs), generator=rng)[: self.count].tolist():
            _swap(*pairs[index])
        return changed, receipt_of(self, seed, weight_changes(target, changed))


def _twins(model: nn.Module, pattern: str) -> list[list[nn.Module]]:
    """Groups of layers with the same kind and the same shapes; vectors (norms, biases alone) are no layers here."""
    groups: defaultdict[object, list[nn.Module]] = defaultdict(list)
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.ndim < 2 or not fnmatchcase(f"{name}.weight".lstrip("."), pattern):
            continue
        shapes = tuple((key, tuple(value.shape)) for key, value in module.named_parameters(recurse=False))
        groups[type(module), shapes].append(module)
    return list(groups.values())


def _random_pairs(layers: list[nn.Module], rng: torch.Generator) -> list[Pair]:
    order = torch.randperm(len(layers), generator=rng).tolist()
    return [(layers[a], layers[b]) for a, b in zip(order[::2], order[1::2], strict=False)]


@torch.no_grad()
def _swap(first: nn.Module, second: nn.Module) -> None:
    others = dict(second.named_parameters(recurse=False))
    for name, own in first.named_parameters(recurse=False):
        kept: Tensor = own.clone()
        own.copy_(others[name])
        others[name].copy_(kept)
