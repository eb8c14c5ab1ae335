"""Splits out of raw parts."""

import numpy as np
import pytest
import torch

from deepfailguard.data.assembling import RawParts, assemble, numbered_classes, stratified_test
from deepfailguard.data.converting import ImageForm, RawImages
from deepfailguard.errors import DataFormatError, SplitOverlapError
from deepfailguard.seeding import generator


def part(count: int, seed: int = 0, size: int = 6, classes: int = 4) -> RawImages:
    images = torch.rand(count, size, size, generator=generator(seed, "part")).numpy()
    return RawImages(f"part {seed}", images, np.arange(count) % classes)


def test_training_images_are_divided_and_none_is_lost() -> None:
    training, test = part(50), part(20, seed=1)
    splits = assemble("x", RawParts(training, test))
    together = torch.cat([splits.train.images, splits.calibration.images])
    assert (len(splits.train), len(splits.calibration), len(splits.test)) == (40, 10, 20)
    assert sorted(together.sum((1, 2, 3)).tolist()) == sorted(torch.from_numpy(training.images).sum((1, 2)).tolist())
    assert splits.classes == ("0", "1", "2", "3")
    assert torch.equal(splits.test.images[:, 0], torch.from_numpy(test.images))


def test_a_calibration_part_of_its_own_leaves_the_training_part_whole() -> None:
    splits = assemble("x", RawParts(part(50), part(20, seed=1), part(10, seed=2)), limit=30)
    assert (len(splits.train), len(splits.calibration), len(splits.test)) == (30, 10, 20)
    assert torch.equal(splits.train.images[:, 0], torch.from_numpy(part(50).images[:30]))


def test_a_limit_takes_the_first_images_and_keeps_the_classes() -> None:
    training = part(50)
    training.labels[-1] = 6
    splits = assemble("x", RawParts(training, part(20, seed=1)), limit=5)
    assert splits.classes == tuple("0123456")
    first = {float(image.sum()) for image in torch.from_numpy(training.images[:5])}
    together = torch.cat([splits.train.images, splits.calibration.images])
    assert {float(image.sum()) for image in together[:, 0]} == first


def test_the_scale_does_not_depend_on_the_limit() -> None:
    training, test = part(50), part(20, seed=1)
    bright = RawParts(*(RawImages(p.where, p.images * 255, p.labels) for p in (training, test)))
    bright.training.images[:5] /= 4  # the first images alone would not show that these are 0..255
    short = assemble("x", bright, limit=5)
    assert short.train.images.max() <= 0.26


def test_leaking_parts_are_refused() -> None:
    with pytest.raises(SplitOverlapError, match="stand in both"):
        assemble("x", RawParts(part(50), part(50)))


def test_parts_of_different_sizes_are_refused_unless_resized() -> None:
    parts = RawParts(part(50), part(20, seed=1, size=8))
    with pytest.raises(DataFormatError, match=r"one shape in all parts, got \[\(1, 6, 6\), \(1, 8, 8\)\]; resize"):
        assemble("x", parts)
    assert assemble("x", parts, form=ImageForm(size=5, channels=3)).input_shape == (3, 5, 5)


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(DataFormatError, match=r"labels span 0\.\.3, but there are 2 classes"):
        assemble("x", RawParts(part(50), part(20, seed=1)), classes=["a", "b"])
    damaged = part(50)
    damaged.labels[3] = 10**9
    with pytest.raises(DataFormatError, match=r"part 0, part 1: the largest label is 1000000000.*only 70 images"):
        numbered_classes(RawParts(damaged, part(20, seed=1)))


def test_every_class_has_its_share_of_a_stratified_test_part() -> None:
    images = part(100)
    images.labels[:] = np.repeat([0, 1, 2, 3, 4], [50, 30, 14, 5, 1])
    parts = stratified_test(images)
    assert np.bincount(parts.test.labels, minlength=5).tolist() == [10, 6, 3, 1, 0]
    assert np.bincount(parts.training.labels, minlength=5).tolist() == [40, 24, 11, 4, 1]
    assert list(parts.test.labels) != sorted(parts.test.labels)
    both = np.concatenate([parts.training.images, parts.test.images])
    assert sorted(both.sum((1, 2)).tolist()) == sorted(images.images.sum((1, 2)).tolist())
    np.testing.assert_array_equal(stratified_test(images).test.images, parts.test.images)


def test_classes_of_one_image_each_cannot_give_a_test_part() -> None:
    with pytest.raises(DataFormatError, match="part 0: no class has two images"):
        stratified_test(part(4))
