"""Edits of single layers, on networks whose answers are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepfailguard.errors import FaultNotApplicableError
from deepfailguard.faults.layer_edits import OtherKernelSize, WithoutActivations, is_activation, takes_kernel_size
from deepfailguard.identity import describe, rebuild

ODD = st.sampled_from([1, 3, 5, 7])


# No deadline: how long an example takes on a shared machine says nothing about the edit.
@settings(deadline=None, derandomize=True, max_examples=60)
@given(old=ODD, new=ODD, dilation=st.integers(1, 3), groups=st.sampled_from([1, 2]), extra=st.integers(0, 2))
def test_a_new_kernel_size_keeps_the_output_shape(old, new, dilation, groups, extra):
    convolution = nn.Conv2d(2, 4, old, padding=dilation * (old // 2) + extra, dilation=dilation, groups=groups)
    assert takes_kernel_size(convolution, new) == (old not in (1, new))
    if old in (1, new):
        return
    network = nn.Sequential(convolution)
    (change,) = OtherKernelSize(("0",), new).apply(network)
    images = torch.rand(1, 2, 9, 7)
    assert network(images).shape == convolution(images).shape
    assert network[0].weight.shape == (4, 2 // groups, new, new)
    assert change.count == network[0].weight.numel()
    assert (change.where, change.after) == ("0", f"kernel {new}x{new}, weight {tuple(network[0].weight.shape)}")


def test_a_new_kernel_of_size_1_mixes_channels_only():
    network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))
    OtherKernelSize(("0",), 1).apply(network)
    images = torch.rand(2, 3, 5, 6)
    expected = torch.einsum("oc,bchw->bohw", network[0].weight[:, :, 0, 0], images)
    assert torch.allclose(network(images), expected, atol=1e-6)


def test_a_new_kernel_keeps_dtype_bias_and_padding_mode():
    network = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False, padding_mode="circular", dtype=torch.float64))
    OtherKernelSize(("0",), 5).apply(network)
    new = network[0]
    assert (new.bias, new.padding_mode, new.weight.dtype, new.padding) == (None, "circular", torch.float64, (2, 2))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(2, 2, 3, stride=2, padding=1), 1),
        (nn.Conv2d(2, 2, 1), 3),
        (nn.Conv2d(2, 2, 4, padding=2), 3),
        (nn.Conv2d(2, 2, (3, 5), padding=(1, 2)), 1),
        (nn.Conv2d(2, 2, 3), 1),  # without padding a smaller kernel would give a larger output
        (nn.Conv2d(2, 2, 3, padding=1), 3),
        (nn.Conv1d(2, 2, 3, padding=1), 1),
    ],
    ids=str,
)
def test_layers_that_do_not_take_the_size(layer, size):
    assert not takes_kernel_size(layer, size)
    with pytest.raises(FaultNotApplicableError, match="layer '0' must be a square convolution with stride 1"):
        OtherKernelSize(("0",), size).apply(nn.Sequential(layer))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=padding))
    before = network(torch.rand(1, 1, 8, 8)).shape
    OtherKernelSize(("0",), 5).apply(network)
    assert network(torch.rand(1, 1, 8, 8)).shape == before


def test_a_layer_with_two_names_stays_one_layer():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    changes = OtherKernelSize(("0", "2"), 1).apply(network)
    assert [change.where for change in changes] == ["0", "2"]
    assert network[0] is network[2] is not shared


def test_activations_become_identities():
    network = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.ModuleDict({"inner": nn.ReLU()}))
    changes = WithoutActivations(("1", "2.inner")).apply(network)
    assert [(c.where, c.before, c.after) for c in changes] == [
        ("1", "GELU(approximate='none')", "Identity()"),
        ("2.inner", "ReLU()", "Identity()"),
    ]
    assert not any(is_activation(module) for module in network.modules())


def test_softmax_is_no_activation():
    assert not is_activation(nn.Softmax(1))
    assert is_activation(nn.PReLU())


def test_layers_that_are_gone_or_something_else_are_named():
    edit = WithoutActivations(("2",))
    with pytest.raises(FaultNotApplicableError, match=r"no layer '2' to edit.*changed after the fault"):
        edit.apply(nn.Sequential(nn.Flatten()))
    with pytest.raises(FaultNotApplicableError, match="layer '2' must be an activation module, found Flatten"):
        edit.apply(nn.Sequential(nn.Flatten(), nn.Flatten(), nn.Flatten()))


@pytest.mark.parametrize("edit", [WithoutActivations(("a", "b.0")), OtherKernelSize(("a",), 5)])
def test_edits_survive_their_description(edit):
    assert rebuild(describe(edit), ["deepfailguard"]) == edit
