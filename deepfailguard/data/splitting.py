"""How a training part is divided: 80 % train, 20 % calibration, seed 42, as in the paper."""

import torch

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.data.hashing import image_hashes
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.seeding import generator

__all__ = ["CALIBRATION_SHARE", "SPLIT_SEED", "shorten", "take_first", "train_and_calibration"]

CALIBRATION_SHARE = 0.2
SPLIT_SEED = 42


def train_and_calibration(
    images: ImageSet, calibration_share: float = CALIBRATION_SHARE, seed: int = SPLIT_SEED
) -> tuple[ImageSet, ImageSet]:
    """Divide a training part at random into a train part and a calibration part that share no image.

    Images that occur several times may fall in both; the calibration part leaves out those that are in train.
    """
    if not 0 < calibration_share < 1:
        raise ConfigurationError(f"calibration_share must lie between 0 and 1, got {calibration_share}")
    calibration_size = round(len(images) * calibration_share)
    if not 0 < calibration_size < len(images):
        raise DataFormatError(f"{len(images)} images are too few to split off {calibration_share:.0%} for calibration")
    order = torch.randperm(len(images), generator=generator(seed, "split"))
    train, calibration = images.take(order[calibration_size:]), images.take(order[:calibration_size])
    trained_on = set(image_hashes(train.images))
    new = torch.tensor([key not in trained_on for key in image_hashes(calibration.images)])
    if not new.any():
        raise DataFormatError("every calibration image is also a training image; the images are copies of each other")
    return train, calibration if new.all() else calibration.take(new.nonzero().flatten())


def take_first(images: ImageSet, limit: int | None) -> ImageSet:
    """At most the first `limit` images (all of them for None): for quick tries on a part of a data set."""
    return images if limit is None else images.take(slice(0, limit))


def shorten(splits: Splits, calibration: int | None = None, test: int | None = None) -> Splits:
    """The splits with at most so many calibration and test images; the train part stays whole."""
    return splits.with_parts(
        calibration=take_first(splits.calibration, calibration), test=take_first(splits.test, test)
    )
