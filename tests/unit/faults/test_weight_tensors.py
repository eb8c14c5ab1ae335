import copy

import pytest
import torch
from torch import nn

from deepfailguard.errors import FaultNotApplicableError
from deepfailguard.faults.weight_tensors import choose_tensors, flat_values, overwrite, weight_changes


def test_a_pattern_chooses_parameters_by_name(cnn: nn.Module) -> None:
    assert list(choose_tensors(cnn, "*.bias")) == ["1.bias", "3.bias", "4.bias", "6.bias"]
    assert list(choose_tensors(cnn, "3.*")) == ["3.weight", "3.bias"]


def test_buffers_are_chosen_only_when_asked_and_never_whole_numbers(cnn: nn.Module) -> None:
    assert "1.running_mean" not in choose_tensors(cnn, "*")
    assert list(choose_tensors(cnn, "1.*", buffers=True)) == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]


def test_a_pattern_that_fits_nothing_names_what_there_is(cnn: nn.Module) -> None:
    with pytest.raises(FaultNotApplicableError, match=r"layers='conv\*'; there are: 0\.weight, 1\.weight"):
        choose_tensors(cnn, "conv*")


def test_shared_parameters_are_chosen_once() -> None:
    layer = nn.Linear(3, 3)
    assert list(choose_tensors(nn.Sequential(layer, layer), "*")) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_written_bit_for_bit_whatever_the_layout(dtype: torch.dtype) -> None:
    tensor = nn.Parameter(torch.rand(2, 3, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last))
    integers = torch.arange(120, dtype={4: torch.int32, 2: torch.int16}[dtype.itemsize])
    # Includes denormal numbers; the last is a NaN with a payload.
    integers[-1] = -1
    overwrite(tensor, integers.view(dtype))
    assert torch.equal(flat_values(tensor).view(integers.dtype), integers)


def test_changes_are_measured_per_tensor(cnn: nn.Module) -> None:
    changed = copy.deepcopy(cnn)
    with torch.no_grad():
        changed[3].bias[1] = 2.0
        changed[1].running_var[2:] = 4.0
    changes = weight_changes(cnn, changed)
    assert [(change.where, change.count) for change in changes] == [("3.bias", 1), ("1.running_var", 2)]
    assert (changes[1].before, changes[1].after) == ("1, 1", "4, 4")
    assert changes[0].after == "2"


def test_the_smallest_change_of_a_value_can_be_seen(cnn: nn.Module) -> None:
    changed = copy.deepcopy(cnn)
    with torch.no_grad():
        changed[3].bias[1] = torch.nextafter(changed[3].bias[1], torch.tensor(9.0))
    change = weight_changes(cnn, changed)[0]
    assert change.before != change.after
    assert float(change.before) == pytest.approx(float(change.after), rel=1e-6)


def test_long_lists_of_changes_are_shortened(cnn: nn.Module) -> None:
    changed = copy.deepcopy(cnn)
    nn.init.zeros_(changed[6].weight)
    change = weight_changes(cnn, changed)[0]
    assert change.after == "0, 0, 0, ..."
    assert change.count == 960


def test_nan_that_was_there_is_no_change_but_new_nan_is(cnn: nn.Module) -> None:
    with torch.no_grad():
        cnn[3].bias[0] = float("nan")
    changed = copy.deepcopy(cnn)
    assert weight_changes(cnn, changed) == []
    with torch.no_grad():
        changed[3].bias[1] = float("nan")
    assert weight_changes(cnn, changed)[0].count == 1
