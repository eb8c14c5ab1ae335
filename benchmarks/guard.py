"""What the guard costs: beside a plain loop over the same versions, and cached beside live.

    python benchmarks/guard.py [--quick] [--json PATH]

Each pair is timed alternately in one process; a line gives the median of the ratios and their 10 % to 90 % range.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import gaussian_kde
from torch import nn

from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.data.base import ImageSet
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.density import fit_density, log_density
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.seeding import generator, seed_everything

SIDE, CLASSES, BATCH = 32, 10, 64


def network() -> nn.Module:
    """A small convolutional classifier; its cost counts here, not what it knows."""
    layers: list[nn.Module] = []
    width = 3
    for wider in (16, 32, 64):
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]
        width = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, CLASSES)).eval()


def images(count: int) -> ImageSet:
    """Random images with random labels."""
    random = generator(0, "benchmark")
    pictures = torch.rand(count, 3, SIDE, SIDE, generator=random)
    return ImageSet(pictures, torch.randint(CLASSES, (count,), generator=random))


def compare(name: str, ours: Callable[[], Any], other: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Time two ways alternately and print how many times as long ours takes."""
    ours(), other()  # warm up
    ratios = []
    for _ in range(rounds):
        ratios.append(seconds(ours) / seconds(other))
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    print(f"{name}: {middle:.3f} ({low:.3f} to {high:.3f})")
    return {"name": name, "median": middle, "low": low, "high": high, "rounds": rounds}


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def guard_beside_loop(rounds: int) -> dict[str, Any]:
    """The guard without distances beside a plain loop over its versions."""
    seed_everything(0, "benchmark")
    models = [network() for _ in range(5)]
    guard = GuardedPredictor.fit(models, images(100), predictor=PriorPredictor())
    batch = images(BATCH).images

    @torch.no_grad()
    def loop() -> list[torch.Tensor]:
        return [model(batch).softmax(1) for model in models]

    return compare("guard without distances / plain loop, 5 versions, batch 64", lambda: guard(batch), loop, rounds)


def cached_beside_live(rounds: int, count: int) -> dict[str, Any]:
    """A guard that finds its distances in the cache beside one that searches them."""
    seed_everything(0, "benchmark")
    models, data = [network() for _ in range(2)], images(count)
    distance = FoolboxDeepFool(candidates=3, steps=10)
    with tempfile.TemporaryDirectory() as folder:
        live = GuardedPredictor.fit(models, data, predictor=KdePredictor(), distance=distance)
        cached = GuardedPredictor.fit(models, data, predictor=KdePredictor(), distance=distance, cache=Path(folder))
        name = f"cached / live verdicts, 2 versions, {count} images"
        return compare(name, lambda: cached(data.images), lambda: live(data.images), rounds)


def density_beside_scipy(rounds: int, points: int) -> dict[str, Any]:
    """Our log density beside scipy's on the same points."""
    random = generator(0, "density")
    known, asked = (torch.rand(points, generator=random, dtype=torch.float64) for _ in range(2))
    density, theirs = fit_density(known, span=1.0), gaussian_kde(known.numpy())
    name = f"our KDE / scipy's, {points} points at {points} places"
    return compare(
        name,
        lambda: log_density(density.points, density.bandwidth, asked),
        lambda: theirs.logpdf(asked.numpy()),
        rounds,
    )


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and inputs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rounds = 5 if options.quick else 30
    results = [
        guard_beside_loop(rounds * 4),
        cached_beside_live(3 if options.quick else 10, 32 if options.quick else 128),
        density_beside_scipy(rounds, 500 if options.quick else 2000),
    ]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
