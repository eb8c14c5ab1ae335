import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.errors import ConfigurationError, EmptyReceiptError
from deepfailguard.faults.image_shifts import CameraTilt, DefocusBlur, LowLight


def with_test(splits: Splits, images: torch.Tensor) -> Splits:
    return splits.with_parts(test=ImageSet(images, torch.zeros(len(images), dtype=torch.int64)))


def test_blur_equals_scipys(splits: Splits) -> None:
    changed, receipt = DefocusBlur(radius=0.2).apply(splits, seed=0)
    deviation = 0.2 * 6
    # Reach of 4 on either side, as the ceiling of three deviations.
    sigma, reach = (0, 0, deviation, deviation), 4
    expected = gaussian_filter(splits.test.images.double().numpy(), sigma, mode="nearest", truncate=reach / deviation)
    assert np.allclose(changed.test.images.numpy(), expected, atol=1e-6)
    assert receipt.changes[0].count == int((changed.test.images != splits.test.images).sum())


def test_blur_works_on_images_smaller_than_its_kernel(splits: Splits) -> None:
    images = torch.tensor([[[[-1.0, 1.0]] * 2] * 2])
    narrow = Splits("narrow", splits.classes, splits.bounds, *[ImageSet(images, torch.zeros(1, dtype=torch.int64))] * 3)
    changed, _ = DefocusBlur(radius=2.0).apply(narrow, seed=0)
    left, right = changed.test.images[0, 0, 0].tolist()
    # By symmetry the two columns stay opposite; the blur brings them together.
    assert left == pytest.approx(-right, abs=1e-6)
    assert -0.2 < left < 0


def test_low_light_equals_its_formula(splits: Splits) -> None:
    changed, _ = LowLight(contrast=0.4, brightness=0.25).apply(splits, seed=0)
    x = splits.test.images.double().numpy()
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    expected = -1 + 0.25 * (mean + 0.4 * (x - mean) + 1)
    assert np.allclose(changed.test.images.numpy(), expected, atol=1e-6)


def test_full_light_changes_nothing(splits: Splits) -> None:
    with pytest.raises(EmptyReceiptError, match="'low_light'"):
        LowLight(contrast=1.0, brightness=1.0).apply(splits, seed=0)


def test_a_tilt_keeps_what_has_no_direction(splits: Splits) -> None:
    y, x = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    disc = torch.exp(-(x**2 + y**2) / 40).expand(4, 2, 33, 33)
    square = Splits("disc", splits.classes, splits.bounds, *[ImageSet(disc, torch.zeros(4, dtype=torch.int64))] * 3)
    changed, _ = CameraTilt(degrees=180).apply(square, seed=0)
    assert torch.allclose(changed.test.images, disc, atol=0.015)


def test_a_tilt_moves_a_point_on_its_circle_also_in_oblong_images(splits: Splits) -> None:
    y, x = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(41.0) - 20, indexing="ij")
    spot = torch.exp(-((x - 6) ** 2 + y**2) / 4).expand(50, 1, 21, 41)
    oblong = Splits("spot", splits.classes, splits.bounds, *[ImageSet(spot, torch.zeros(50, dtype=torch.int64))] * 3)
    images = CameraTilt(degrees=30).apply(oblong, seed=0)[0].test.images
    mass = images.sum(dim=(1, 2, 3))
    centre_x, centre_y = ((images * axis).sum(dim=(1, 2, 3)) / mass for axis in (x, y))
    assert torch.allclose(torch.hypot(centre_x, centre_y), torch.tensor(6.0), atol=0.05)
    angles = torch.rad2deg(torch.atan2(centre_y, centre_x))
    assert angles.abs().max() <= 30.5
    # Fifty uniform angles spread to both sides.
    assert angles.min() < -15
    assert angles.max() > 15


def test_shifts_leave_everything_but_the_test_images(splits: Splits) -> None:
    for fault in (DefocusBlur(), LowLight(), CameraTilt()):
        changed, _ = fault.apply(splits, seed=0)
        assert changed.train is splits.train
        assert changed.calibration is splits.calibration
        assert changed.test.labels is splits.test.labels


def test_images_at_the_bounds_stay_inside(splits: Splits) -> None:
    checks = ((torch.arange(48).view(6, 8) % 2) * 2.0 - 1).expand(10, 2, 6, 8)
    for fault in (DefocusBlur(), LowLight(), CameraTilt()):
        images = fault.apply(with_test(splits, checks), seed=0)[0].test.images
        assert not splits.bounds.outside(images).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DefocusBlur(radius=0), r"defocus_blur\.radius must be a finite number above 0"),
        (lambda: LowLight(contrast=0), r"low_light\.contrast must lie in \(0, 1\]"),
        (lambda: LowLight(brightness=1.2), r"low_light\.brightness must lie in \(0, 1\]"),
        (lambda: CameraTilt(degrees=200), r"camera_tilt\.degrees / 180 must lie in \(0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
