"""How much a fault changes, and which elements: settings checked, positions drawn without repetition."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError

__all__ = [
    "check_amount",
    "check_choice",
    "check_count",
    "check_positive",
    "check_share",
    "draw_distinct",
    "how_many",
    "split_positions",
]


def check_share(setting: str, value: float) -> None:
    """Refuse a share that does not lie in (0, 1]; `setting` names it, e.g. ``label_noise.rate``."""
    if not 0 < value <= 1:
        raise ConfigurationError(f"{setting} must lie in (0, 1], got {value}")


def check_positive(setting: str, value: float) -> None:
    """Refuse a setting that is not a finite number above 0."""
    if not 0 < value < float("inf"):
        raise ConfigurationError(f"{setting} must be a finite number above 0, got {value}")


def check_choice(setting: str, value: str, choices: Any) -> None:
    """Refuse a value that is not one of the strings of a `Literal`."""
    if value not in get_args(choices):
        raise ConfigurationError(f"{setting} must be one of {', '.join(get_args(choices))}, got {value!r}")


def check_amount(fault: str, rate: float, count: int | None) -> None:
    """Refuse a rate outside (0, 1] and a count that is not a whole number above 0."""
    check_share(f"{fault}.rate", rate)
    if count is not None:
        check_count(f"{fault}.count", count)


def check_count(setting: str, value: object) -> None:
    """Refuse a setting that is not a whole number above 0; a configuration file may hold anything."""
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{setting} must be a whole number of at least 1, got {value!r}")


def how_many(rate: float, count: int | None, population: int, what: str) -> int:
    """The count where one is given, else the rate's share of the population, rounded (it may be 0).

    >>> how_many(0.25, None, 8, "weights"), how_many(0.25, 3, 8, "weights")
    (2, 3)

    Raises:
        FaultNotApplicableError: the count is larger than the population.
    """
    if count is None:
        return round(rate * population)
    if count > population:
        raise FaultNotApplicableError(
            f"asked for {count} {what}, but there are only {population}; lower count or choose more layers"
        )
    return count


def draw_distinct(count: int, population: int, rng: torch.Generator) -> Tensor:
    """Different positions, each set of them equally likely: (count,) int64 in [0, population).

    The bits of a large model are too many for one permutation of all of them; a few are therefore drawn
    with repetition until enough different ones have come.
    """
    if count == population:
        return torch.arange(population)
    if 4 * count >= population:
        return torch.randperm(population, generator=rng)[:count]
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        more = torch.randint(population, (2 * (count - len(drawn)),), generator=rng)
        drawn = torch.cat([drawn, more]).unique()
    # `unique` sorts: its first entries would all be small, so a random part of it is taken.
    return drawn[torch.randperm(len(drawn), generator=rng)[:count]]


def split_positions(positions: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Positions in a chain of tensors, as positions in each of them.

    Args:
        positions: (P,) int64 in [0, sum of sizes), different.
        sizes: elements of each tensor of the chain.

    Returns:
        One sorted int64 tensor per size; their lengths sum to P.

    Example:
        >>> [part.tolist() for part in split_positions(torch.tensor([4, 0, 2]), [2, 3])]
        [[0], [0, 2]]
    """
    ordered = positions.sort().values
    ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0)
    until = [0, *torch.searchsorted(ordered, ends).tolist()]
    starts = [0, *ends.tolist()]
    return [ordered[until[i] : until[i + 1]] - starts[i] for i in range(len(sizes))]
