"""The 80/20 division."""

import pytest
import torch

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.data.splitting import shorten, take_first, train_and_calibration
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.types import Bounds


def numbered(count: int) -> ImageSet:
    """Each image is its number by 1024, which float32 holds exactly."""
    return ImageSet(torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1) / 1024, torch.arange(count))


@pytest.mark.parametrize(("count", "calibration"), [(100, 20), (7, 1), (3, 1), (1437, 287)])
def test_every_image_goes_to_one_side(count: int, calibration: int) -> None:
    first, second = train_and_calibration(numbered(count))
    assert len(second) == calibration
    assert sorted(first.labels.tolist() + second.labels.tolist()) == list(range(count))
    assert torch.equal(first.images.flatten() * 1024, first.labels.float())


def test_the_division_depends_on_the_seed_alone() -> None:
    first, same, other = (train_and_calibration(numbered(100), seed=seed)[1].labels for seed in (42, 42, 43))
    assert torch.equal(first, same)
    assert torch.equal(first, train_and_calibration(numbered(100))[1].labels)
    assert not torch.equal(first, other)


def test_impossible_divisions_are_refused() -> None:
    for share in (0.0, 1.0, -0.2):
        with pytest.raises(ConfigurationError, match=f"between 0 and 1, got {share}"):
            train_and_calibration(numbered(10), share)
    with pytest.raises(DataFormatError, match="2 images are too few to split off 20%"):
        train_and_calibration(numbered(2))


def test_shortening_leaves_the_train_part_whole() -> None:
    splits = Splits("x", tuple(map(str, range(30))), Bounds(), numbered(30), numbered(20), numbered(10))
    short = shorten(splits, calibration=4, test=None)
    assert [len(part) for part in (short.train, short.calibration, short.test)] == [30, 4, 10]
    assert short.calibration.labels.tolist() == [0, 1, 2, 3]
    assert len(take_first(numbered(5), 9)) == 5
