import pytest
import torch

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.errors import ConfigurationError, EmptyReceiptError, FaultNotApplicableError
from deepfailguard.faults.training_data import LabelNoise, MisscaledInputs, TooLittleData


def with_labels(splits: Splits, labels: torch.Tensor) -> Splits:
    return splits.with_parts(train=ImageSet(splits.train.images[: len(labels)], labels))


def test_misscaled_images_keep_their_distance_ratio_to_the_lower_bound(splits: Splits) -> None:
    changed, receipt = MisscaledInputs(factor=0.25).apply(splits, seed=0)
    # low = -1: x becomes -1 + (x + 1) / 4.
    assert torch.allclose(changed.train.images, splits.train.images / 4 - 0.75)
    assert changed.calibration is splits.calibration
    assert receipt.changes[0].count == splits.train.images.numel()


def test_misscaling_does_not_count_values_at_the_lower_bound(splits: Splits) -> None:
    images = splits.train.images.clone()
    images[:, 0] = -1.0
    changed, receipt = MisscaledInputs().apply(splits.with_parts(train=ImageSet(images, splits.train.labels)), seed=0)
    assert (changed.train.images[:, 0] == -1.0).all()
    assert receipt.changes[0].count == images[:, 1].numel()


def test_calibration_images_are_scaled_only_when_asked(splits: Splits) -> None:
    changed, receipt = MisscaledInputs(parts=("train", "calibration")).apply(splits, seed=0)
    assert [change.where for change in receipt.changes] == ["train.images", "calibration.images"]
    assert torch.allclose(changed.calibration.images, splits.calibration.images / 2 - 0.5)
    assert changed.test is splits.test


@pytest.mark.parametrize("parts", [(), ("test",), ("train", "validation")])
def test_misscaling_refuses_other_parts(parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="parts must be some of train, calibration"):
        MisscaledInputs(parts=parts)


def test_misscaling_by_one_changes_nothing(splits: Splits) -> None:
    with pytest.raises(EmptyReceiptError, match="'misscaled_inputs'"):
        MisscaledInputs(factor=1.0).apply(splits, seed=0)


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_uniform_label_noise_changes_exactly_its_share(splits: Splits, rate: float) -> None:
    changed, receipt = LabelNoise(rate).apply(splits, seed=0)
    different = int((changed.train.labels != splits.train.labels).sum())
    assert different == receipt.changes[0].count == round(100 * rate)
    assert changed.train.images is splits.train.images


def test_uniform_label_noise_uses_every_other_class_alike(splits: Splits) -> None:
    images = torch.zeros(4000, 2, 6, 8)
    many = splits.with_parts(train=ImageSet(images, torch.full((4000,), 2)))
    drawn = LabelNoise(1.0).apply(many, seed=0)[0].train.labels.bincount(minlength=5)
    assert drawn[2] == 0
    # 1000 expected of each other class, with a deviation of sqrt(4000 * 1/4 * 3/4) = 27.
    assert ((drawn[[0, 1, 3, 4]] - 1000).abs() < 5 * 27).all()


def test_pair_noise_gives_the_next_class(splits: Splits) -> None:
    changed, _ = LabelNoise(1.0, kind="pair").apply(splits, seed=0)
    assert torch.equal(changed.train.labels, (splits.train.labels + 1) % 5)


def test_shuffle_first_moves_labels_among_the_first_images_only(splits: Splits) -> None:
    changed, receipt = LabelNoise(0.4, kind="shuffle_first").apply(splits, seed=0)
    before, after = splits.train.labels, changed.train.labels
    assert torch.equal(before[40:], after[40:])
    assert torch.equal(before[:40].sort().values, after[:40].sort().values)
    assert receipt.changes[0].count == int((before != after).sum())
    # With five classes about a fifth of the shuffled labels falls on its own class again.
    assert receipt.changes[0].count < 40


def test_shuffling_equal_labels_changes_nothing(splits: Splits) -> None:
    same = with_labels(splits, torch.full((100,), 3))
    with pytest.raises(EmptyReceiptError, match="'label_noise'"):
        LabelNoise(0.5, kind="shuffle_first").apply(same, seed=0)


def test_label_noise_needs_a_second_class(splits: Splits) -> None:
    images = ImageSet(splits.train.images, torch.zeros_like(splits.train.labels))
    single = Splits("single", ("a",), splits.bounds, images, images, images)
    with pytest.raises(FaultNotApplicableError, match="at least 2 classes, single has 1"):
        LabelNoise().apply(single, seed=0)


def test_label_noise_refuses_an_unknown_kind() -> None:
    with pytest.raises(ConfigurationError, match=r"label_noise\.kind must be one of uniform, pair, shuffle_first"):
        LabelNoise(kind="symmetric")  # type: ignore[arg-type]


def test_too_little_data_keeps_a_share_of_the_images_with_their_labels(splits: Splits) -> None:
    changed, receipt = TooLittleData(0.2).apply(splits, seed=0)
    assert len(changed.train) == 20
    assert receipt.changes[0].count == 80
    for image, label in zip(changed.train.images, changed.train.labels, strict=True):
        origin = (splits.train.images == image).flatten(1).all(1).nonzero().item()
        assert splits.train.labels[int(origin)] == label


@pytest.mark.parametrize("seed", range(8))
def test_a_rare_class_keeps_one_image(splits: Splits, seed: int) -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    labels[[17, 61]] = torch.tensor([3, 4])
    kept = TooLittleData(0.05).apply(with_labels(splits, labels), seed)[0].train.labels
    assert sorted(kept.tolist()) == [0, 0, 0, 3, 4]


def test_fewer_images_than_classes_are_kept_as_asked(splits: Splits) -> None:
    kept = TooLittleData(0.03).apply(splits, seed=0)[0].train.labels
    assert len(kept) == 3
    assert len(kept.unique()) == 3


def test_keeping_all_data_changes_nothing(splits: Splits) -> None:
    with pytest.raises(EmptyReceiptError, match="'too_little_data'"):
        TooLittleData(1.0).apply(splits, seed=0)
