"""The paper's traffic sign set TSCD."""

from dataclasses import dataclass

from deepfailguard.data.base import Splits
from mydataset._published import PublishedSet

__all__ = ["TSCD"]


@dataclass(frozen=True, slots=True)
class TSCD:
    """Colour images of traffic signs in [0, 1].

    Attributes:
        root: folder with TSCD/x_train, y_train, x_test, y_test (.npy or .pth), or with pictures as
            TSCD/train/CLASS/ and TSCD/test/CLASS/.
        limit: use at most so many training and test images, drawn with a fixed seed.
        size: H and W to resize to; None: arrays stay as stored, pictures become 64 px.
    """

    root: str = "mydataset/data"
    limit: int | None = None
    size: int | None = None

    def load(self) -> Splits:
        """Read the arrays or pictures and split them."""
        return PublishedSet("tscd", "TSCD", self.root, self.limit, self.size).load()
