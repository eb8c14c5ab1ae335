from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.errors import ConfigurationError, EmptyReceiptError, FaultNotApplicableError, SplitOverlapError
from deepfailguard.faults.test_data import NaturalShiftV4, NaturalShiftV6, NoisyInputs, ReplacedTestSet
from deepfailguard.types import Bounds

SHELF: dict[str, Splits] = {}


@dataclass(frozen=True)
class Shelved:
    """A source of splits that a test put on the shelf; its settings are JSON, as those of any source."""

    name: str

    def load(self) -> Splits:
        return SHELF[self.name]


@pytest.fixture(autouse=True)
def empty_shelf() -> Iterator[None]:
    yield
    SHELF.clear()


def source_of(splits: Splits) -> Shelved:
    SHELF["other"] = splits
    return Shelved("other")


def later(splits: Splits) -> Shelved:
    """Thirty darker images."""
    test = ImageSet(splits.test.images[:30] / 2, splits.test.labels[:30])
    return source_of(replace(splits, name="later", test=test))


def in_the_middle(splits: Splits) -> Splits:
    """Test images so far from the bounds that no noise of a test is cut off."""
    return splits.with_parts(test=ImageSet(torch.zeros(400, 2, 6, 8), torch.arange(400) % 5))


def test_fixed_noise_has_the_deviation_that_was_asked_for(splits: Splits) -> None:
    changed, receipt = NoisyInputs(sigma=0.05, varied=False).apply(in_the_middle(splits), seed=0)
    # A share of the width of the bounds, which is 2.
    assert changed.test.images.std().item() == pytest.approx(0.1, rel=0.02)
    assert changed.test.images.mean().item() == pytest.approx(0.0, abs=0.002)
    assert receipt.changes[0].count == changed.test.images.numel()


def test_varied_noise_has_a_deviation_per_image_between_zero_and_sigma(splits: Splits) -> None:
    changed, _ = NoisyInputs(sigma=0.05).apply(in_the_middle(splits), seed=0)
    deviations = changed.test.images.flatten(1).std(1)
    assert deviations.max() < 0.1 * 1.25
    # Uniform in [0, 0.1]: mean 0.05 and deviation 0.1 / sqrt(12).
    assert deviations.mean().item() == pytest.approx(0.05, rel=0.1)
    assert deviations.std().item() == pytest.approx(0.1 / 12**0.5, rel=0.1)


def test_noise_is_cut_off_at_the_bounds_and_only_real_changes_are_counted(splits: Splits) -> None:
    at_the_end = splits.with_parts(test=ImageSet(torch.ones(400, 2, 6, 8), torch.arange(400) % 5))
    changed, receipt = NoisyInputs().apply(at_the_end, seed=0)
    assert changed.test.images.max() <= 1.0
    assert receipt.changes[0].count == int((changed.test.images != 1.0).sum())
    # Half of the noise points outwards and is cut off entirely.
    assert receipt.changes[0].count == pytest.approx(changed.test.images.numel() / 2, rel=0.03)


def test_noise_leaves_labels_and_other_parts(splits: Splits) -> None:
    changed, _ = NoisyInputs().apply(splits, seed=0)
    assert changed.test.labels is splits.test.labels
    assert changed.train is splits.train
    assert changed.calibration is splits.calibration


def test_noise_too_small_for_the_format_changes_nothing(splits: Splits) -> None:
    with pytest.raises(EmptyReceiptError, match="'noisy_inputs'"):
        NoisyInputs(sigma=1e-12).apply(splits, seed=0)


def test_noise_needs_a_size() -> None:
    with pytest.raises(ConfigurationError, match=r"noisy_inputs\.sigma must be a finite number above 0"):
        NoisyInputs(sigma=0.0)


def test_the_test_part_is_replaced_and_nothing_else(splits: Splits) -> None:
    changed, receipt = NaturalShiftV4(later(splits)).apply(splits, seed=0)
    assert torch.equal(changed.test.images, splits.test.images[:30] / 2)
    assert changed.train is splits.train
    assert changed.name == "tiny"
    assert receipt.fault == "natural_shift_v4"
    assert receipt.settings["source"]["name"] == "other"
    assert (receipt.changes[0].before, receipt.changes[0].after) == ("40 images of tiny", "30 of later")
    # All 40 went and 30 others came.
    assert receipt.changes[0].count == 70


def test_the_two_versions_of_the_shift_are_different_faults(splits: Splits) -> None:
    assert (NaturalShiftV4.number, NaturalShiftV6.number, ReplacedTestSet.number) == (11, 12, None)
    assert NaturalShiftV4(later(splits)) != NaturalShiftV6(later(splits))


def test_the_same_images_in_another_order_are_no_shift(splits: Splits) -> None:
    reordered = splits.with_parts(test=splits.test.take(torch.arange(39, -1, -1)))
    with pytest.raises(EmptyReceiptError, match="'replaced_test_set'"):
        ReplacedTestSet(source_of(reordered)).apply(splits, seed=0)


def test_other_labels_for_the_same_images_are_counted(splits: Splits) -> None:
    labels = splits.test.labels.clone()
    labels[3] = (labels[3] + 1) % 5
    relabelled = splits.with_parts(test=ImageSet(splits.test.images, labels))
    _, receipt = ReplacedTestSet(source_of(relabelled)).apply(splits, seed=0)
    assert receipt.changes[0].count == 2


def test_test_images_that_were_trained_on_are_refused(splits: Splits) -> None:
    leaking = splits.with_parts(test=splits.train.take(slice(0, 30)), train=splits.test)
    with pytest.raises(SplitOverlapError, match="30 images stand in both train and test"):
        ReplacedTestSet(source_of(leaking)).apply(splits, seed=0)


def test_another_task_is_refused(splits: Splits) -> None:
    smaller = ImageSet(splits.test.images[..., :4], splits.test.labels)
    for different, what in (
        (replace(splits, classes=tuple("vwxyz")), "classes"),
        (replace(splits, bounds=Bounds(-2.0, 1.0)), "bounds"),
        (splits.with_parts(test=smaller), "input_shape"),
    ):
        with pytest.raises(FaultNotApplicableError, match=f"expected the {what} "):
            ReplacedTestSet(source_of(different)).apply(splits, seed=0)
