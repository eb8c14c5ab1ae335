"""Fit and save a guard: `python scripts/train_guard.py name=mine ensemble.versions=[NAME,NAME,...]`."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

import parts
from deepfailguard.pipeline.guarding import GuardParts, train_guard
from entry import script


@script("train_guard")
def main(cfg: DictConfig) -> None:
    data = parts.splits(cfg, with_faults=False)
    chosen = GuardParts(instantiate(cfg.predictor), instantiate(cfg.decision), instantiate(cfg.distance))
    cards = parts.ensemble(cfg, data.name)
    guard = train_guard(cards, data, chosen, parts.pool(cfg), parts.device(cfg), Path(cfg.paths.cache))
    folder = parts.guard_folder(cfg, data.name)
    guard.save(folder)
    for name, accuracy in zip(guard.saved.card.names, guard.saved.card.calibration_accuracy, strict=True):
        print(f"  {name}: {accuracy:.1%} right on {guard.saved.card.calibration_size} calibration inputs")
    print(f"guard saved in {folder}")


if __name__ == "__main__":
    main()
