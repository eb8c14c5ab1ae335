"""What every fault under conf/fault must do, whatever it acts on."""

import importlib
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.errors import EmptyReceiptError, FaultNotApplicableError
from deepfailguard.faults.inject import Injected, inject
from deepfailguard.faults.numbers import fault_number_names
from deepfailguard.identity import describe, digest, rebuild, weights_fingerprint
from deepfailguard.types import Bounds, Receipt
from deepfailguard.versions.spec import Recipe, VersionSpec

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "fault").glob("*.yaml"))
TRUSTED = ("deepfailguard", "mydataset", "mymodel")

# Faults that do the same for every seed (the small model has but one pair of equal layers to swap).
SEEDLESS = {
    "misscaled_inputs",
    "natural_shift_v4",
    "natural_shift_v6",
    "defocus_blur",
    "low_light",
    "pruned_weights",
    "swapped_layers",
}
# Settings so small that nothing changes; None where no setting of the fault is (its test is a target).
NO_OP: dict[str, dict[str, Any] | None] = {
    "misscaled_inputs": {"factor": 1.0},
    "label_noise": {"rate": 1e-9},
    "too_little_data": {"share": 1.0},
    "noisy_inputs": {"sigma": 1e-30},
    "natural_shift_v4": None,
    "natural_shift_v6": None,
    "defocus_blur": {"radius": 1e-3},
    "low_light": {"contrast": 1.0, "brightness": 1.0},
    "camera_tilt": None,
    "bit_flips": {"rate": 1e-12},
    "gaussian_weight_noise": {"rate": 1e-12},
    "pruned_weights": {"rate": 1e-12},
    "swapped_layers": None,
    "stuck_channels": {"rate": 1e-12},
    "zeroed_channels": {"rate": 1e-12},
    "scaled_channels": {"factor": 1.0},
}


@dataclass(frozen=True)
class SmallNet:
    """An architecture that every program fault fits, shallower and with activations and filters."""

    blocks: int = 2

    def build(self, classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
        for _ in range(self.blocks):
            layers += [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, classes))

    def shallower(self) -> "SmallNet":
        if self.blocks == 1:
            raise FaultNotApplicableError("already shallow")
        return replace(self, blocks=self.blocks - 1)


@dataclass(frozen=True)
class Collection:
    """A data set of the same task; with the seed of the target's own test part it is the same one."""

    seed: int = 4

    def load(self) -> Splits:
        return tiny_splits(test_seed=self.seed)


def tiny_images(count: int, seed: int) -> ImageSet:
    rng = torch.Generator().manual_seed(seed)
    return ImageSet(torch.rand(count, 1, 8, 8, generator=rng), torch.arange(count) % 4)


def tiny_splits(test_seed: int = 3) -> Splits:
    return Splits("tiny", tuple("abcd"), Bounds(), tiny_images(60, 1), tiny_images(20, 2), tiny_images(40, test_seed))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return SmallNet().build(classes=4)


def a_target(fault: Any) -> Any:
    make: dict[str, Callable[[], Any]] = {
        "training_data": tiny_splits,
        "test_data": tiny_splits,
        "program": lambda: VersionSpec("tiny", SmallNet(), Recipe(epochs=10)),
        "weights": small_model,
    }
    return make[fault.acts_on]()


def fingerprint(target: Any) -> Any:
    """Every bit of a target that a fault might change."""
    if isinstance(target, Splits):
        # Not the cached property: it would not see a change made in place.
        parts = (replace(getattr(target, part)) for part in ("train", "calibration", "test"))
        return [part.fingerprint for part in parts]
    if isinstance(target, nn.Module):
        return weights_fingerprint(target)
    return digest([describe(target.architecture), target.recipe.as_dict(), target.seed, target.faults])


def content_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def a_fault(path: Path) -> Any:
    """The fault as configured, with a collection of the test's own where one from the disk is configured."""
    content = content_of(path)
    source = {"source": Collection()} if "source" in content else {}
    del content["_target_"]
    return class_of(path)(**content | source)


def class_of(path: Path) -> Any:
    module, _, name = content_of(path)["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def only(wanted: Callable[[Any], bool]) -> pytest.MarkDecorator:
    """Run a test over some of the faults only, chosen by their class."""
    return pytest.mark.parametrize("path", [path for path in CONFIGS if wanted(class_of(path))], ids=lambda p: p.stem)


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def fault(path: Path) -> Any:
    return a_fault(path)


def applied(fault: Any, seed: int = 0) -> Injected[Any]:
    return inject(fault, a_target(fault), seed)


def test_every_fault_of_data_and_weights_has_a_case_in_which_it_changes_nothing() -> None:
    assert set(NO_OP) == {path.stem for path in CONFIGS if class_of(path).acts_on != "program"}


def test_the_file_is_named_and_packaged_as_the_fault(path: Path, fault: Any) -> None:
    assert fault.name == path.stem
    assert path.read_text().splitlines()[0] == f"# @package faults.{path.stem}"


@only(lambda fault: fault.acts_on != "program" and not fault.name.startswith("natural_shift"))
def test_the_file_repeats_the_defaults_of_the_class(fault: Any) -> None:
    assert type(fault)() == fault


def test_the_number_is_the_papers(fault: Any) -> None:
    numbers = {name: number for number, name in fault_number_names.items()}
    assert fault.number == numbers.get(fault.name)


def test_it_is_a_frozen_record_with_slots(fault: Any) -> None:
    for setting in fields(fault):
        with pytest.raises(FrozenInstanceError, match=f"cannot assign to field '{setting.name}'"):
            setattr(fault, setting.name, None)
    assert not hasattr(fault, "__dict__")
    assert hash(fault) == hash(replace(fault))


def test_it_leaves_its_target_as_it_was(fault: Any) -> None:
    target = a_target(fault)
    before = fingerprint(target)
    changed = inject(fault, target, seed=0).target
    assert changed is not target
    assert fingerprint(target) == before
    assert fingerprint(changed) != before


@only(lambda fault: fault.acts_on == "weights")
def test_the_changed_copy_shares_no_weights_with_the_target(fault: Any) -> None:
    target = a_target(fault)
    changed = inject(fault, target, seed=0).target
    own = {tensor.data_ptr() for tensor in target.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in changed.state_dict().values())
    assert changed.state_dict().keys() == target.state_dict().keys()


def test_its_receipt_says_what_was_changed_and_is_json(fault: Any) -> None:
    receipt = applied(fault).receipt
    assert isinstance(receipt, Receipt)
    assert receipt.fault == fault.name
    assert receipt.settings == describe(fault)
    assert all(change.count >= 1 and change.where and change.before != change.after for change in receipt.changes)
    assert json.loads(json.dumps(receipt.settings, allow_nan=False)) == receipt.settings


def test_it_can_be_rebuilt_from_its_description(path: Path) -> None:
    content = content_of(path)
    home = str(content.get("source", content)["_target_"]).rpartition(".")[0]
    pytest.importorskip(home, exc_type=ModuleNotFoundError)
    configured = rebuild(content, TRUSTED)
    again = rebuild(json.loads(json.dumps(describe(configured))), TRUSTED)
    assert again == configured
    assert describe(again) == describe(configured)


def test_the_same_seed_gives_the_same(fault: Any) -> None:
    first, second = applied(fault, seed=3), applied(fault, seed=3)
    assert fingerprint(first.target) == fingerprint(second.target)
    assert first.receipt == second.receipt


def test_another_seed_gives_another_where_anything_is_drawn(fault: Any) -> None:
    results = {str(fingerprint(applied(fault, seed).target)) for seed in range(6)}
    if fault.acts_on == "program" or fault.name in SEEDLESS:
        assert len(results) == 1
    else:
        assert len(results) > 1


def test_torchs_own_random_state_is_neither_used_nor_moved(fault: Any) -> None:
    target = a_target(fault)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = inject(fault, target, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert fingerprint(inject(fault, target, seed=0).target) == fingerprint(first.target)


@only(lambda fault: NO_OP.get(fault.name) is not None)
def test_settings_that_change_nothing_are_an_error(fault: Any) -> None:
    with pytest.raises(EmptyReceiptError, match=f"{fault.name!r} .* changed nothing"):
        applied(replace(fault, **NO_OP[fault.name]))


@only(lambda fault: fault.name in NO_OP and NO_OP[fault.name] is None)
def test_targets_in_which_nothing_can_change_are_an_error(fault: Any) -> None:
    dark = tiny_splits()
    dark = dark.with_parts(test=ImageSet(torch.zeros_like(dark.test.images), dark.test.labels))
    twins = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    twins[1].load_state_dict(twins[0].state_dict())
    targets: dict[str, Any] = {"camera_tilt": dark, "swapped_layers": twins}
    if fault.name.startswith("natural_shift"):
        # The collection with the seed 3 is the target's own test part.
        fault, targets = replace(fault, source=Collection(seed=3)), {fault.name: tiny_splits()}
    with pytest.raises(EmptyReceiptError, match=f"{fault.name!r} .* changed nothing"):
        inject(fault, targets[fault.name], seed=0)


@only(lambda fault: fault.acts_on.endswith("_data"))
def test_images_stay_inside_the_bounds_and_labels_inside_the_classes(fault: Any) -> None:
    target = a_target(fault)
    changed = inject(fault, target, seed=0).target
    for part in (changed.train, changed.calibration, changed.test):
        assert not target.bounds.outside(part.images).any()
        assert part.labels.min() >= 0
        assert part.labels.max() < 4
