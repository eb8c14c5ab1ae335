"""The tensors of a model that a weight fault may change, and what it really changed in them."""

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from deepfailguard.errors import FaultNotApplicableError
from deepfailguard.faults.receipts import EXAMPLES
from deepfailguard.types import Change

__all__ = ["choose_tensors", "flat_values", "overwrite", "weight_changes"]


def choose_tensors(model: nn.Module, layers: str, buffers: bool = False) -> dict[str, Tensor]:
    """The model's floating-point parameters whose names fit a pattern; shared ones once.

    Args:
        model: the model; the tensors returned are its own, not copies.
        layers: shell pattern on parameter names, e.g. ``*conv*.weight``.
        buffers: whether buffers (the running statistics of batch norms) count too.

    Raises:
        FaultNotApplicableError: none fits.
    """
    named = _tensors(model, buffers)
    chosen = {name: tensor for name, tensor in named.items() if fnmatchcase(name, layers)}
    if not chosen:
        raise FaultNotApplicableError(
            f"no parameter's name fits the pattern layers={layers!r}; there are: {', '.join(named) or 'none'}"
        )
    return chosen


def _tensors(model: nn.Module, buffers: bool) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(model.named_parameters())
    if buffers:
        named |= dict(model.named_buffers())
    return {name: tensor for name, tensor in named.items() if tensor.is_floating_point() and tensor.numel()}


def flat_values(tensor: Tensor) -> Tensor:
    """A copy of the values of a tensor (...) as (E,), of the same dtype and on the same device."""
    return tensor.detach().flatten().clone()


@torch.no_grad()
def overwrite(tensor: Tensor, values: Tensor) -> None:
    """Write values (E,) into a parameter or buffer of E elements, bit for bit."""
    tensor.copy_(values.view(tensor.shape))


def weight_changes(before: nn.Module, after: nn.Module) -> list[Change]:
    """One change for each parameter or buffer that is no longer equal, with a few of its values.

    Args:
        before: the model as it was.
        after: the changed copy, of the same structure.
    """
    new = _tensors(after, buffers=True)
    changes = [_change(name, old, new[name]) for name, old in _tensors(before, buffers=True).items()]
    return [change for change in changes if change.count > 0]


def _change(name: str, before: Tensor, after: Tensor) -> Change:
    old, new = before.detach().flatten(), after.detach().flatten()
    # NaN is unequal to itself; where there was one already, nothing was changed that anybody could see.
    changed = ((old != new) & ~(old.isnan() & new.isnan())).nonzero().flatten()
    return Change(name, _examples(old, changed), _examples(new, changed), len(changed))


def _examples(values: Tensor, changed: Tensor) -> str:
    # So many digits tell any two numbers of the format apart: a flip of the lowest bit must show.
    digits = 17 if values.dtype == torch.float64 else 9
    shown = ", ".join(f"{value:.{digits}g}" for value in values[changed[:EXAMPLES]].tolist())
    return f"{shown}, ..." if len(changed) > EXAMPLES else shown
