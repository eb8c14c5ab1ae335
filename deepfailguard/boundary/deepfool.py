"""The reference boundary distance: L2 DeepFool as foolbox implements it.

DeepFool linearises the model at the current point, steps to the nearest linearised boundary, and repeats
until the answer flips: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool
deep neural networks", CVPR 2016. For an affine model the size is (exact distance + 1e-4) * (1 + overshoot).
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from deepfailguard.boundary.foolbox_quiet import foolbox_silent
from deepfailguard.boundary.searching import check_inputs, searching
from deepfailguard.errors import ConfigurationError
from deepfailguard.types import NO_ANSWER, Bounds, Distances
from deepfailguard.versions.logits import as_logits
from deepfailguard.versions.version import device_of

__all__ = ["FoolboxDeepFool"]


@dataclass(frozen=True, slots=True)
class FoolboxDeepFool:
    """L2 DeepFool.

    Attributes:
        steps: at most this many linearisations per image (>= 1).
        candidates: how many of the likeliest classes are tried, capped at the class count (>= 2).
        overshoot: how far beyond the boundary a step goes, as a share of the step (>= 0).
        batch_size: images per chunk; another size changes results by rounding only.
        low: smallest value of an input.
        high: largest value of an input.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> FoolboxDeepFool(steps=20)(model, torch.full((2, 1, 2, 2), 0.5)).size.shape
        torch.Size([2])
    """

    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02
    batch_size: int = 256
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("candidates", 2), ("overshoot", 0), ("batch_size", 1)):
            if not getattr(self, name) >= least:
                raise ConfigurationError(f"{name} must be at least {least}, got {getattr(self, name)}")
        Bounds(self.low, self.high)  # raises if they do not fit

    @property
    def bounds(self) -> Bounds:
        """The range of input values that the search stays in."""
        return Bounds(self.low, self.high)

    def with_bounds(self, bounds: Bounds) -> Self:
        """A copy for a data set with these bounds."""
        return replace(self, low=bounds.low, high=bounds.high)

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        """Distances of inputs (B, ...) on any device; the model runs where its weights are.

        Where the model's logits are not finite the label is -1 and `found` is False.

        Raises:
            ConfigurationError: the model's logits have no gradient with respect to its input.
            DataFormatError: an input is not finite or not in the bounds.
            WrongOutputError: the model does not return logits (B, K).
        """
        check_inputs(x, self.bounds)
        device = device_of(model)
        parts = [_nothing(torch.empty(0, dtype=torch.int64))]
        with searching(model), foolbox_silent("deepfool.py"):
            for chunk in x.split(self.batch_size) if len(x) else ():
                parts.append(self._search(model, chunk.detach().to(device).clone()))
        return Distances.concatenate(parts)

    def _search(self, model: nn.Module, x: Tensor) -> Distances:
        logits = _logits(model, x)
        answers = logits.argmax(1)
        answered = logits.isfinite().all(1)
        labels = torch.where(answered, answers, NO_ANSWER).cpu()
        if logits.shape[1] < 2:
            return _nothing(labels)
        moved = self._attack(model, x, answers)
        # foolbox does not look at the point after its last step, and does not tell success: ask the model.
        after = _logits(model, moved)
        size = (moved - x).flatten(1).float().norm(dim=1).cpu()
        found = (answered & after.isfinite().all(1) & (after.argmax(1) != answers)).cpu() & size.isfinite()
        return Distances(labels, size.nan_to_num(0.0, 0.0, 0.0), found)

    def _attack(self, model: nn.Module, x: Tensor, answers: Tensor) -> Tensor:
        from foolbox.attacks.deepfool import L2DeepFoolAttack  # half a second: only who searches shall pay
        from foolbox.models.pytorch import PyTorchModel

        attack = L2DeepFoolAttack(steps=self.steps, candidates=self.candidates, overshoot=self.overshoot)
        try:
            moved: Tensor = attack.run(PyTorchModel(model, self._bounds_in(x.dtype), device=x.device), x, answers)
        except RuntimeError as error:
            if _has_gradient(model, x[:1]):
                raise
            raise ConfigurationError(
                "the model's logits have no gradient with respect to its input (does it run under no_grad, or on ONNX "
                "Runtime?); take BoundarySearch, which goes by decisions then, or LearnedDistance"
            ) from error
        return moved.detach()

    def _bounds_in(self, dtype: torch.dtype) -> tuple[float, float]:
        # foolbox compares in double precision: a float32 image at a bound like 0.1 would lie above 0.1.
        low, high = torch.tensor([self.low, self.high], dtype=dtype).tolist()
        return low, high


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return as_logits(model(x), len(x))


def _has_gradient(model: nn.Module, x: Tensor) -> bool:
    with torch.enable_grad():
        return as_logits(model(x.clone().requires_grad_() * 1.0), len(x)).requires_grad


def _nothing(labels: Tensor) -> Distances:
    return Distances(labels, torch.zeros(len(labels)), torch.zeros(len(labels), dtype=torch.bool))
