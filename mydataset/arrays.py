"""Your own arrays or tensors in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepfailguard.data.assembling import RawParts, assemble, stratified_test
from deepfailguard.data.base import Splits
from deepfailguard.data.converting import ImageForm, Layout, RawImages

__all__ = ["Arrays"]

Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Images and labels that you hold as numpy arrays, torch tensors or lists.

    Images are bytes 0..255 or floats 0..1, (B, H, W), (B, C, H, W) or (B, H, W, C); labels whole numbers from 0.
    Your arrays are copied, never changed.

    Attributes:
        train: images and labels; 20 % become the calibration part unless that is given.
        test: images and labels; None: 20 % of each class of `train` (seed 42).
        calibration: images and labels; None: 20 % of what remains of `train` (seed 42).
        classes: the K class names in label order; None: "0" to the largest label.
        name: what versions are filed under.
        layout: ``nchw`` or ``nhwc`` where ``auto`` cannot tell, as for 3 x 3 images or 4 channels.

    >>> images, labels = np.arange(250, dtype=np.uint8).reshape(10, 5, 5), np.arange(10) % 2
    >>> Arrays(train=(images, labels)).load().input_shape
    (1, 5, 5)
    """

    train: Pair
    test: Pair | None = None
    calibration: Pair | None = None
    classes: Sequence[str] | None = None
    name: str = "arrays"
    layout: Layout = "auto"

    def load(self) -> Splits:
        """Convert the arrays and split them."""
        training = _raw("train", self.train)
        parts = stratified_test(training) if self.test is None else RawParts(training, _raw("test", self.test))
        if self.calibration is not None:
            parts = RawParts(parts.training, parts.test, _raw("calibration", self.calibration))
        return assemble(self.name, parts, self.classes, form=ImageForm(layout=self.layout))


def _raw(where: str, pair: Pair) -> RawImages:
    images, labels = pair
    return RawImages(where, _array(images), _array(labels))


def _array(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # numpy has no bfloat16
    return np.asarray(values)
