"""The paper's chest X-ray set COVIDX9A (COVIDx, version 9A)."""

from dataclasses import dataclass

from deepfailguard.data.base import Splits
from mydataset._published import PublishedSet

__all__ = ["COVIDX9A"]


@dataclass(frozen=True, slots=True)
class COVIDX9A:
    """Chest X-rays in [0, 1]; grey, repeated to three channels as in the paper.

    Attributes:
        root: folder with COVIDX9A/x_train, y_train, x_test, y_test (.npy or .pth), or with pictures as
            COVIDX9A/train/CLASS/ and COVIDX9A/test/CLASS/.
        limit: use at most so many training and test images, drawn with a fixed seed.
        size: H and W to resize to; None: arrays stay as stored, pictures become 64 px.
    """

    root: str = "mydataset/data"
    limit: int | None = None
    size: int | None = None

    def load(self) -> Splits:
        """Read the arrays or pictures and split them."""
        return PublishedSet("covidx9a", "COVIDX9A", self.root, self.limit, self.size).load()
