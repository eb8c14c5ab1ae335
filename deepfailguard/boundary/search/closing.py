"""The end of a search: draw each change back to the boundary on its ray, and verify that the answer flips there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepfailguard.boundary.search.norms import NormName, size_of
from deepfailguard.boundary.search.trails import Best

__all__ = ["Ask", "Closing", "Found"]

Ask = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From image numbers (R,) and changes (R, D) to the original model's margins (R,), whether it flipped (R,), and the
changes (R, D) at which it was really asked: rounding and the bounds may move a point."""

_BEYOND: Final = 1.001  # a predicted crossing is passed by this factor
_PUSHES: Final = (1.05, 1.2, 1.5, 2.0, 4.0, 16.0, 1e6)  # at most so far in one push, where the answer should flip
_REFINEMENTS: Final = 8  # after the last push, at most, until
_TIGHT: Final = 1.03  # the bracket is as narrow as this
_MARGIN: Final = 0.05  # share of a bracket that is kept clear at its ends


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ends with.

    Attributes:
        size: (B,) of verified changes; infinite where there is none.
        delta: (B, D) these changes; zero where there is none.
    """

    size: Tensor
    delta: Tensor


class Closing:
    """Collects, per image, the smallest change at which the original model was seen to flip.

    Every image has a ray: the change, stretched by a `place`. Its answer stands at `near` and flips at `far`.

    Args:
        room: (B, D) each, the largest change down and up.
        margin: (B,) > 0 of the unchanged images.
        ask: the original model.
        norm: of the sizes.
    """

    def __init__(self, room: tuple[Tensor, Tensor], margin: Tensor, ask: Ask, norm: NormName) -> None:
        self.room = room
        self.ask = ask
        self.norm = norm
        self.start_margin = margin
        self.size = torch.full_like(margin, torch.inf)
        self.delta = torch.zeros_like(room[0])
        self.near, self.near_margin = torch.zeros_like(margin), margin.clone()
        self.far, self.far_margin = torch.full_like(margin, torch.inf), torch.zeros_like(margin)

    def run(self, best: Best, planned: Best, passes: int) -> Found:
        """Improve and verify.

        Args:
            best: what the trails found.
            planned: the changes that would come next where they promise more; elsewhere of infinite size.
            passes: forward passes for all images. Those whose answer did not flip get more.
        """
        further = planned.size.isfinite()
        self.ray = torch.where(further[:, None], planned.delta, best.delta)
        crossing = 1 + best.margin / torch.where(best.slope > 0, best.slope, torch.inf)
        place = torch.where(further, 1.0, (crossing.clamp_min(0.5) * _BEYOND).clamp_max(1.0))
        rows = (self.ray != 0).any(1).nonzero().squeeze(1)
        place = place[rows]
        for _ in range(passes):
            self._look(rows, place)
            place = self._next(rows, _PUSHES[0])
        self._confirm(best)
        self._push_out()
        return Found(self.size, self.delta)

    def _confirm(self, best: Best) -> None:
        """Verify what the trails saw, where nothing smaller was verified since."""
        rows = (best.size < self.size).nonzero().squeeze(1)
        if len(rows):
            self._try(rows, best.delta[rows])

    def _push_out(self) -> None:
        """Where nothing flipped: go on outwards until it does, then draw back."""
        lost = self.size.isinf() & (self.ray != 0).any(1)
        for push in _PUSHES:
            rows = (lost & self.far.isinf()).nonzero().squeeze(1)
            if len(rows):
                self._look(rows, self._next(rows, push))
        for _ in range(_REFINEMENTS):
            rows = (lost & self.far.isfinite() & (self.far > _TIGHT * self.near)).nonzero().squeeze(1)
            if len(rows):
                self._look(rows, self._next(rows, 1.0))

    def _next(self, rows: Tensor, push: float) -> Tensor:
        """Where the margin should vanish: between near and far, or without a far onwards, by `push` at most."""
        near, margin, far = self.near[rows], self.near_margin[rows], self.far[rows]
        width = torch.where(far.isfinite(), far - near, 0.0)
        share = margin / (margin - self.far_margin[rows])
        inside = near + width * (share * _BEYOND).clamp(_MARGIN, 1 - _MARGIN)
        onward = near * self.start_margin[rows] / (self.start_margin[rows] - margin).clamp_min(0.0)
        beyond = (onward * _BEYOND).nan_to_num(torch.inf, torch.inf)
        beyond = torch.minimum(torch.maximum(beyond, near * (1 + (push - 1) / 3)), near * push)
        return torch.where(far.isfinite(), inside, beyond)

    def _look(self, rows: Tensor, place: Tensor) -> None:
        margin, flipped = self._try(rows, self.ray[rows] * place[:, None])
        beyond, before = rows[flipped], rows[~flipped]
        self.far[beyond], self.far_margin[beyond] = place[flipped], margin[flipped]
        self.near[before], self.near_margin[before] = place[~flipped], margin[~flipped]

    def _try(self, rows: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Ask at the changes, clipped to the bounds, and keep those that flip and are smaller than what is kept."""
        delta = torch.minimum(torch.maximum(delta, self.room[0][rows]), self.room[1][rows])
        margin, flipped, delta = self.ask(rows, delta)
        size = size_of(delta.float(), self.norm).to(self.size.dtype)
        better = flipped & (size < self.size[rows])
        self.size[rows[better]], self.delta[rows[better]] = size[better], delta[better]
        return margin, flipped
