"""One batch through the search: trails to the boundary and along it, then the closing that verifies what they found."""

from typing import Final

import torch
from torch import Tensor

from deepfailguard.boundary.search.closing import Closing, Found
from deepfailguard.boundary.search.effort import Effort
from deepfailguard.boundary.search.norms import NormName, size_of
from deepfailguard.boundary.search.slopes import Slope, View, class_distances
from deepfailguard.boundary.search.trails import Best, Trails
from deepfailguard.types import Bounds

__all__ = ["Descent"]

_REFILL: Final = 0.75  # images join as soon as so few rows of a full batch are left


class Descent:
    """The search on one model.

    Args:
        view: the model.
        effort: how much work to put into an image.
        norm: of the change.
        bounds: of the input values.
    """

    def __init__(self, view: View, effort: Effort, norm: NormName, bounds: Bounds) -> None:
        self.view = view
        self.effort = effort
        self.norm = norm
        self.bounds = bounds

    def run(self, images: Tensor, answers: Tensor, slope: Slope, weights: Tensor | None = None) -> Found:
        """The smallest verified changes.

        Args:
            images: (B, D).
            answers: (B,) int64 of the model to them.
            slope: of the model there.
            weights: (K, F) of the last layer; None if they are not known.
        """
        queue = self._starts(images, answers, slope, weights)
        best, planned = self._follow(queue, images, answers)
        room = (self.bounds.low - images, self.bounds.high - images)
        margin = slope.logits.gather(1, answers[:, None]).squeeze(1) - slope.logits.topk(2, dim=1).values[:, 1]

        def ask(rows: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            points = self._place(images[rows], delta)
            return *self.view.margins(points, answers[rows]), points - images[rows]

        return Closing(room, margin, ask, self.norm).run(best, planned, self.effort.closing)

    def _starts(self, images: Tensor, answers: Tensor, slope: Slope, weights: Tensor | None) -> "_Starts":
        """A start per image, and further ones where other classes may be nearer than the strongest."""
        image = torch.arange(len(images), device=images.device)
        rivals = self._other_rivals(answers, slope, weights)
        several = (rivals >= 0).any(1).nonzero().squeeze(1)
        if len(several) == 0:
            return _Starts(image, slope)
        rows, others = self.view.further_slopes(images[several], answers[several], rivals[several])
        image, slope = torch.cat([image, several[rows]]), Slope.concatenate([slope, others])
        sizes = size_of(Trails.begin(image, images[image], slope).planned(self.bounds, self.norm, 1.0), self.norm)
        sizes = torch.where(sizes > 0, sizes, torch.inf)  # no gradient, no way to go
        least = sizes.new_full((len(images),), torch.inf).scatter_reduce(0, image, sizes, "amin")
        near = (sizes <= self.effort.spread * least[image]).nonzero().squeeze(1)
        near = near[image[near].argsort(stable=True)]  # the starts of an image side by side
        return _Starts(image[near], slope[near])

    def _other_rivals(self, answers: Tensor, slope: Slope, weights: Tensor | None) -> Tensor:
        """Further classes (B, C) whose margin, by the distance of the classes' weights, is not much larger, or -1."""
        far = class_distances(slope.logits, answers, weights)
        value, rival = far.topk(self.effort.rivals_of(far.shape[1]), dim=1, largest=False)
        close = value[:, 1:] <= self.effort.rival_ratio * value[:, :1]  # the first one is that of the slope
        return torch.where(close, rival[:, 1:], -1)

    def _follow(self, queue: "_Starts", images: Tensor, answers: Tensor) -> tuple[Best, Best]:
        """Take steps while they promise something; returns the best changes and those that would come next.

        Images join as others leave, so that the model always runs full batches.
        """
        best = planned = Best.none_of(images)
        trails = queue.next(images, self.view.rows)
        while True:
            if len(trails) <= _REFILL * self.view.rows:
                trails = trails.followed_by(queue.next(images, self.view.rows - len(trails)))
            if len(trails) == 0:
                return best, planned
            delta = trails.planned(self.bounds, self.norm, self.effort.overshoot)
            sizes = size_of(delta, self.norm)
            going, trails = trails.worthwhile(sizes, best, self.effort)
            if not going.all():
                planned = self._plans(trails, delta, sizes, going, best, planned)
                rows = going.nonzero().squeeze(1)
                trails, delta = trails[rows], delta[rows]
            if len(trails):
                slope = self.view.slopes(self._place(trails.start, delta), answers[trails.image])
                trails = trails.moved(delta, slope, self.effort)
                best = trails.improved(best, self.norm)

    def _plans(self, trails: Trails, delta: Tensor, sizes: Tensor, going: Tensor, best: Best, planned: Best) -> Best:
        """Keep what the trails that end now would have done next, where it promises more than the best."""
        ended = ~going & (sizes > 0) & (sizes < (1 - self.effort.gain) * best.size[trails.image])
        slope = (delta * trails.slope.normal).sum(1) * trails.trust
        sizes = torch.where(ended, sizes, torch.inf)
        return planned.challenged(trails.image, sizes, delta, torch.zeros_like(slope), slope)

    def _place(self, images: Tensor, delta: Tensor) -> Tensor:
        return (images + delta).clamp(self.bounds.low, self.bounds.high)


class _Starts:
    """The trails' starts, side by side for each image, handed out image by image.

    Args:
        image: (R,) int64, ascending.
        slope: of the model at the images, R rows.
    """

    def __init__(self, image: Tensor, slope: Slope) -> None:
        self.image = image
        self.slope = slope
        self._waiting = torch.unique_consecutive(image, return_counts=True)[1].tolist()[::-1]
        self._given = 0

    def next(self, images: Tensor, rows: int) -> Trails:
        """Trails of whole images, at most so many rows (at least one image); none when all were handed out."""
        begin, end = self._given, self._given
        while self._waiting and (end == begin or end - begin + self._waiting[-1] <= rows):
            end += self._waiting.pop()
        self._given = end
        return Trails.begin(self.image[begin:end], images[self.image[begin:end]], self.slope[begin:end])
