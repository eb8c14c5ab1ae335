import pytest
import torch

from deepfailguard.errors import EmptyReceiptError
from deepfailguard.faults.receipts import label_change, pixel_change, receipt_of
from deepfailguard.faults.training_data import LabelNoise
from deepfailguard.types import Change


def test_pixels_that_stayed_equal_are_not_counted() -> None:
    before = torch.zeros(3, 1, 2, 2)
    after = before.clone()
    after[1, 0, 1, 0] = 0.5
    change = pixel_change("test", before, after)
    assert change == Change("test.images", change.before, change.after, 1)
    assert change.before == "3 images of mean 0.0000 and deviation 0.0000"
    assert "mean 0.0417" in change.after


def test_labels_are_shown_before_and_after() -> None:
    before = torch.tensor([0, 1, 2, 3, 4, 0])
    after = torch.tensor([0, 2, 3, 4, 0, 0])
    assert label_change("train", before, after) == Change("train.labels", "1, 2, 3, ...", "2, 3, 4, ...", 4)
    assert label_change("train", before[:2], after[:2]) == Change("train.labels", "1", "2", 1)


def test_changes_that_changed_nothing_are_left_out() -> None:
    receipt = receipt_of(LabelNoise(), 3, [Change("a", "", "", 0), Change("b", "", "", 2)])
    assert [change.where for change in receipt.changes] == ["b"]
    assert receipt.settings == {
        "_target_": "deepfailguard.faults.training_data.LabelNoise",
        "rate": 0.3,
        "kind": "uniform",
    }


def test_only_such_changes_are_an_error() -> None:
    with pytest.raises(EmptyReceiptError, match=r"'label_noise' .* changed nothing"):
        receipt_of(LabelNoise(), 3, [Change("a", "", "", 0)])
