"""A regressor that learned from a search what distance goes with which logits and features. One forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.counts import check_count
from deepfailguard.boundary.estimates.chunks import in_chunks
from deepfailguard.boundary.estimates.distilling import Teaching, distil
from deepfailguard.boundary.estimates.logits import to_distances
from deepfailguard.boundary.estimates.per_version import fingerprint_of, only, state_of
from deepfailguard.boundary.estimates.quality import (
    NO_QUALITY,
    EstimateQuality,
    check_enough,
    compare,
    warn_of_few,
    warn_of_nothing,
)
from deepfailguard.boundary.estimates.regressor import Inputs, Parameters, predict, read_inputs
from deepfailguard.boundary.searching import check_inputs, within
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds, Distances
from deepfailguard.versions.tapping import tapped
from deepfailguard.versions.version import device_of

__all__ = ["Distilled", "LearnedDistance"]

_HELD_OUT: Final = 8  # every so manyth image is not learned from but used to tell the quality
_FEWEST: Final = 16
_LARGEST_LOG: Final = 30.0


@dataclass(frozen=True, slots=True)
class Distilled:
    """What was learned of one version.

    Attributes:
        parameters: of the regressor, as `Parameters.to_text` writes them; empty where the teacher found
            next to nothing.
        quality: on the calibration images that were held out.
    """

    parameters: Mapping[str, str] = field(repr=False)
    quality: EstimateQuality

    def __str__(self) -> str:
        return f"{self.quality} that were held out"


@dataclass(frozen=True, slots=True)
class LearnedDistance:
    """Boundary distances predicted from what one forward pass shows: logits and the last layer's input.

    It must be fitted to each version, with images that the version was not trained on; `fit` returns a copy that
    knows the version besides those known before. What was learned is an argument of the constructor, so it is part
    of the cache's key and of a saved guard. The scale is the teacher's: no calibration is needed.

    `found` says that an estimate exists (finite logits, at least two classes), not that a boundary point was seen.

    Attributes:
        teacher: the search whose distances are learned.
        teaching: how they are learned.
        convolutions: how many of the model's convolutions tell their mean inputs, spread evenly over it (>= 0); with
            0 only the logits and the last layer's input are seen.
        batch_size: images per chunk; another size changes results by rounding only.
        low: smallest value of an input.
        high: largest value of an input.
        versions: what was learned, by the fingerprints of the versions' weights.

    Example:
        >>> from deepfailguard.boundary.deepfool import FoolboxDeepFool
        >>> model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(40, 1, 2, 2)
        >>> learned = LearnedDistance(FoolboxDeepFool(), Teaching(width=8, epochs=2)).fit(model, images)
        >>> learned(model, images[:2]).size.shape
        torch.Size([2])
    """

    teacher: DistanceEstimator
    teaching: Teaching = Teaching()  # noqa: RUF009 - it is frozen
    convolutions: int = 4
    batch_size: int = 256
    low: float = 0.0
    high: float = 1.0
    versions: Mapping[str, Distilled] = field(default_factory=dict, repr=False)
    # Decoded parameters by version and device; they follow from the rest, so they are no part of the description.
    _ready: dict[tuple[str, torch.device], Parameters | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, least=1)
        check_count("convolutions", self.convolutions, least=0)
        Bounds(self.low, self.high)  # raises if they do not fit

    @property
    def bounds(self) -> Bounds:
        """The range of input values."""
        return Bounds(self.low, self.high)

    def with_bounds(self, bounds: Bounds) -> Self:
        """A copy for a data set with these bounds; what was learned within other bounds is forgotten."""
        if bounds == self.bounds and within(self.teacher, bounds) == self.teacher:
            return self
        return replace(self, teacher=within(self.teacher, bounds), low=bounds.low, high=bounds.high, versions={})

    def of_version(self, fingerprint: str) -> Self:
        """A copy that knows this version alone.

        Raises:
            NotFittedError: it does not know it.
        """
        return replace(self, versions=only(self.versions, fingerprint, type(self).__name__))

    def quality(self, fingerprint: str) -> EstimateQuality:
        """How well this version's distances were told on held-out calibration images."""
        return state_of(self.versions, fingerprint, type(self).__name__).quality

    def fit(self, model: nn.Module, images: Tensor) -> Self:
        """Learn the teacher's distances for a version.

        One image in eight is held out to tell the quality. Of a version whose answers the teacher cannot flip (it
        always tells the same class, say) nothing is learned: none of its distances will be found, and the log says so.
        The regressor is small and is taught on the CPU, wherever the model is.

        Args:
            model: the version.
            images: (B, ...) that it was not trained on; hundreds at least, thousands are better.

        Returns:
            A copy that knows this version too.

        Raises:
            DataFormatError: there are fewer than sixteen images.
        """
        check_inputs(images, self.bounds)
        check_enough(len(images), _FEWEST)
        fingerprint = fingerprint_of(model)
        searched, (logits, inputs) = self.teacher(model, images), self._read_all(model, images)
        usable = searched.found & (searched.size > 0) & logits.isfinite().all(1)
        shuffled = torch.randperm(len(images), generator=generator(self.teaching.seed, "learned distance", "split"))
        chosen = shuffled[usable[shuffled]]
        state = Distilled({}, NO_QUALITY)
        if len(chosen) >= _FEWEST:
            state = self._distil(logits[chosen], inputs[chosen], searched[chosen])
            warn_of_few(fingerprint, state.quality)
        else:
            warn_of_nothing(fingerprint, len(chosen), len(images))
        return replace(self, versions={**self.versions, fingerprint: state})

    def _distil(self, logits: Tensor, inputs: Inputs, searched: Distances) -> Distilled:
        turn = torch.arange(len(inputs)) % _HELD_OUT
        learned, held = turn > 0, turn == 0
        parameters = distil(inputs[learned], searched.size[learned].log(), self.teaching)
        told = to_distances(logits[held], _size(parameters, inputs[held]))
        return Distilled(parameters.to_text(), compare(told, searched[held]))

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        """Estimates for inputs (B, ...) on any device; where logits are not finite the label is -1.

        Raises:
            NotFittedError: it was not fitted to a version with this model's weights.
            DataFormatError: an input is not finite or not in the bounds.
            WrongOutputError: the model does not return logits (B, K).
        """
        parameters = self._parameters(fingerprint_of(model), device_of(model))

        def estimate(chunk: Tensor) -> Distances:
            logits, inputs = self._read(model, chunk)
            if parameters is None:
                return to_distances(logits, torch.full_like(logits[:, 0], torch.nan))
            return to_distances(logits, _size(parameters, inputs))

        with torch.no_grad():
            return in_chunks(model, x, self.bounds, self.batch_size, estimate)

    def _parameters(self, fingerprint: str, device: torch.device) -> Parameters | None:
        key = (fingerprint, device)
        if key not in self._ready:
            state = state_of(self.versions, fingerprint, type(self).__name__)
            with torch.inference_mode(False):  # they outlive this call
                known = Parameters.from_text(state.parameters).to(device) if state.parameters else None
            self._ready[key] = known
        return self._ready[key]

    def _read(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Inputs]:
        tap = tapped(model, x, self.convolutions)
        return tap.logits, read_inputs(tap.logits, torch.cat([tap.features, tap.means], 1))

    def _read_all(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Inputs]:
        """The same on the CPU for images (B, ...) anywhere."""
        device, cpu = device_of(model), torch.device("cpu")
        parts = [self._read(model, chunk.to(device, copy=True)) for chunk in images.detach().split(self.batch_size)]
        logits, inputs = zip(*((part[0].cpu(), part[1].to(cpu)) for part in parts), strict=True)
        return torch.cat(logits), Inputs.concatenate(inputs)


@torch.no_grad()
def _size(parameters: Parameters, inputs: Inputs) -> Tensor:
    return predict(parameters, inputs).mean(0).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
