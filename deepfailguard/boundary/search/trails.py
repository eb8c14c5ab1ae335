"""The heart of the search: trails that run from an image to the boundary and then along it to its nearest point.

The nearest point of a smooth boundary lies where the change is parallel to the boundary's normal (and clipped
to the bounds). So a trail repeats: take the gradient where it stands, average its direction with the former
ones, and go from the *image* along the mean, clipped to the bounds, just as far as the last gradient says that
the boundary is. Single gradients of a network of many small linear pieces say little about the boundary as a
whole; their mean does, and that is why a trail ends nearer than DeepFool, which adds up single steps.

The plan from the last gradient is too short where the slope fades on the way. So a trail keeps count of its
`trust`: how much of the fall of the margin that was predicted came true.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from torch import Tensor

from deepfailguard.boundary.search.effort import Effort
from deepfailguard.boundary.search.norms import NormName, reach, size_of
from deepfailguard.boundary.search.slopes import Slope
from deepfailguard.types import Bounds

__all__ = ["Best", "Trails"]

_LEAST_TRUST: Final = 0.25  # no step is planned longer than four times what the gradient says


@dataclass(frozen=True, slots=True)
class Best:
    """The smallest change of each of B images that flipped the answer.

    Attributes:
        size: (B,) its norm; infinite where none was found.
        delta: (B, D) the change.
        margin: (B,) at the changed image, negative.
        slope: (B,) by how much the margin would fall along once more the change.
    """

    size: Tensor
    delta: Tensor
    margin: Tensor
    slope: Tensor

    @classmethod
    def none_of(cls, images: Tensor) -> "Best":
        """Nothing was found for images (B, D)."""
        zero = images.new_zeros(len(images))
        return cls(torch.full_like(zero, torch.inf), torch.zeros_like(images), zero, zero.clone())

    def challenged(self, image: Tensor, size: Tensor, delta: Tensor, margin: Tensor, slope: Tensor) -> "Best":
        """With the changes of R trails where they are smaller.

        Args:
            image: (R,) int64, whose trail it is.
            size: (R,) norms of the changes, infinite for those that do not count.
            delta: (R, D) the changes.
            margin: (R,) there.
            slope: (R,) fall of the margin along the change.
        """
        least = torch.full_like(self.size, torch.inf).scatter_reduce(0, image, size, "amin")
        rows = ((size < self.size[image]) & (size == least[image])).nonzero().squeeze(1)
        at = image[rows]
        return Best(
            self.size.index_copy(0, at, size[rows]),
            self.delta.index_copy(0, at, delta[rows]),
            self.margin.index_copy(0, at, margin[rows]),
            self.slope.index_copy(0, at, slope[rows]),
        )


@dataclass(frozen=True, slots=True)
class Trails:
    """R trails of B images (R >= B at first, as an image may start for several rivals).

    Attributes:
        image: (R,) int64, whose trail it is.
        start: (R, D) the unchanged image.
        delta: (R, D) the change up to where the trail stands.
        slope: the model there.
        direction: (R, D) mean of the unit normals so far.
        trust: (R,) in [0.25, 1].
        stale: (R,) int64, steps in a row that promised no gain.
        steps: (R,) int64, steps taken.
    """

    image: Tensor
    start: Tensor
    delta: Tensor
    slope: Slope
    direction: Tensor
    trust: Tensor
    stale: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def begin(cls, image: Tensor, start: Tensor, slope: Slope) -> "Trails":
        """Trails that stand at their images."""
        trust = torch.ones_like(slope.margin)
        none = torch.zeros_like(image)
        return cls(image, start, torch.zeros_like(start), slope, _unit(slope.normal), trust, none, none)

    def __getitem__(self, rows: Tensor) -> "Trails":
        return Trails(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def followed_by(self, others: "Trails") -> "Trails":
        """These trails and others."""
        if len(self) == 0:
            return others
        joined: dict[str, Any] = {
            each.name: torch.cat([getattr(self, each.name), getattr(others, each.name)])
            for each in fields(self)
            if each.name != "slope"
        }
        return Trails(slope=Slope.concatenate([self.slope, others.slope]), **joined)

    def planned(self, bounds: Bounds, norm: NormName, overshoot: float) -> Tensor:
        """The next changes (R, D): as far along the mean normal as the last gradient puts the boundary."""
        slope, room = self.slope, (bounds.low - self.start, bounds.high - self.start)
        missing = torch.where(slope.margin > 0, slope.margin / self.trust, slope.margin)
        rise = missing + (self.delta * slope.normal).sum(1)
        delta = reach(room, self.direction, slope.normal, rise, norm) * overshoot
        return torch.minimum(torch.maximum(delta, room[0]), room[1])

    def worthwhile(self, sizes: Tensor, best: Best, effort: Effort) -> "tuple[Tensor, Trails]":
        """Which trails (R,) may go on to changes of these sizes (R,), and the trails with their patience counted."""
        least = torch.full_like(best.size, torch.inf).scatter_reduce(0, self.image, sizes, "amin")
        limit = (1 - effort.gain + effort.slack / (self.steps + 1) ** 2) * best.size[self.image]
        hopeless = (sizes >= limit) | (sizes > effort.spread * least[self.image])
        stale = torch.where(hopeless, self.stale + 1, 0)
        going = (stale <= effort.patience) & (sizes > 0) & (self.steps < effort.steps)
        return going, replace(self, stale=stale)

    def moved(self, delta: Tensor, slope: Slope, effort: Effort) -> "Trails":
        """The trails after a step to the changes (R, D), where the model is `slope`."""
        predicted = ((delta - self.delta) * self.slope.normal).sum(1)
        seen = (self.slope.margin - slope.margin) / torch.where(predicted > 0, predicted, 1.0)
        trust = torch.where(
            predicted > 0, torch.lerp(self.trust, seen.clamp(_LEAST_TRUST, 1.0), effort.learning), self.trust
        )
        steps = self.steps + 1
        weight = (effort.recency / (steps + effort.recency)).to(delta.dtype)[:, None]
        direction = _unit(torch.lerp(self.direction, _unit(slope.normal), weight))
        return replace(self, delta=delta, slope=slope, direction=direction, trust=trust, steps=steps)

    def improved(self, best: Best, norm: NormName) -> Best:
        """The best changes with those of the trails that stand beyond the boundary."""
        size = torch.where(self.slope.flipped, size_of(self.delta, norm), torch.inf)
        fall = (self.delta * self.slope.normal).sum(1)
        return best.challenged(self.image, size, self.delta, self.slope.margin, fall)


def _unit(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(length > 0, vectors / torch.where(length > 0, length, 1.0), 0.0)
