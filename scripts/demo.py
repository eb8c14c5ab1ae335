"""From nothing to a report: train five versions (two faulty), cache distances, fit a guard, evaluate it."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

import parts
from deepfailguard.evaluation.report.summary import summarise
from deepfailguard.evaluation.report.writing import write_report
from deepfailguard.pipeline.guarding import GuardParts
from deepfailguard.pipeline.path import Places, run_path
from deepfailguard.pipeline.training import TrainRequest
from entry import script


@script("demo")
def main(cfg: DictConfig) -> None:
    source, recipe = instantiate(cfg.dataset, _convert_="all"), instantiate(cfg.training)
    wanted = [instantiate(version, _convert_="all") for version in cfg.versions]
    requests = [TrainRequest(source, v["architecture"], recipe, v.get("faults", ()), cfg.seed) for v in wanted]
    chosen = GuardParts(instantiate(cfg.predictor), instantiate(cfg.decision), instantiate(cfg.distance))
    guards = Path(cfg.paths.guards) / source.load().name / cfg.name
    places = Places(parts.pool(cfg), Path(cfg.paths.cache), guards)
    evaluation = run_path(requests, chosen, places, parts.device(cfg))
    page = write_report(evaluation, Path(cfg.paths.reports) / cfg.name)
    picture = save_picture(source.load().test.images[0], page.parent / "example.png")
    print(summarise(evaluation).headline)
    print(f"report: {page}")
    print(f"to ask a server about: {picture}")


def save_picture(image: Tensor, path: Path) -> Path:
    """Write an image (C, H, W) in [0, 1] as a file."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).squeeze(2 if len(image) == 1 else ())
    Image.fromarray(pixels.numpy()).save(path)
    return path


if __name__ == "__main__":
    main()
