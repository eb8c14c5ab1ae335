"""Every YAML composes, and what it says binds to the class or function that it names."""

import importlib
import inspect
from pathlib import Path
from typing import Any, get_args

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from deepfailguard.faults.numbers import fault_number_names
from deepfailguard.identity import describe, rebuild
from deepfailguard.training.losses import LOSSES
from deepfailguard.versions.spec import Loss

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
SCRIPTS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "common")
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
# A script whose defaults have the group, to compose a choice in its place.
HOME = {
    "dataset": "train_model",
    "model": "train_model",
    "training": "train_model",
    "fault": "train_model",
    "distance": "train_guard",
    "predictor": "train_guard",
    "decision": "train_guard",
    "ensemble": "train_guard",
    "launcher": "cache_distances",
}


def compose(config: str, *overrides: str) -> Any:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config, list(overrides))


def nodes_with_target(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [node for item in value for node in nodes_with_target(item)]
    if not isinstance(value, dict):
        return []
    inner = [node for item in value.values() for node in nodes_with_target(item)]
    return [value, *inner] if "_target_" in value else inner


def check_binding(node: dict[str, Any]) -> None:
    module, _, name = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), name)
    settings = {key: value for key, value in node.items() if not key.startswith("_")}
    signature = inspect.signature(target)
    assert set(settings) <= set(signature.parameters), f"{node['_target_']} does not take {settings}"
    if not node.get("_partial_"):
        signature.bind(**settings)


@pytest.mark.parametrize("config", SCRIPTS)
def test_every_script_has_a_config_that_binds(config: str) -> None:
    assert (ROOT / "scripts" / f"{config}.py").is_file()
    cfg = compose(config)
    for node in nodes_with_target(OmegaConf.to_container(cfg, resolve=True)):
        check_binding(node)


@pytest.mark.parametrize("script", sorted(p.stem for p in (ROOT / "scripts").glob("*.py")))
def test_every_script_with_a_config_is_a_script(script: str) -> None:
    assert script in {*SCRIPTS, "entry", "overrides", "parts"}


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids="=".join)
def test_every_choice_composes_and_binds(group: str, choice: str) -> None:
    cfg = compose(HOME[group], f"{group}={choice}")
    targets = nodes_with_target(OmegaConf.to_container(cfg, resolve=True))
    assert targets
    for node in targets:
        check_binding(node)


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "predictor"])
def test_a_guard_with_this_predictor_can_be_saved(choice: str) -> None:
    predictor = instantiate(compose(HOME["predictor"], f"predictor={choice}").predictor)
    assert describe(rebuild(describe(predictor), ("deepfailguard",))) == describe(predictor)


def test_every_paper_number_has_a_fault() -> None:
    assert sorted(fault_number_names) == list(range(1, 13))
    for number, name in fault_number_names.items():
        node = compose("train_model", f"fault={name}").faults[name]
        module, _, kind = node["_target_"].rpartition(".")
        assert getattr(importlib.import_module(module), kind).number == number or name.startswith("natural_shift")


def test_every_loss_of_a_recipe_exists() -> None:
    assert set(get_args(Loss)) == set(LOSSES)
