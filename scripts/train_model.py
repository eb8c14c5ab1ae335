"""Train versions: `python scripts/train_model.py -m model=compact_vgg,compact_resnet fault=[],label_noise seed=0,1`."""

from hydra.utils import instantiate
from omegaconf import DictConfig

import parts
from deepfailguard.pipeline.training import TrainRequest, train_version
from deepfailguard.training.trainer import Trainer
from entry import script


@script("train_model")
def main(cfg: DictConfig) -> None:
    request = TrainRequest(
        source=instantiate(cfg.dataset, _convert_="all"),
        architecture=instantiate(cfg.model, _convert_="all"),
        recipe=instantiate(cfg.training),
        faults=parts.faults(cfg),
        seed=cfg.seed,
    )
    filed = train_version(request, parts.pool(cfg), Trainer(parts.device(cfg)))
    print(filed.describe())


if __name__ == "__main__":
    main()
