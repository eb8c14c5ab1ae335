"""Parts inside of a predictor's state: records of tensors, and dotted names."""

from dataclasses import fields
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["below", "record_of", "tensors_of", "under"]

Record = TypeVar("Record")


def tensors_of(record: Any) -> dict[str, Tensor]:
    """The fields of a dataclass that holds tensors alone, by name."""
    return {field.name: getattr(record, field.name).contiguous() for field in fields(record)}


def record_of(kind: type[Record], state: dict[str, Tensor]) -> Record:
    """The dataclass of what `tensors_of` returned.

    Raises:
        KeyError: a field is missing.
    """
    return kind(**{field.name: state[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the name of the part that they belong to.

    >>> import torch
    >>> list(under("gate", {"slope": torch.zeros(1)}))
    ['gate.slope']
    """
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def below(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part, by the names that `under` was given."""
    start = f"{name}."
    return {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}
