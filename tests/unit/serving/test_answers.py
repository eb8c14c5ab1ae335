"""Parts of a batch's verdict, and long requests put together from them."""

import dataclasses

import numpy as np
import torch

from deepfailguard.serving.answers import batch_of, joined, part_of
from tests.serving_examples import GuardDouble, images_of


def test_distances_that_were_not_found_are_not_numbers() -> None:
    verdict = GuardDouble().guard(images_of(2))
    found = torch.tensor([[True, False, True], [False, False, True]])
    verdict = dataclasses.replace(verdict, found=found, distance=torch.full((2, 3), 0.5))
    distance = batch_of(verdict).outputs["distance"]
    assert distance.dtype == np.float32
    assert np.array_equal(distance, np.where(found, np.float32(0.5), np.float32(np.nan)), equal_nan=True)


def test_problems_are_those_of_the_part() -> None:
    images = images_of(6)
    images[[1, 4]] = -1.0
    batch = batch_of(GuardDouble().guard(images))
    assert set(part_of(batch, 0, 3).problems) == {1}
    assert set(part_of(batch, 3, 6).problems) == {1}
    assert part_of(batch, 2, 4).problems == {}


def test_parts_with_other_versions_get_a_column_for_each() -> None:
    double = GuardDouble()
    before = batch_of(double.guard(images_of(2)))
    after = batch_of(double.guard.without(["noisy"])(images_of(3)))
    whole = joined([part_of(before, 0, 2), part_of(after, 0, 3)])
    assert whole.versions == ("steady", "noisy", "odd")
    assert whole.outputs["version_labels"][:2].tolist() == before.outputs["version_labels"].tolist()
    assert whole.outputs["version_labels"][2:, [0, 2]].tolist() == after.outputs["version_labels"].tolist()
    assert (whole.outputs["version_labels"][2:, 1] == -1).all()
    assert (whole.outputs["version_failure_probability"][2:, 1] == 1).all()
    assert (whole.outputs["weights"][2:, 1] == 0).all()


def test_the_whole_rests_on_what_its_weakest_part_rests_on() -> None:
    double = GuardDouble()
    batches = []
    for ground in ("versions left", "too few versions", "all versions"):
        batches.append(batch_of(dataclasses.replace(double.guard(images_of(1)), ground=ground)))
    whole = joined([part_of(batch, 0, 1) for batch in batches])
    assert whole.ground == "too few versions"
    assert not whole.degraded


def test_a_single_part_is_the_whole() -> None:
    part = part_of(batch_of(GuardDouble().guard(images_of(3))), 1, 3)
    assert joined([part]) is part
    assert all(len(array) == 2 for array in part.outputs.values())
