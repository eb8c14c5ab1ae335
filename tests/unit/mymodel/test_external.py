"""Anybody's network class as an architecture."""

import pytest
import torch
from torch import nn

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.identity import describe, rebuild
from deepfailguard.versions.spec import Architecture, architecture_name
from mymodel.external import External

EXAMPLE = "mymodel.example_network.ExampleNetwork"
SETTINGS = {"channels": 1, "width": 4, "depth": 2}


def test_builds_the_class_with_its_settings():
    network = External(EXAMPLE, SETTINGS).build(7)
    assert type(network).__qualname__ == "ExampleNetwork"
    assert network(torch.rand(2, 1, 12, 12)).shape == (2, 7)
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 2


def test_is_an_architecture_with_a_name_and_a_description():
    architecture = External(EXAMPLE, SETTINGS, shallower_settings={"depth": 1})
    assert isinstance(architecture, Architecture)
    assert architecture_name(architecture) == "example_network"
    assert rebuild(describe(architecture), ["mymodel"]) == architecture


def test_another_name_for_the_number_of_classes():
    assert External("torch.nn.Linear", {"in_features": 2}, "out_features").build(5).out_features == 5


def test_torchvision_classes_work_beside_any_build_of_torch():
    network = External("torchvision.models.SqueezeNet", {"version": "1_1"}).build(6)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 6)


def test_shallower_changes_only_the_named_settings():
    shallow = External(EXAMPLE, SETTINGS, shallower_settings={"depth": 1}).shallower()
    assert shallow.settings == {"channels": 1, "width": 4, "depth": 1}
    with pytest.raises(FaultNotApplicableError, match="shallower_settings"):
        shallow.shallower()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("ExampleNetwork", "must be a dotted name like package.file.Class"),
        ("mymodel.nowhere.Network", "cannot find 'mymodel.nowhere.Network'.*PYTHONPATH"),
        ("mymodel.example_network.Misspelt", "cannot find.*Misspelt"),
        ("torch.relu", "must be a subclass of torch.nn.Module"),
        ("subprocess.Popen", "must be a subclass of torch.nn.Module"),
    ],
)
def test_wrong_class_is_named(module, message):
    with pytest.raises(ConfigurationError, match=message):
        External(module).build(3)


@pytest.mark.parametrize(
    ("settings", "argument", "message"),
    [
        ({"channels": 1, "width": 4}, "num_classes", "missing a required argument: 'depth'"),
        ({**SETTINGS, "hight": 3}, "num_classes", "unexpected keyword argument 'hight'"),
        (SETTINGS, "classes", "classes_argument \\(now 'classes'\\)"),
    ],
)
def test_wrong_settings_are_named_with_the_signature(settings, argument, message):
    with pytest.raises(ConfigurationError, match=message):
        External(EXAMPLE, settings, argument).build(3)
