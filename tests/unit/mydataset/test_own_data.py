"""A user's own pictures and arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepfailguard.errors import DataFormatError, SplitOverlapError
from mydataset.arrays import Arrays
from mydataset.image_folder import ImageFolder
from tests.unit.mydataset import made_data


def test_a_test_folder_is_the_test_part(tmp_path: Path) -> None:
    made_data.write_folders(tmp_path, names=("2", "10", "1", "x", "y"))
    splits = ImageFolder(str(tmp_path), size=12, name="mine").load()
    assert (splits.name, splits.classes) == ("mine", ("1", "10", "2", "x", "y"))
    assert len(splits.test) == made_data.TEST
    assert splits.test.labels.bincount().tolist() == [4] * 5


def test_without_a_test_folder_a_fifth_of_each_class_is_taken(tmp_path: Path) -> None:
    made_data.write_folders(tmp_path, test=False)
    splits = ImageFolder(str(tmp_path), size=12, channels=1).load()
    assert [len(part) for part in (splits.train, splits.calibration, splits.test)] == [32, 8, 10]
    assert splits.test.labels.bincount().tolist() == [2] * 5
    assert splits.input_shape == (1, 12, 12)


def test_a_test_class_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    made_data.write_folders(tmp_path)
    made_data.write_pictures(tmp_path / "test", made_data.made(5, (8, 8, 3), 9), ("a", "b", "c", "d", "new"))
    with pytest.raises(DataFormatError, match="test: the folders new stand for none of the 5 classes"):
        ImageFolder(str(tmp_path), size=12).load()


def test_the_same_pictures_in_train_and_test_are_refused(tmp_path: Path) -> None:
    made_data.write_folders(tmp_path, test=False)
    made_data.write_pictures(tmp_path / "test", made_data.made_parts((40, 48, 3))[0], ("a", "b", "c", "d", "e"))
    with pytest.raises(SplitOverlapError, match=r"image_folder: .* stand in both train and test"):
        ImageFolder(str(tmp_path), size=12).load()


def as_numpy(part: made_data.Part) -> Any:
    return part


def as_tensors(part: made_data.Part) -> Any:
    return torch.from_numpy(part[0]).permute(0, 3, 1, 2), torch.from_numpy(part[1])


def as_floats(part: made_data.Part) -> Any:
    return (part[0] / 255).astype(np.float32), part[1].astype(np.int16)


def as_lists(part: made_data.Part) -> Any:
    return part[0].tolist(), part[1].tolist()


@pytest.mark.parametrize("given", [as_numpy, as_tensors, as_floats, as_lists])
def test_arrays_may_come_in_any_usual_form(given: Any) -> None:
    train, test = made_data.made_parts((6, 6, 3))
    splits = Arrays(given(train), given(test), classes=list("abcde"), name="mine").load()
    assert torch.allclose(splits.test.images, torch.from_numpy(test[0]).permute(0, 3, 1, 2) / 255, atol=1e-7, rtol=0)
    assert splits.test.labels.tolist() == test[1].tolist()
    assert (splits.name, splits.classes, len(splits.train)) == ("mine", tuple("abcde"), 40)


def test_half_precision_tensors_on_a_graph_are_taken() -> None:
    train, _ = made_data.made_parts((6, 6))
    images = (torch.from_numpy(train[0]) / 255).bfloat16().requires_grad_()
    splits = Arrays((images, torch.from_numpy(train[1]))).load()
    assert not splits.train.images.requires_grad
    assert len(splits.test) == 10


def test_a_calibration_part_of_ones_own_is_kept() -> None:
    train, test = made_data.made_parts((6, 6))
    own = made_data.made(12, (6, 6), 7)
    splits = Arrays(train, test, calibration=own).load()
    assert [len(part) for part in (splits.train, splits.calibration, splits.test)] == [50, 12, 20]
    assert torch.equal(splits.calibration.images[:, 0], torch.from_numpy(own[0]) / 255)
    with pytest.raises(SplitOverlapError, match=r"arrays: .* both train and calibration"):
        Arrays(train, test, calibration=(train[0][:12], train[1][:12])).load()


def test_errors_name_the_part() -> None:
    train, test = made_data.made_parts((6, 6))
    with pytest.raises(DataFormatError, match="test: expected one whole-number label for each of the 20 images"):
        Arrays(train, (test[0], test[1][:5])).load()
    with pytest.raises(DataFormatError, match=r"train, test: cannot tell the scale of float64 pixels that span -2\.\."):
        Arrays((train[0] / 64 - 2, train[1]), (test[0] / 64 - 2, test[1])).load()


def test_a_layout_that_cannot_be_told_is_said_by_the_user() -> None:
    train, test = made_data.made_parts((3, 5, 3))
    with pytest.raises(DataFormatError, match="say layout=nchw or layout=nhwc"):
        Arrays(train, test).load()
    assert Arrays(train, test, layout="nhwc").load().input_shape == (3, 3, 5)
    assert Arrays(train, test, layout="nchw").load().input_shape == (3, 5, 3)
