"""Evaluate a saved guard by asking it, as a server would: `python scripts/evaluate_live.py name=mine`."""

from pathlib import Path

from omegaconf import DictConfig

import parts
from deepfailguard.evaluation.report.summary import summarise
from deepfailguard.evaluation.report.writing import write_report
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.pipeline.evaluating import evaluate_live
from entry import script


@script("evaluate_live")
def main(cfg: DictConfig) -> None:
    data = parts.splits(cfg)
    folder = parts.saved_guard(cfg, data.name)
    guard = GuardedPredictor.load(folder, device=parts.device(cfg), trusted=list(cfg.trusted))
    evaluation = evaluate_live(guard, data)
    print(summarise(evaluation).headline)
    print(write_report(evaluation, Path(cfg.paths.reports) / data.name / f"{cfg.name}-live"))


if __name__ == "__main__":
    main()
