"""Compute boundary distances into the cache: `python scripts/cache_distances.py launcher=processes`."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

import parts
from deepfailguard.pipeline.evidence import cache_distances, check_same_data
from deepfailguard.pipeline.guarding import fit_distance
from entry import script


@script("cache_distances")
def main(cfg: DictConfig) -> None:
    launcher = instantiate(cfg.launcher)  # first, so that a wrong setting costs no time
    data = parts.splits(cfg)
    cards = parts.ensemble(cfg, data.name)
    check_same_data(cards, data)
    images = {"calibration": data.calibration.images, "test": data.test.images}
    cache, pool, device = Path(cfg.paths.cache), parts.pool(cfg), parts.device(cfg)
    learning = instantiate(cfg.distance)
    distance = fit_distance(cards, data.calibration.images, learning, pool, device, cache, launcher)
    cached = cache_distances(cards, images, distance, cache, pool, device, launcher)
    for name, distances in cached.items():
        median = distances.size[distances.found].median()
        print(f"{name}: {len(distances)} distances, {int(distances.found.sum())} found, median {median:.4g}")


if __name__ == "__main__":
    main()
