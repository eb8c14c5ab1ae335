"""Scale, layout, channels and size of images, against torch's own arithmetic and PIL-free closed forms."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

from deepfailguard.data.converting import AS_STORED, ImageForm, RawImages, pixel_divisor, to_image_set
from deepfailguard.errors import ConfigurationError, DataFormatError


def raw(images: Any, dtype: Any = None, where: str = "x.npy") -> RawImages:
    pixels = np.asarray(images, dtype=dtype)
    return RawImages(where, pixels, np.arange(len(pixels)))


def spanning(low: float, high: float, dtype: Any) -> RawImages:
    return raw(np.linspace(low, high, 32).reshape(2, 1, 4, 4).astype(dtype))


@pytest.mark.parametrize(
    ("part", "divisor"),
    [
        (spanning(0, 255, np.uint8), 255),
        (spanning(0, 40, np.uint8), 255),
        (spanning(0, 255, np.int64), 255),
        (spanning(0, 255, np.float32), 255),
        (spanning(3, 180.5, np.float64), 255),
        (spanning(0, 1, np.float32), 1),
        (spanning(0, 0.2, np.float16), 1),
        (spanning(0, 1 + 1e-6, np.float64), 1),
    ],
    ids=str,
)
def test_the_scale_is_found_from_type_and_range(part: RawImages, divisor: float) -> None:
    assert pixel_divisor([part]) == divisor
    scaled = to_image_set(part, divisor).images
    expected = torch.tensor(part.images.astype(np.float32) / divisor).clamp(max=1)
    assert torch.equal(scaled, expected)


@pytest.mark.parametrize(
    "parts",
    [
        [spanning(-1, 1, np.float32)],
        [spanning(0, 2.5, np.float32)],
        [spanning(0, 128, np.float32)],
        [spanning(0, 256, np.float32)],
        [spanning(0, 16, np.int64)],
        [spanning(0, 1, np.uint8)],
        [raw([[[0.5, np.nan]]])],
        [raw([[[0.5, np.inf]]])],
        [spanning(0, 1, np.float32), raw([[[0.5, np.nan]]], np.float32)],
        [spanning(0, 255, np.float32), spanning(0, 1, np.float32)],
        [spanning(0, 1, np.float32), spanning(0, 255, np.float32)],
    ],
    ids=lambda parts: " and ".join(f"{p.images.dtype} {p.images.min():.3g}..{p.images.max():.3g}" for p in parts),
)
def test_a_scale_that_is_not_clear_is_refused(parts: list[RawImages]) -> None:
    with pytest.raises(DataFormatError, match=r"x\.npy.*cannot tell the scale of .* that span .*Scale them"):
        pixel_divisor(parts)


def test_parts_of_different_types_are_refused() -> None:
    with pytest.raises(DataFormatError, match="one number type in all parts, got float32, uint8"):
        pixel_divisor([spanning(0, 255, np.uint8), spanning(0, 1, np.float32)])
    with pytest.raises(DataFormatError, match="one number type in all parts, got complex64"):
        pixel_divisor([spanning(0, 1, np.complex64)])


def test_what_was_assumed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="deepfailguard.data.converting"):
        pixel_divisor([spanning(0, 255, np.uint8)])
        pixel_divisor([spanning(0, 1, np.float32)])
    assert caplog.messages == ["x.npy: taken as bytes 0..255", "x.npy: taken as scaled to 0..1 already"]


def test_channels_are_found_wherever_they_are() -> None:
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    expected = torch.from_numpy(pixels).float() / 255
    assert torch.equal(to_image_set(raw(pixels), 255).images, expected)
    assert torch.equal(to_image_set(raw(pixels.transpose(0, 2, 3, 1)), 255).images, expected)
    assert torch.equal(to_image_set(raw(pixels[:, 0]), 255).images, expected[:, :1])
    assert to_image_set(raw(pixels.transpose(0, 2, 3, 1)), 255).images.is_contiguous()


def test_a_layout_that_is_not_clear_must_be_said() -> None:
    for shape in ((2, 3, 5, 3), (2, 4, 6, 6)):
        with pytest.raises(DataFormatError, match=r"1 or 3 channels in either.*say layout=nchw or layout=nhwc"):
            to_image_set(raw(np.zeros(shape)), 1)
    assert to_image_set(raw(np.zeros((2, 3, 5, 3))), 1, ImageForm(layout="nhwc")).images.shape == (2, 3, 3, 5)
    assert to_image_set(raw(np.zeros((2, 4, 6, 6))), 1, ImageForm(layout="nchw")).images.shape == (2, 4, 6, 6)


def test_grey_images_are_repeated_and_colour_is_not_dropped() -> None:
    grey = spanning(0, 1, np.float32)
    colour = to_image_set(grey, 1, ImageForm(channels=3)).images
    assert torch.equal(colour, torch.from_numpy(grey.images).expand(-1, 3, -1, -1))
    with pytest.raises(DataFormatError, match=r"x\.npy: expected images of 1 or 1 channels, got 3"):
        to_image_set(raw(np.zeros((1, 3, 4, 4))), 1, ImageForm(channels=1))


def test_halving_the_size_keeps_a_constant_and_a_mean() -> None:
    constant = raw(np.full((1, 1, 8, 6), 0.25))
    assert torch.allclose(to_image_set(constant, 1, ImageForm(size=3)).images, torch.full((1, 1, 3, 3), 0.25))
    stripes = raw(np.tile([0.0, 1.0], (1, 1, 16, 8)))
    shrunk = to_image_set(stripes, 1, ImageForm(size=4)).images
    assert (shrunk - 0.5).abs().max() < 0.1  # without smoothing the stripes would alias to 0 or 1
    assert to_image_set(stripes, 1, ImageForm(size=16)).images.unique().tolist() == [0, 1]


def test_the_callers_arrays_are_neither_changed_nor_shared() -> None:
    part = spanning(0, 1, np.float32)
    before = part.images.copy()
    to_image_set(part, 1, AS_STORED).images.fill_(7)
    np.testing.assert_array_equal(part.images, before)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 4)), np.zeros(3, int), r"expected images .*got the shape \(3, 4\)"),
        (np.zeros((0, 4, 4)), np.zeros(0, int), r"with B >= 1, got the shape \(0, 4, 4\)"),
        (np.zeros((3, 4, 4)), np.zeros(2, int), r"each of the 3 images, got labels of dtype int64 and shape \(2,\)"),
        (np.zeros((3, 4, 4)), np.zeros(3), "got labels of dtype float64"),
        (np.zeros((3, 4, 4)), np.zeros((3, 10), int), r"and shape \(3, 10\)"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=f"y_train: .*{message}"):
        RawImages("y_train", images, labels)


def test_labels_in_a_column_are_taken() -> None:
    part = RawImages("x", np.zeros((2, 3, 3)), np.array([[1], [0]], dtype=np.uint8))
    labels = to_image_set(part, 1).labels
    assert labels.tolist() == [1, 0]
    assert labels.dtype == torch.int64


def test_a_draw_is_a_fixed_sample_and_a_longer_one_contains_it() -> None:
    part = raw(np.zeros((100, 2, 2)))
    short, long = part.draw(10).labels, part.draw(30).labels
    assert long[:10].tolist() == short.tolist() == part.draw(10).labels.tolist()
    assert len(set(long.tolist())) == 30
    assert short.tolist() != list(range(10))
    assert part.draw(None) is part
    with pytest.raises(ConfigurationError, match="limit must be at least 1, or None for all images, got -3"):
        part.draw(-3)
