"""Image sets and splits refuse what would make later figures wrong."""

import hashlib
from typing import Any

import pytest
import torch

from deepfailguard.data.base import ImageSet, Splits, check_disjoint
from deepfailguard.data.hashing import HASH_BYTES, image_hashes
from deepfailguard.errors import DataFormatError, SplitOverlapError
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds


def images(count: int, seed: int = 0) -> ImageSet:
    return ImageSet(torch.rand(count, 1, 4, 4, generator=generator(seed, "images")), torch.arange(count) % 3)


def splits(**parts: Any) -> Splits:
    given = {"train": images(30), "calibration": images(10, 1), "test": images(20, 2)} | parts
    return Splits("x", ("a", "b", "c"), Bounds(), **given)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(2).long(), r"float32 tensor \(B, C, H, W\), got torch.float32 \(2, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4).double(), torch.zeros(2).long(), r"got torch\.float64"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3).long(), r"int64 tensor \(2,\), got torch.int64 \(3,\)"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).int(), r"got torch\.int32"),
    ],
)
def test_an_image_set_checks_shape_and_type(pixels: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        ImageSet(pixels, labels)


def test_a_fingerprint_depends_on_every_pixel_and_label() -> None:
    whole = images(5)
    pixels, labels = whole.images.clone(), whole.labels.clone()
    assert ImageSet(pixels, labels).fingerprint == whole.fingerprint
    pixels[4, 0, 3, 3] += 1e-6
    labels[4] += 1
    assert len({ImageSet(pixels, whole.labels).fingerprint, ImageSet(whole.images, labels).fingerprint}) == 2
    assert whole.fingerprint not in {ImageSet(pixels, whole.labels).fingerprint, images(5, 1).fingerprint}


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1, float("inf")])
def test_values_outside_of_the_bounds_are_refused(value: float) -> None:
    bad = images(20, 2).images.clone()
    bad[7, 0, 1, 1] = value
    with pytest.raises(
        DataFormatError, match=r"x: 1 test images \(the first is number 7\).*outside the bounds \[0.0, 1.0\]"
    ):
        splits(test=ImageSet(bad, images(20).labels))


def test_labels_beyond_the_classes_and_empty_parts_are_refused() -> None:
    for label in (-1, 3):
        with pytest.raises(DataFormatError, match=r"train labels span .* but there are 3 classes"):
            splits(train=ImageSet(images(2).images, torch.tensor([label, 0])))
    with pytest.raises(DataFormatError, match="x: the calibration split is empty"):
        splits(calibration=images(10, 1).take(slice(0, 0)))


def test_other_parts_leave_the_rest_alone() -> None:
    first = splits()
    second = first.with_parts(test=images(5, 9))
    assert (len(second.test), len(first.test)) == (5, 20)
    assert second.train is first.train
    assert second.input_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("parts", "where"),
    [
        ({"test": images(30).take(slice(0, 20))}, "train and test"),
        ({"calibration": images(20, 2).take(slice(5, 15))}, "calibration and test"),
        ({"calibration": images(30).take(slice(20, 30))}, "train and calibration"),
    ],
)
def test_shared_images_are_refused(parts: Any, where: str) -> None:
    check_disjoint(splits())
    with pytest.raises(SplitOverlapError, match=f"x: [0-9]+ images stand in both {where}"):
        check_disjoint(splits(**parts))


def test_a_few_natural_duplicates_are_let_through() -> None:
    test, train = images(200, 2), images(300)
    for count, refused in ((4, False), (5, True)):
        both = ImageSet(torch.cat([train.images[:count], test.images[count:]]), test.labels)
        leaky = splits(train=train, test=both)
        if refused:
            with pytest.raises(SplitOverlapError, match="5 images stand in both train and test"):
                check_disjoint(leaky)
        else:
            check_disjoint(leaky)


def test_image_hashes_are_blake2_of_header_and_bytes() -> None:
    pixels = images(3).images
    header = b"(1, 4, 4)|torch.float32|"
    expected = [hashlib.blake2b(header + x.numpy().tobytes(), digest_size=HASH_BYTES).digest() for x in pixels]
    assert image_hashes(pixels) == expected
    assert image_hashes(pixels.transpose(2, 3)) == image_hashes(pixels.transpose(2, 3).contiguous())
    assert image_hashes(pixels.reshape(3, 1, 2, 8)) != expected
