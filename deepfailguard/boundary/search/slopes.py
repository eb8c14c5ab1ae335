"""The model as a search sees it: at some points, the margin of the answer and the direction in which it falls."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from torch import Tensor, nn

from deepfailguard.versions.logits import as_logits

__all__ = ["NotDifferentiable", "Slope", "View", "class_distances"]

_NO_DERIVATIVE: Final = ("derivative", "does not require grad", "not differentiable", "inference tensor")


class NotDifferentiable(Exception):  # noqa: N818 - it is a fact about the model that the search goes by, no failure
    """The model's logits have no gradient with respect to its input."""


@dataclass(frozen=True, slots=True)
class Slope:
    """The model around R points of D values.

    Attributes:
        logits: (R, K).
        rival: (R,) int64, the class that the margin is measured against.
        margin: (R,) logit of the answer minus that of the rival.
        normal: (R, D) gradient of rival minus answer: the margin falls along it.
        flipped: (R,) bool, whether the model answers otherwise here (with finite logits).
    """

    logits: Tensor
    rival: Tensor
    margin: Tensor
    normal: Tensor
    flipped: Tensor

    def __getitem__(self, rows: Any) -> "Slope":
        return Slope(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    @classmethod
    def concatenate(cls, parts: "Sequence[Slope]") -> "Slope":
        """Several as one."""
        return cls(**{each.name: torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)})


@dataclass(frozen=True, slots=True)
class View:
    """A model that answers at flat points (R, D).

    Attributes:
        model: in evaluation mode with frozen parameters.
        shape: of one input.
        rows: at most so many points go through the model at once.
        mixed_precision: whether gradients on the way are computed in bfloat16 where the model's operations allow it;
            the start and what verifies are always in full precision.
    """

    model: nn.Module
    shape: torch.Size
    rows: int
    mixed_precision: bool = False

    def start(self, points: Tensor, weights: Tensor | None = None) -> Slope:
        """The model around unchanged inputs, against the rival that seems nearest.

        In full precision and the plain memory format, so the logits are those of an ordinary forward pass.

        Args:
            points: (R, D) on the model's device.
            weights: (K, F) of the last layer; None if they are not known.

        Raises:
            NotDifferentiable: no gradient reaches the input.
            WrongOutputError: the model does not return logits (R, K).
        """
        return Slope.concatenate([self._start(piece, weights) for piece in self._shaped(points).split(self.rows)])

    def slopes(self, points: Tensor, answers: Tensor) -> Slope:
        """The model around points (R, D) against the strongest class but the answer (R,): one gradient each."""
        pieces = zip(fast_format(self._shaped(points)).split(self.rows), answers.split(self.rows), strict=True)
        with self._precision(points):
            return Slope.concatenate([_strongest(self.model, *piece) for piece in pieces])

    def further_slopes(self, points: Tensor, answers: Tensor, rivals: Tensor) -> "tuple[Tensor, Slope]":
        """Gradients against several rivals of each point: one forward pass, and one backward pass per rival.

        Args:
            points: (R, D).
            answers: (R,).
            rivals: (R, C) int64, the classes of a row first, then -1.

        Returns:
            (S,) the point of each slope, and S slopes.
        """
        order = (rivals >= 0).sum(1).argsort(descending=True, stable=True)  # alike counts share their passes
        parts = []
        for rows in order.split(self.rows):
            piece, wanted = fast_format(self._shaped(points[rows])), rivals[rows]
            with self._precision(points):
                slopes = list(_against(self.model, piece, answers[rows], wanted))
            for slope, classes in zip(slopes, wanted.T, strict=False):
                meant = (classes >= 0).nonzero().squeeze(1)
                parts.append((rows[meant], slope[meant]))
        return torch.cat([rows for rows, _ in parts]), Slope.concatenate([slope for _, slope in parts])

    def logits(self, points: Tensor) -> Tensor:
        """One forward pass: (R, K)."""
        with torch.no_grad():
            pieces = self._shaped(points).split(self.rows)
            return torch.cat([_output(self.model, piece) for piece in pieces])

    def margins(self, points: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """One forward pass: (R,) margins against the strongest other class, and (R,) whether the answer flipped."""
        logits = self.logits(points)
        return _pick(logits, answers) - _without(logits, answers).amax(1), _flipped(logits, answers)

    def _precision(self, points: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(points.device.type, torch.bfloat16) if self.mixed_precision else nullcontext()

    def _shaped(self, points: Tensor) -> Tensor:
        return points.view(-1, *self.shape)

    def _start(self, piece: Tensor, weights: Tensor | None) -> Slope:
        x, output = _forward(self.model, piece)
        logits = output.detach()
        answers = logits.argmax(1)
        rivals = class_distances(logits, answers, weights).argmin(1)
        return _slope(x, output, answers, rivals, more=False)


def class_distances(logits: Tensor, answers: Tensor, weights: Tensor | None) -> Tensor:
    """How far each class seems by the margin alone: (R, K), infinite for the answer.

    Args:
        logits: (R, K).
        answers: (R,).
        weights: (K, F) of the last layer: a margin is easily overcome where the classes' weights differ much.
            None, or weights of another number of classes, count as equally different.
    """
    margins = _pick(logits, answers)[:, None] - logits
    if weights is not None and len(weights) == logits.shape[1]:
        known = weights.to(logits.device).float()
        differences = torch.cdist(known[answers], known)
        margins = margins / differences.clamp_min(torch.finfo(differences.dtype).tiny)
    return margins.scatter(1, answers[:, None], torch.inf)


def fast_format(images: Tensor) -> Tensor:
    """The memory format in which convolutions run fastest: on CPUs with the channels last."""
    if images.ndim == 4 and images.device.type == "cpu":
        return images.contiguous(memory_format=torch.channels_last)
    return images


def _strongest(model: nn.Module, piece: Tensor, answers: Tensor) -> Slope:
    x, output = _forward(model, piece)
    return _slope(x, output, answers, _without(output.detach(), answers).argmax(1), more=False)


def _against(model: nn.Module, piece: Tensor, answers: Tensor, rivals: Tensor) -> Iterator[Slope]:
    columns = int((rivals >= 0).any(0).sum())
    x, output = _forward(model, piece)
    for column in range(columns):
        yield _slope(x, output, answers, rivals[:, column].clamp_min(0), more=column + 1 < columns)


def _output(model: nn.Module, points: Tensor) -> Tensor:
    """Logits in the dtype of the points. The model gets a copy: it may work in place."""
    return as_logits(model(points.clone()), len(points)).to(points.dtype)


def _forward(model: nn.Module, piece: Tensor) -> tuple[Tensor, Tensor]:
    x = piece.detach().requires_grad_(True)
    with _telling_what_has_no_gradient():
        output = _output(model, x)
    if not output.requires_grad:
        raise NotDifferentiable("the logits do not depend on the input by differentiable operations")
    return x, output


def _slope(x: Tensor, output: Tensor, answers: Tensor, rivals: Tensor, more: bool) -> Slope:
    fall = _pick(output, rivals) - _pick(output, answers)
    with _telling_what_has_no_gradient():
        (normal,) = torch.autograd.grad(fall.sum(), x, retain_graph=more, allow_unused=True)
    if normal is None:
        raise NotDifferentiable("no gradient reaches the input")
    logits = output.detach()
    # A value without a slope (a root at 0, say) must not hide the others.
    normal = normal.flatten(1).nan_to_num(0.0, 0.0, 0.0)
    return Slope(logits, rivals, -fall.detach(), normal, _flipped(logits, answers))


@contextmanager
def _telling_what_has_no_gradient() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if any(hint in str(error) for hint in _NO_DERIVATIVE):
            raise NotDifferentiable(str(error)) from error
        raise


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _without(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes[:, None], -torch.inf)


def _flipped(logits: Tensor, answers: Tensor) -> Tensor:
    return (logits.argmax(1) != answers) & logits.isfinite().all(1)
