import pytest
import torch

from deepfailguard.errors import DataFormatError
from deepfailguard.evaluation.ties import check_predictions, group_ties


def test_groups_ascend_and_count_every_answer() -> None:
    groups = group_ties(torch.tensor([0.5, 0.1, 0.5, 1.0, 0.5]), torch.tensor([True, False, False, True, True]))
    assert groups.wrong.tolist() == [0, 2, 1]
    assert groups.right.tolist() == [1, 1, 0]
    assert groups.wrong.dtype == groups.right.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_only_equal_numbers_are_ties(dtype: torch.dtype) -> None:
    near = torch.tensor([0.5, 0.5 + torch.finfo(dtype).eps], dtype=dtype)
    assert near[0] != near[1]
    assert len(group_ties(near, torch.tensor([True, False])).wrong) == 2
    assert len(group_ties(near[[0, 0]], torch.tensor([True, False])).wrong) == 1


def test_only_a_batch_among_others_may_be_empty() -> None:
    none = torch.zeros(0, dtype=torch.bool)
    check_predictions(torch.zeros(0), none, least=0)
    with pytest.raises(DataFormatError, match="B >= 1"):
        check_predictions(torch.zeros(0), none)
    with pytest.raises(DataFormatError, match="B >= 1"):
        group_ties(torch.zeros(0), none)
    with pytest.raises(DataFormatError, match=r"must be \(0,\) like wrong"):
        check_predictions(torch.zeros(1), none, least=0)
