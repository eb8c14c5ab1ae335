"""Faults in a network's structure: architectures that build another network than they should."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import torch
from torch import nn

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.seeding import generator, random_state_kept
from deepfailguard.types import Change
from deepfailguard.versions.spec import Architecture, architecture_name

__all__ = ["Edit", "Edited", "Which", "choose", "named_layers", "shallower_of", "skeleton", "weighted_layers"]

Which = Literal["all", "first", "share"]

_WEIGHTED: Final = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class Edit(Protocol):
    """A change to a network that was just built; its constructor's arguments are JSON."""

    def apply(self, network: nn.Module) -> tuple[Change, ...]:
        """Change the network in place, always in the same way, and tell what was changed."""
        ...


@dataclass(frozen=True, slots=True)
class Edited:
    """An architecture whose networks are edited right after they were built.

    The base is built first and from the same random numbers, so layers that the edit leaves alone start from
    the very weights that they would have had without it.

    Attributes:
        architecture: what is built.
        edit: what is then changed.
    """

    architecture: Architecture
    edit: Edit

    @property
    def name(self) -> str:
        """The base's name: a version's faults are named beside it."""
        return architecture_name(self.architecture)

    def build(self, classes: int) -> nn.Module:
        """The base's network with the edit, from images (B, C, H, W) to logits (B, classes)."""
        network = self.architecture.build(classes)
        self.edit.apply(network)
        return network


def shallower_of(architecture: Architecture) -> Architecture:
    """The architecture with fewer layers, from its own `shallower` method.

    Raises:
        FaultNotApplicableError: it has none, or is edited already (its edit names layers that would be gone).
    """
    name = architecture_name(architecture)
    if isinstance(architecture, Edited):
        raise FaultNotApplicableError(
            f"{name} was edited before and its edit names layers that a shallower {name} lacks; "
            "apply `shallower` before the faults that edit layers"
        )
    method = getattr(architecture, "shallower", None)
    if not callable(method):
        raise FaultNotApplicableError(
            f"{name} ({type(architecture).__name__}) has no shallower form; "
            "give the class a method shallower() that returns the architecture with fewer layers"
        )
    mutant = method()
    if not isinstance(mutant, Architecture):
        raise FaultNotApplicableError(
            f"{name}.shallower() must return an architecture (with a method build), got {type(mutant).__name__}"
        )
    return mutant


def skeleton(architecture: Architecture, classes: int = 2) -> nn.Module:
    """The architecture's network to look at: on the meta device (no memory, no random numbers) where that works."""
    # Looking must not move the global random numbers, from which the real weights will be drawn.
    with random_state_kept([]):
        try:
            with torch.device("meta"):
                return architecture.build(classes)
        except Exception:  # user code that computes with its weights while it builds; a real error comes back below
            return architecture.build(classes)


def weighted_layers(network: nn.Module) -> int:
    """How many convolutions and linear layers the network has, as depth is counted in papers.

    >>> weighted_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)))
    2
    """
    return sum(isinstance(module, _WEIGHTED) for module in network.modules())


def named_layers(network: nn.Module, wanted: Callable[[nn.Module], bool]) -> tuple[str, ...]:
    """Dotted names of the wanted submodules in the order of their definition; a shared one has several names."""
    named = network.named_modules(remove_duplicate=False)
    return tuple(name for name, module in named if name and wanted(module))


def choose(names: Sequence[str], which: Which, share: float, seed: int) -> tuple[str, ...]:
    """Some of the names in their order: all, the first, or a random share of them (at least one).

    >>> choose(["a", "b", "c"], "first", 1.0, seed=0)
    ('a',)
    """
    if which not in ("all", "first", "share") or not 0 < share <= 1:
        raise ConfigurationError(
            f"expected which to be all, first or share, and 0 < share <= 1, got which={which!r}, share={share}"
        )
    if which == "all":
        return tuple(names)
    if which == "first":
        return tuple(names[:1])
    count = max(1, round(share * len(names)))
    picked = torch.randperm(len(names), generator=generator(seed, "layers"))[:count].sort().values
    return tuple(names[index] for index in picked.tolist())
