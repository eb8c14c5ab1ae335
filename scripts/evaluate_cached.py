"""Evaluate a saved guard from cached distances, without any model: `python scripts/evaluate_cached.py name=mine`."""

from pathlib import Path

from omegaconf import DictConfig

import parts
from deepfailguard.evaluation.report.summary import summarise
from deepfailguard.evaluation.report.writing import write_report
from deepfailguard.guard.saved import load_guard
from deepfailguard.pipeline.evaluating import evaluate_cached
from entry import script


@script("evaluate_cached")
def main(cfg: DictConfig) -> None:
    data = parts.splits(cfg)
    saved = load_guard(parts.saved_guard(cfg, data.name), list(cfg.trusted))
    evaluation = evaluate_cached(saved, data, Path(cfg.paths.cache))
    print(summarise(evaluation).headline)
    print(write_report(evaluation, Path(cfg.paths.reports) / data.name / f"{cfg.name}-cached"))


if __name__ == "__main__":
    main()
