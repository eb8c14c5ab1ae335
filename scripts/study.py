"""The paper's table over all ensembles of 2 to 5 versions: `python scripts/study.py dataset=fashion_mnist`."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

import parts
from deepfailguard.pipeline.studying import StudyPlan, study
from entry import script


@script("study")
def main(cfg: DictConfig) -> None:
    data = parts.splits(cfg, with_faults=False)
    cards = parts.ensemble(cfg, data.name)
    distance, test_faults = instantiate(cfg.distance), parts.faults(cfg)
    plan = StudyPlan(cards, data, distance, Path(cfg.paths.cache), test_faults, cfg.seed)
    rules = {name: instantiate(node) for name, node in cfg.predictors.items()}
    done = study(plan, rules, list(cfg.sizes), parts.pool(cfg), parts.device(cfg))
    print(done.write(Path(cfg.paths.reports) / data.name / "study"))


if __name__ == "__main__":
    main()
