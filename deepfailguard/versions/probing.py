"""Finding out whether a layer's output is a model's logits, by putting known numbers in its place."""

import torch
from torch import Tensor, nn

__all__ = ["writes_of", "yields_logits"]


def writes_of(tensor: Tensor) -> int | None:
    """How often a tensor was written to in place; None where torch does not count it (inference tensors)."""
    return None if tensor.is_inference() else tensor._version


@torch.no_grad()
def yields_logits(model: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    """Whether the model returns the layer's output, or its mean over the image, with nothing done to it but a cast.

    The layer's output is exchanged for numbers of both signs that differ from class to class and from place to
    place. Comparing real outputs would not do: a ReLU behind the layer shows only where an output is negative, so
    the answer would depend on the images.

    Args:
        model: from images (B, ...) to logits (B, K), in evaluation mode.
        layer: one of its modules, whose output is (B, K) or (B, K, H, W).
        x: (B, ...) on the model's device; only the first image is used, twice.

    Example:
        >>> linear = nn.Linear(4, 3)
        >>> yields_logits(nn.Sequential(linear), linear, torch.ones(1, 4))
        True
        >>> yields_logits(nn.Sequential(linear, nn.ReLU()), linear, torch.ones(1, 4))
        False
    """
    put: list[Tensor] = []

    def exchange(_: nn.Module, __: object, output: Tensor) -> Tensor:
        put.append(_numbers(output))
        return put[-1].clone()  # what comes next may work in place

    hook = layer.register_forward_hook(exchange)
    try:
        came = model(torch.cat([x[:1], x[:1]]))
    finally:
        hook.remove()
    if not put:
        return False
    expected = put[-1].float().flatten(2).mean(2) if put[-1].ndim > 2 else put[-1].float()
    # A mean of half precision is rounded; anything else than a mean or a cast is off by whole numbers.
    return came.shape == expected.shape and torch.allclose(came.float(), expected, rtol=1e-2, atol=1e-2)


def _numbers(like: Tensor) -> Tensor:
    """Whole numbers within 128 of zero, exact in any precision; each row is the one before with the signs turned."""
    each = like[0].numel() if len(like) else 0
    place = torch.arange(each, device=like.device)
    channel = place // max(1, each // like.shape[1])
    row = (place * 37 % 61 + 1) * (1 - 2 * (place % 2)) + (channel % 7 + 1) * 4  # the latter keeps means off zero
    turned = 1 - 2 * (torch.arange(len(like), device=like.device) % 2)
    return (turned[:, None] * row).reshape(like.shape).to(like.dtype)
