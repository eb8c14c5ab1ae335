"""What all distances need: inputs to start from, a model that is left as it was, the estimator of one version."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.errors import DataFormatError
from deepfailguard.types import Bounds
from deepfailguard.versions.version import evaluating

__all__ = ["check_inputs", "for_version", "searching", "within"]


def check_inputs(x: Tensor, bounds: Bounds) -> None:
    """Refuse inputs from which no search can start.

    Args:
        x: (B, ...) floating point.
        bounds: the range that every value must lie in.

    Raises:
        DataFormatError: wrong shape or dtype, or an image that is not finite or not in the bounds.

    Example:
        >>> check_inputs(torch.full((2, 1, 4, 4), 0.5), Bounds(0.0, 1.0))
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise DataFormatError(f"expected floating point images (B, C, H, W), got {x.dtype} {tuple(x.shape)}")
    if x.numel() == 0:
        return
    outside = bounds.outside(x)
    if outside.any():
        first = int(outside.nonzero()[0])
        low, high = float(x[first].min()), float(x[first].max())
        raise DataFormatError(
            f"{int(outside.sum())} of {len(x)} images (the first is number {first}, its values span {low:g}..{high:g}) "
            f"are NaN or outside the bounds [{bounds.low:g}, {bounds.high:g}]; "
            "repair or leave out these images, or give the estimator the bounds of your data set (with_bounds)"
        )


@contextmanager
def searching(model: nn.Module) -> Iterator[nn.Module]:
    """Make a model ready for gradients with respect to its input, and leave it as it was.

    Inside: evaluation mode, parameters frozen (so that none of them collects a gradient), autograd on even if
    the caller had switched it off. Afterwards every mode and every `requires_grad` is what it was.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield model
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def within(estimator: DistanceEstimator, bounds: Bounds) -> DistanceEstimator:
    """The estimator for inputs in these bounds; itself if it knows no bounds."""
    adapt = getattr(estimator, "with_bounds", None)
    return estimator if adapt is None else cast(DistanceEstimator, adapt(bounds))


def for_version(estimator: DistanceEstimator, fingerprint: str) -> DistanceEstimator:
    """The estimator with what it learned of one version alone; itself if it learns nothing.

    The cache's key is made of this, so that it does not depend on which other versions were fitted.

    Args:
        estimator: in the bounds of the version.
        fingerprint: `deepfailguard.identity.weights_fingerprint` of the version.

    Raises:
        NotFittedError: the estimator learns, but was not fitted to this version.
    """
    narrow = getattr(estimator, "of_version", None)
    return estimator if narrow is None else cast(DistanceEstimator, narrow(fingerprint))
