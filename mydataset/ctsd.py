"""The paper's traffic sign set CTSD."""

from dataclasses import dataclass

from deepfailguard.data.base import Splits
from mydataset._published import PublishedSet

__all__ = ["CTSD"]


@dataclass(frozen=True, slots=True)
class CTSD:
    """Colour images of traffic signs in [0, 1].

    Attributes:
        root: folder with CTSD/x_train, y_train, x_test, y_test (.npy or .pth), or with pictures as
            CTSD/train/CLASS/ and CTSD/test/CLASS/.
        limit: use at most so many training and test images, drawn with a fixed seed.
        size: H and W to resize to; None: arrays stay as stored, pictures become 64 px.
    """

    root: str = "mydataset/data"
    limit: int | None = None
    size: int | None = None

    def load(self) -> Splits:
        """Read the arrays or pictures and split them."""
        return PublishedSet("ctsd", "CTSD", self.root, self.limit, self.size).load()
