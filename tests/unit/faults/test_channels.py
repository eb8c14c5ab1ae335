import pytest
import torch
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.faults.channels import ScaledChannels, StuckChannels, ZeroedChannels


def outputs(model: nn.Module, index: int, inputs: Tensor) -> Tensor:
    """What one layer of a chain gives on inputs of its own, channels last: (B, ..., channels)."""
    return model[index](inputs).movedim(1, -1).detach()


INPUTS = {1: (5, 4, 6, 8), 3: (5, 4, 6, 8), 6: (5, 192)}


@pytest.mark.parametrize("index", INPUTS)
def test_a_stuck_channel_gives_its_value_whatever_it_is_asked(cnn: nn.Module, index: int) -> None:
    changed, _ = StuckChannels(value=-3.5, count=2, layers=f"{index}.weight").apply(cnn, seed=0)
    inputs = torch.randn(INPUTS[index])
    before, after = outputs(cnn, index, inputs), outputs(changed, index, inputs)
    channels = after.flatten(0, -2)
    stuck = (channels == -3.5).all(0)
    assert int(stuck.sum()) == 2
    assert torch.allclose(before[..., ~stuck], after[..., ~stuck])


@pytest.mark.parametrize("index", [0, *INPUTS])
def test_a_zeroed_channel_is_dead(cnn: nn.Module, index: int) -> None:
    changed, _ = ZeroedChannels(count=1, layers=f"{index}.*").apply(cnn, seed=0)
    inputs = torch.randn(INPUTS.get(index, (5, 2, 6, 8)))
    before, after = outputs(cnn, index, inputs), outputs(changed, index, inputs)
    dead = (after.flatten(0, -2) == 0).all(0)
    assert int(dead.sum()) == 1
    assert torch.allclose(before[..., ~dead], after[..., ~dead])


@pytest.mark.parametrize("index", INPUTS)
def test_a_scaled_channel_gives_the_factors_multiple(cnn: nn.Module, index: int) -> None:
    changed, _ = ScaledChannels(factor=-2.5, count=1, layers=f"{index}.weight").apply(cnn, seed=0)
    inputs = torch.randn(INPUTS[index])
    before, after = outputs(cnn, index, inputs), outputs(changed, index, inputs)
    differs = ~torch.isclose(before, after).flatten(0, -2).all(0)
    assert int(differs.sum()) == 1
    assert torch.allclose(after[..., differs], -2.5 * before[..., differs], atol=1e-5)


def test_the_rate_is_a_share_of_all_channels_of_all_layers(cnn: nn.Module) -> None:
    changed, _ = ZeroedChannels(rate=0.5).apply(cnn, seed=0)
    layers = [changed[index] for index in (0, 1, 3, 4, 6)]
    dead = sum(int((layer.weight.flatten(1) == 0).all(1).sum()) for layer in layers if layer.weight.ndim > 1)
    dead += int((changed[1].weight == 0).sum())
    # 4 + 4 + 4 + 4 + 5 channels; a half of 21 is rounded to the even 10.
    assert dead == 10


def test_only_layers_with_a_bias_can_be_stuck(cnn: nn.Module) -> None:
    with pytest.raises(FaultNotApplicableError, match=r"layer with a bias has a weight .* layers='0\.weight'"):
        StuckChannels(layers="0.weight").apply(cnn, seed=0)


def test_a_layer_alone_is_a_model_too() -> None:
    changed, receipt = ZeroedChannels(count=1, layers="weight").apply(nn.Linear(3, 2), seed=0)
    assert [(change.where, change.count) for change in receipt.changes] == [("weight", 3), ("bias", 1)]
    assert int((changed.weight == 0).all(1).sum()) == 1


def test_norms_without_weights_are_passed_over() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.Conv2d(2, 2, 1))
    _, receipt = ZeroedChannels(rate=1.0).apply(model, seed=0)
    assert [change.where for change in receipt.changes] == ["1.weight", "1.bias"]


def test_an_infinite_weight_of_another_fault_is_zeroed_not_made_nan() -> None:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, float("inf"))
    changed, _ = ZeroedChannels(rate=1.0).apply(layer, seed=0)
    assert (changed.weight == 0).all()


def test_more_channels_than_there_are_are_refused() -> None:
    with pytest.raises(FaultNotApplicableError, match="asked for 3 channels, but there are only 2"):
        ScaledChannels(count=3).apply(nn.Linear(3, 2), seed=0)


def test_settings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"stuck_channels\.value must be finite, got inf"):
        StuckChannels(value=float("inf"))
    with pytest.raises(ConfigurationError, match=r"scaled_channels\.factor must be finite, got nan"):
        ScaledChannels(factor=float("nan"))
