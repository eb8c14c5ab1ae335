"""Handwritten digits of 8 px that come with scikit-learn: nothing needs to be fetched."""

from dataclasses import dataclass

import numpy as np

from deepfailguard.data.assembling import assemble, stratified_test
from deepfailguard.data.base import Splits
from deepfailguard.data.converting import RawImages

__all__ = ["Digits"]

_BRIGHTEST = 16.0


@dataclass(frozen=True, slots=True)
class Digits:
    """1,797 grey images (1, 8, 8) in [0, 1] of 10 digits; 20 % of each digit are the test part (seed 42).

    Attributes:
        limit: use at most the first `limit` training and test images.
    """

    limit: int | None = None

    def load(self) -> Splits:
        """Take the images from scikit-learn and split them."""
        from sklearn.datasets import load_digits  # heavy: only who loads the data pays for it

        data = load_digits()
        images = RawImages("scikit-learn's digits", data.images.astype(np.float32), data.target, _BRIGHTEST)
        digits = tuple(str(digit) for digit in range(10))
        return assemble("digits", stratified_test(images), digits, self.limit)
