"""What every architecture of mymodel/ must keep."""

import copy
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.faults.structure import skeleton, weighted_layers
from deepfailguard.identity import describe, rebuild, weights_fingerprint
from deepfailguard.versions.spec import Architecture, architecture_name
from mymodel.alexnet import AlexNet
from mymodel.compact_alexnet import CompactAlexNet
from mymodel.compact_densenet import CompactDenseNet
from mymodel.compact_resnet import CompactResNet
from mymodel.compact_squeezenet import CompactSqueezeNet
from mymodel.compact_vgg import CompactVGG
from mymodel.densenet121 import DenseNet121
from mymodel.external import External
from mymodel.resnet50 import ResNet50
from mymodel.squeezenet1_0 import SqueezeNet10
from mymodel.vgg16 import VGG16

CONF = Path(__file__).parents[2] / "conf" / "model"
COMPACT = [CompactResNet, CompactAlexNet, CompactDenseNet, CompactVGG, CompactSqueezeNet]
FULL_SIZE = [ResNet50, AlexNet, DenseNet121, VGG16, SqueezeNet10]


def multiplications(network: nn.Module, images: torch.Tensor) -> int:
    counted = []

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        places = output.shape[2] * output.shape[3] if isinstance(layer, nn.Conv2d) else 1
        counted.append(layer.weight.numel() * places)

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    network(images)
    for handle in handles:
        handle.remove()
    return sum(counted)


def check_answers(network: nn.Module, images: torch.Tensor, classes: int) -> None:
    network.eval()
    images = images.requires_grad_()
    logits = network(images)
    assert logits.shape == (len(images), classes)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum() - logits[:, 1].sum(), images)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert torch.equal(network(images), logits)


@pytest.mark.parametrize("kind", COMPACT)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (64, 64), (8, 20)])
@pytest.mark.parametrize("shallow", [False, True])
def test_compact_answers_any_image(kind, channels, size, shallow):
    check_answers(kind(channels, shallow).build(4), torch.rand(2, channels, *size), classes=4)


@pytest.mark.parametrize("kind", COMPACT)
def test_compact_trains_on_a_batch_of_one_small_image(kind):
    network = kind(channels=1).build(3).train()
    network(torch.rand(1, 1, 8, 8)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("kind", COMPACT)
def test_compact_learns_arbitrary_labels(kind):
    images, labels = torch.rand(32, 1, 16, 16), torch.arange(32) % 4
    network = kind(channels=1).build(4).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", COMPACT)
def test_compact_is_small_and_cheap(kind):
    network = kind(channels=3).build(10).eval()
    assert sum(p.numel() for p in network.parameters()) <= 300_000
    assert multiplications(kind(channels=1).build(10).eval(), torch.rand(1, 1, 28, 28)) <= 6_000_000


@pytest.mark.parametrize("kind", COMPACT)
def test_the_same_random_numbers_give_the_same_weights(kind):
    prints = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        prints.append(weights_fingerprint(kind(channels=1).build(10)))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("kind", COMPACT)
def test_searching_in_eval_mode_leaves_the_network_alone(kind):
    network = kind(channels=1).build(3).eval()
    before = copy.deepcopy(network.state_dict())
    network(torch.rand(2, 1, 28, 28, requires_grad=True)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", FULL_SIZE)
def test_full_size_answers_a_small_grey_image(kind):
    check_answers(kind(channels=1).build(3), torch.rand(1, 1, 28, 28), classes=3)


@pytest.mark.parametrize("kind", FULL_SIZE)
def test_full_size_shallow_mutant_answers(kind):
    # The widest linear layers do not matter here, and their initial weights take seconds.
    network = skeleton(kind(channels=3, shallow=True), classes=3).eval()
    assert network(torch.empty(2, 3, 28, 28, device="meta")).shape == (2, 3)
    assert network(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 3)


@pytest.mark.parametrize("kind", COMPACT + FULL_SIZE)
def test_shallower_has_fewer_layers(kind):
    full = kind(channels=1)
    shallow = full.shallower()
    assert shallow != full
    assert shallow.channels == 1
    assert architecture_name(shallow) == architecture_name(full)
    assert weighted_layers(skeleton(shallow)) < weighted_layers(skeleton(full))
    with pytest.raises(FaultNotApplicableError, match="shallow already"):
        shallow.shallower()


@pytest.mark.parametrize("kind", COMPACT + FULL_SIZE)
def test_description_round_trip(kind):
    architecture = kind(channels=2, shallow=True)
    assert isinstance(architecture, Architecture)
    assert rebuild(describe(architecture), ["mymodel"]) == architecture


@pytest.mark.parametrize("kind", COMPACT + FULL_SIZE)
def test_channels_are_checked(kind):
    with pytest.raises(ConfigurationError, match="channels must be at least 1, got 0"):
        kind(channels=0)


@pytest.mark.parametrize("kind", COMPACT + FULL_SIZE)
def test_conf_makes_the_architecture(kind):
    conf = OmegaConf.merge(OmegaConf.load(CONF / f"{kind.name}.yaml"), {"input": {"channels": 1}})
    del conf["input"]  # resolved below from a parent, as the scripts do
    whole = OmegaConf.create({"model": conf, "input": {"channels": 1}})
    assert instantiate(whole.model) == kind(channels=1)


def test_conf_of_the_example_makes_a_network():
    conf = OmegaConf.create({"model": OmegaConf.load(CONF / "example.yaml"), "input": {"channels": 1}})
    architecture = instantiate(conf.model, _convert_="all")
    assert isinstance(architecture, External)
    check_answers(architecture.build(5), torch.rand(2, 1, 16, 16), classes=5)
    assert weighted_layers(architecture.shallower().build(5)) == weighted_layers(architecture.build(5)) - 1
