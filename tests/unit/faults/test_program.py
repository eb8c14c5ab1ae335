"""The program faults: what they change, what they leave alone, and when they refuse."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from deepfailguard.errors import ConfigurationError, EmptyReceiptError, FaultNotApplicableError
from deepfailguard.faults.program import (
    MissingActivation,
    Shallower,
    TooFewEpochs,
    WrongFilterSize,
    WrongLearningRate,
    WrongLoss,
)
from deepfailguard.identity import describe, rebuild
from deepfailguard.versions.spec import Recipe, VersionSpec
from mymodel.compact_resnet import CompactResNet
from mymodel.compact_vgg import CompactVGG
from mymodel.resnet50 import ResNet50

CONF = Path(__file__).parents[3] / "conf" / "fault"
TRUSTED = ("deepfailguard", "mymodel")
FAULTS = [Shallower(), WrongFilterSize(), MissingActivation(), WrongLearningRate(), TooFewEpochs(), WrongLoss()]
EDITS = [
    WrongFilterSize(),
    WrongFilterSize(size=5, which="share"),
    MissingActivation(),
    MissingActivation("share", 0.3),
]


@dataclass(frozen=True)
class Affine:
    """An architecture without anything to edit and without a shallower form."""

    def build(self, classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


@dataclass(frozen=True)
class Perceptron:
    """Weights that are read while the network is built: impossible on the meta device."""

    scale: float = 1.0

    def build(self, classes: int) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, classes))
        assert float(network[1].weight.detach().abs().max()) > 0
        return network

    def shallower(self) -> object:
        return Affine() if self.scale == 1.0 else self


def spec_of(architecture: object) -> VersionSpec:
    return VersionSpec("digits", architecture, Recipe(epochs=10), seed=3)


@pytest.fixture(params=[CompactVGG(channels=1), CompactResNet(channels=1)], ids=lambda a: a.name)
def spec(request: pytest.FixtureRequest) -> VersionSpec:
    return spec_of(request.param)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_pure_named_and_another_version(fault, spec):
    before, random_state = describe(spec), torch.get_rng_state()
    changed, receipt = fault.apply(spec, seed=5)
    assert describe(spec) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert changed.faults == (fault.name,)
    assert changed.name == f"{spec.architecture.name}+{fault.name}-s3"
    assert changed.key("0123456789", "data") != spec.key("0123456789", "data")
    assert (receipt.fault, receipt.seed) == (fault.name, 5)
    assert rebuild(receipt.settings, TRUSTED) == fault
    assert fault.apply(spec, seed=5) == (changed, receipt)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_the_changed_spec_is_rebuilt_from_its_description(fault, spec):
    changed, _ = fault.apply(spec, seed=5)
    again = rebuild(describe(changed.architecture), TRUSTED)
    assert again == changed.architecture
    assert again.build(4).state_dict().keys() == changed.architecture.build(4).state_dict().keys()


def test_numbers_are_the_papers():
    assert [fault.number for fault in FAULTS] == [1, 2, 3, 4, 5, 6]
    assert {fault.acts_on for fault in FAULTS} == {"program"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_conf_holds_the_default(fault):
    text = (CONF / f"{fault.name}.yaml").read_text()
    assert text.startswith(f"# @package faults.{fault.name}\n")
    assert instantiate(OmegaConf.create(text)) == fault


def test_recipe_faults_change_one_setting(spec):
    for fault, setting, value in [
        (WrongLearningRate(0.5), "learning_rate", 5e-4),
        (TooFewEpochs(0.2), "epochs", 2),
        (TooFewEpochs(0.01), "epochs", 1),
        (WrongLoss("hinge"), "loss", "hinge"),
    ]:
        changed, receipt = fault.apply(spec, seed=0)
        assert changed.recipe == spec.recipe.with_(**{setting: value})
        assert changed.architecture is spec.architecture
        (change,) = receipt.changes
        before = getattr(spec.recipe, setting)
        assert (change.where, change.before, change.after) == (f"recipe.{setting}", str(before), str(value))


def test_shallower_counts_the_missing_layers():
    changed, receipt = Shallower().apply(spec_of(CompactVGG(channels=1)), seed=0)
    assert changed.architecture == CompactVGG(channels=1, shallow=True)
    (change,) = receipt.changes
    assert (change.where, change.count) == ("architecture", 2)
    weights = sum(p.numel() for p in changed.architecture.build(2).parameters())
    assert change.after == f"5 layers, {weights} weights"


@pytest.mark.parametrize("fault", EDITS, ids=str)
def test_edits_change_the_answers_and_only_the_listed_layers(fault, spec):
    changed, receipt = fault.apply(spec, seed=1)
    torch.manual_seed(7)
    sound = spec.architecture.build(4).eval()
    torch.manual_seed(7)
    faulty = changed.architecture.build(4).eval()
    edited = {change.where for change in receipt.changes}
    for name, value in sound.state_dict().items():
        if name.rpartition(".")[0] not in edited:
            assert torch.equal(value, faulty.state_dict()[name]), name
    images = torch.rand(4, 1, 16, 16)
    assert (sound(images) - faulty(images)).abs().max() > 1e-3
    assert all(str(sound.get_submodule(name)) != str(faulty.get_submodule(name)) for name in edited)


@pytest.mark.parametrize("size", [1, 5])
def test_wrong_filter_size_gives_other_weights_and_the_same_shapes(size, spec):
    changed, receipt = WrongFilterSize(size).apply(spec, seed=0)
    sound, faulty = spec.architecture.build(4), changed.architecture.build(4)
    images, listed = torch.rand(1, 1, 12, 12), {change.where: change for change in receipt.changes}
    expected = {n for n, m in sound.named_modules() if isinstance(m, nn.Conv2d) and m.stride == m.padding == (1, 1)}
    assert set(listed) == expected
    shapes: dict[str, list[torch.Size]] = {name: [] for name in expected}
    for network in (sound.eval(), faulty.eval()):
        for name in expected:
            layer = network.get_submodule(name)
            layer.register_forward_hook(lambda _m, _i, output, name=name: shapes[name].append(output.shape))
        network(images)
    assert all(first == second for first, second in shapes.values())
    for name, change in listed.items():
        assert faulty.get_submodule(name).weight.shape[2:] == (size, size)
        assert change.count == faulty.get_submodule(name).weight.numel()


def test_without_activations_a_perceptron_is_affine():
    changed, receipt = MissingActivation().apply(spec_of(Perceptron()), seed=0)
    network = changed.architecture.build(3)
    first, second = torch.randn(2, 5, 1, 4, 4)
    assert torch.allclose(network(first) + network(second), network(first + second) + network(first * 0), atol=1e-5)
    assert [(change.where, change.before, change.after) for change in receipt.changes] == [
        ("2", "ReLU()", "Identity()")
    ]


def test_which_layers_lose_their_activation(spec):
    def layers(fault: MissingActivation, seed: int) -> list[str]:
        return [change.where for change in fault.apply(spec, seed)[1].changes]

    everything = layers(MissingActivation(), 0)
    assert layers(MissingActivation("first"), 0) == everything[:1]
    half = layers(MissingActivation("share", 0.5), 0)
    assert len(half) == round(len(everything) / 2)
    assert set(half) < set(everything)
    assert len({tuple(layers(MissingActivation("share", 0.5), seed)) for seed in range(8)}) > 1


def test_faults_add_up():
    spec = spec_of(CompactVGG(channels=1))
    for fault in (Shallower(), WrongFilterSize(), MissingActivation("first"), TooFewEpochs()):
        spec, _ = fault.apply(spec, seed=0)
    assert spec.name == "compact_vgg+shallower+wrong_filter_size+missing_activation+too_few_epochs-s3"
    assert spec.recipe.epochs == 2
    kinds = [type(m) for m in spec.architecture.build(4).modules()]
    assert kinds.count(nn.Identity) == 1
    with pytest.raises(FaultNotApplicableError, match="apply `shallower` before"):
        Shallower().apply(spec, seed=0)


def test_full_size_receipts_need_no_full_size_memory():
    _, receipt = WrongFilterSize().apply(spec_of(ResNet50(channels=3)), seed=0)
    assert len(receipt.changes) == 13  # the 3x3 convolutions of 16 blocks, less the 3 with stride 2
    assert receipt.changes[0].before == "kernel 3x3, weight (64, 64, 3, 3)"


@pytest.mark.parametrize(
    ("fault", "architecture", "message"),
    [
        (Shallower(), Affine(), "give the class a method shallower"),
        (Shallower(), CompactVGG(shallow=True), "shallow already"),
        (WrongFilterSize(), Affine(), "no square convolution with stride 1"),
        (WrongFilterSize(3), CompactVGG(), "kernel could become 3"),
        (MissingActivation(), Affine(), "write activations as modules"),
        (TooFewEpochs(0.99), Affine(), "leave recipe.epochs of affine-s3 at 10"),
        (WrongLoss("cross_entropy"), Affine(), "leave recipe.loss"),
    ],
)
def test_refuses_what_it_cannot_change(fault, architecture, message):
    with pytest.raises(FaultNotApplicableError, match=message):
        fault.apply(spec_of(architecture), seed=0)


def test_a_mutant_that_is_not_shallower_is_an_empty_receipt():
    with pytest.raises(EmptyReceiptError, match="changed nothing"):
        Shallower().apply(spec_of(Perceptron(scale=2.0)), seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WrongFilterSize(size=4), "size must be odd and at least 1, got 4"),
        (lambda: WrongLearningRate(factor=1.0), "factor must be positive and not 1"),
        (lambda: WrongLearningRate(factor=-2.0), "factor must be positive"),
        (lambda: TooFewEpochs(share=1.0), "share must lie between 0 and 1"),
        (lambda: WrongLoss(loss="none"), "loss must be one of cross_entropy"),
        (lambda: MissingActivation("some").apply(spec_of(CompactVGG()), 0), "which to be all, first or share"),
        (lambda: MissingActivation("share", 0.0).apply(spec_of(CompactVGG()), 0), "0 < share <= 1"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
