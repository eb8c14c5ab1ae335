import pytest
import torch
from torch import nn

from deepfailguard.errors import ConfigurationError, EmptyReceiptError, FaultNotApplicableError
from deepfailguard.faults.swapped_layers import SwappedLayers


def test_the_only_two_equal_layers_get_each_others_weights(cnn: nn.Module) -> None:
    changed, receipt = SwappedLayers().apply(cnn, seed=0)
    for name in ("weight", "bias"):
        assert torch.equal(getattr(changed[3], name), getattr(cnn[4], name))
        assert torch.equal(getattr(changed[4], name), getattr(cnn[3], name))
    assert torch.equal(changed[6].weight, cnn[6].weight)
    assert [change.where for change in receipt.changes] == ["3.weight", "3.bias", "4.weight", "4.bias"]


def test_a_bias_makes_two_layers_different(cnn: nn.Module) -> None:
    with pytest.raises(FaultNotApplicableError, match=r"asked for 1 pairs .* only 0; lower count, widen the pattern"):
        SwappedLayers().apply(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2)), seed=0)


def test_no_layer_is_in_two_pairs() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6)))
    changed, _ = SwappedLayers(count=3).apply(model, seed=0)
    origin = [
        next(j for j, other in enumerate(model) if torch.equal(layer.weight, other.weight))  # type: ignore[arg-type]
        for layer in changed
    ]
    assert sorted(origin) == list(range(6))
    # A swap undone by another one, or a longer cycle, would not be its own inverse without fixed points.
    assert all(origin[origin[i]] == i != origin[i] for i in range(6))
    with pytest.raises(FaultNotApplicableError, match="asked for 4 pairs"):
        SwappedLayers(count=4).apply(model, seed=0)


def test_the_pattern_limits_the_layers() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    _, receipt = SwappedLayers(layers="[13].*").apply(model, seed=0)
    assert {change.where.split(".")[0] for change in receipt.changes} == {"1", "3"}


def test_layers_of_equal_weights_are_an_empty_receipt() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].load_state_dict(model[0].state_dict())
    with pytest.raises(EmptyReceiptError, match="'swapped_layers'"):
        SwappedLayers().apply(model, seed=0)


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"swapped_layers\.count must be a whole number of at least 1, got 0"):
        SwappedLayers(count=0)
