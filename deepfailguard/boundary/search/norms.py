"""Where a hyperplane is nearest in a box: for the L2, the L-infinity and the L1 norm.

A nearest point of ``{start + delta : <normal, delta> = rise, start + delta in [low, high]}`` has a known form:

- L2: ``delta = clip(t * normal)``
- L-infinity: ``delta = clip(t * sign(normal))``
- L1: the coordinates with the largest entries of the normal go to their bounds, one after the other.

In the search the form comes from a `direction` (the mean of several normals), the rise from the last normal.
"""

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

__all__ = ["NormName", "reach", "size_of"]

NormName = Literal["l2", "linf", "l1"]

_ORDERS: Final[dict[str, float]] = {"l2": 2.0, "linf": float("inf"), "l1": 1.0}
_NEWTON_STEPS = 12  # exact as soon as the set of clipped coordinates stays, mostly after three to five
_EXACT: Final = 1e-5
_STRETCH = 1.5  # of the length, where the rise cannot be reached


def size_of(delta: Tensor, norm: NormName) -> Tensor:
    """Norms (R,) of changes (R, D).

    >>> size_of(torch.tensor([[3.0, 4.0]]), "l2"), size_of(torch.tensor([[3.0, 4.0]]), "linf")
    (tensor([5.]), tensor([4.]))
    """
    size: Tensor = torch.linalg.vector_norm(delta, ord=_ORDERS[norm], dim=1)
    return size


def reach(room: tuple[Tensor, Tensor], direction: Tensor, normal: Tensor, rise: Tensor, norm: NormName) -> Tensor:
    """The change of the form of `direction` that rises by `rise` along `normal`, clipped to the box.

    Every row is solved for itself: the result does not depend on the others. Where the box leaves no such
    change, the row ends at (or on its way to) the corner that the direction points to.

    Args:
        room: (R, D) each, the largest change down (<= 0) and up (>= 0) that stays in the box.
        direction: (R, D), gives the form.
        normal: (R, D), gives the rise.
        rise: (R,); where it is negative the change is zero.
        norm: whose nearest point is meant.

    Returns:
        (R, D), inside the room.
    """
    return _FORMS[norm](room, direction, normal, rise)


def _along(room: tuple[Tensor, Tensor], direction: Tensor, normal: Tensor, rise: Tensor) -> Tensor:
    """``clip(t * direction)``; Newton's method finds t, since the rise is piecewise linear in it."""
    down, up = room
    # The t at which a coordinate meets its bound: never for a coordinate that does not move.
    limit = torch.where(direction > 0, up, down) / direction
    limit = torch.where(direction == 0, torch.inf, limit)
    slopes = normal * direction
    length = _divide(rise, slopes.sum(1))
    for _ in range(_NEWTON_STEPS):
        free = limit > length[:, None]
        slope = torch.where(free, slopes, 0.0).sum(1)
        clipped = torch.where(free, 0.0, slopes * limit).sum(1)
        new = torch.where(slope > 0, _divide(rise - clipped, slope), length * _STRETCH).clamp_min(0.0)
        moving = (new - length).abs() > _EXACT * new
        length = torch.where(moving, new, length)  # each row stops by itself, whatever the others do
        if not moving.any():
            break
    return torch.minimum(limit, length[:, None]) * direction


def _along_sign(room: tuple[Tensor, Tensor], direction: Tensor, normal: Tensor, rise: Tensor) -> Tensor:
    return _along(room, direction.sign(), normal, rise)


def _one_by_one(room: tuple[Tensor, Tensor], direction: Tensor, normal: Tensor, rise: Tensor) -> Tensor:
    order = direction.abs().argsort(dim=1, descending=True, stable=True)
    full = torch.where(direction > 0, room[1], room[0]).where(direction != 0, 0.0).gather(1, order)
    gains = full * normal.gather(1, order)
    before = gains.cumsum(1) - gains
    share = _divide(rise[:, None] - before, gains).clamp(0.0, 1.0)
    # A coordinate that gains nothing is taken whole only where a later one still has to move.
    share = torch.where(gains > 0, share, (before < rise[:, None]).to(share.dtype))
    return torch.zeros_like(full).scatter(1, order, full * share)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; 0 where the denominator is not positive."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 0.0)


_FORMS: Final[dict[str, Callable[[tuple[Tensor, Tensor], Tensor, Tensor, Tensor], Tensor]]] = {
    "l2": _along,
    "linf": _along_sign,
    "l1": _one_by_one,
}
