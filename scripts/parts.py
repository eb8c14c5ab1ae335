"""From configuration nodes to the typed objects that the pipeline takes."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from deepfailguard.data.base import Splits
from deepfailguard.data.splitting import shorten
from deepfailguard.device import resolve_device
from deepfailguard.guard.folders import CARD_FILE, find_guards
from deepfailguard.pipeline.evidence import with_test_faults
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool

__all__ = ["device", "ensemble", "faults", "guard_folder", "pool", "saved_guard", "splits"]


def device(cfg: DictConfig) -> torch.device:
    """The device that the configuration names."""
    return resolve_device(cfg.device)


def pool(cfg: DictConfig) -> Pool:
    """The pool of trained versions."""
    return Pool(Path(cfg.paths.pool), list(cfg.trusted))


def faults(cfg: DictConfig) -> list[Any]:
    """The chosen faults in the order in which they were named."""
    return [instantiate(node, _convert_="all") for node in cfg.get("faults", {}).values()]


def splits(cfg: DictConfig, with_faults: bool = True) -> Splits:
    """The data set, with at most `limit` inputs a part and with the chosen faults in its test part."""
    data = shorten(instantiate(cfg.dataset, _convert_="all").load(), cfg.limit.calibration, cfg.limit.test)
    if not with_faults:
        return data
    return shorten(with_test_faults(data, faults(cfg), cfg.seed), test=cfg.limit.test)  # a fault may bring more inputs


def ensemble(cfg: DictConfig, dataset: str) -> list[IdentityCard]:
    """Cards of the versions that the configuration names; of all of the data set if it names none."""
    return pool(cfg).choose(None if cfg.ensemble.versions is None else list(cfg.ensemble.versions), dataset)


def guard_folder(cfg: DictConfig, dataset: str) -> Path:
    """Where the guard of this name is, or shall be."""
    return Path(cfg.paths.guards) / dataset / str(cfg.name)


def saved_guard(cfg: DictConfig, dataset: str) -> Path:
    """Where the guard of this name is.

    Raises:
        FileNotFoundError: there is none; the message tells which there are, and how to name them.
    """
    folder, outputs = guard_folder(cfg, dataset), Path(cfg.paths.guards).parent
    if (folder / CARD_FILE).is_file():
        return folder
    there = find_guards(outputs)
    told = [f"\n  {each}" + (_named(each) if each.parent.name == dataset else "") for each in there]
    raise FileNotFoundError(
        f"{folder} holds no guard; below {outputs} there {'are' if there else 'is none'}{''.join(told)}\n"
        f"make one with: python scripts/train_guard.py name={cfg.name}"
    )


def _named(guard: Path) -> str:
    return f": paths.guards={guard.parent.parent} name={guard.name}"
