"""Small versions in a pool, and estimators that fail in ways of their own, for tests of the launchers."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.identity import describe, weights_fingerprint
from deepfailguard.seeding import seed_everything
from deepfailguard.types import Bounds, Distances
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool
from tests.examples import CLASSES, SIZE, TinyNet, bars

TRUSTED = ("tests", "deepfailguard")
CPU = torch.device("cpu")
CHUNK = 8
DISTANCE = FoolboxDeepFool(batch_size=CHUNK, steps=10)
NAMES = ("narrow", "middle", "wide")


def filled_pool(folder: Path) -> Pool:
    """Three untrained versions: their boundaries are as good as any for these tests."""
    pool = Pool(folder, TRUSTED)
    for number, name in enumerate(NAMES):
        architecture = TinyNet(width=4 * (number + 1), name=name)
        with torch.random.fork_rng():
            seed_everything(number, "launching")
            model = architecture.build(CLASSES).eval()
        pool.save(model, _card(name, model, architecture))
    return pool


def _card(name: str, model: nn.Module, architecture: TinyNet) -> IdentityCard:
    return IdentityCard(
        name=name,
        key=weights_fingerprint(model),
        dataset="bars",
        source_fingerprint="source",
        train_fingerprint="train",
        classes=tuple(f"bar {k}" for k in range(CLASSES)),
        input_shape=(1, SIZE, SIZE),
        bounds=Bounds(),
        architecture=describe(architecture),
        recipe={},
        seed=0,
        receipts=(),
        outcome="completed",
        metrics={},
        curves={},
        fingerprint=weights_fingerprint(model),
    )


def images() -> dict[str, Tensor]:
    """Two parts that end in a chunk of another size; some images come twice, in one part and across both."""
    first, second = bars(45, seed=11).images, bars(26, seed=12).images
    first[40] = first[3]
    second[25] = first[17]
    second[9] = second[1]
    return {"calibration": first, "test": second}


def same_bits(one: dict[str, Distances], other: dict[str, Distances]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(getattr(one[key], field), getattr(other[key], field))
        for key in one
        for field in ("labels", "size", "found")
    )


def width(model: nn.Module) -> int:
    """Which of the versions this is: its first layer tells."""
    return int(next(model.parameters()).shape[0])


@dataclass(frozen=True)
class ByPlace:
    """An estimator whose results depend on the place in the chunk, as rounding may: equal images differ."""

    batch_size: int = CHUNK

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        size = x.flatten(1).sum(1) + torch.arange(len(x)) / 1024 + width(model)
        return Distances(torch.zeros(len(x), dtype=torch.int64), size, torch.ones(len(x), dtype=torch.bool))


@dataclass(frozen=True)
class Troubled:
    """DeepFool that meets trouble in one version, after some chunks and as often as it is told to.

    What happened is marked by files, so that all processes count together.
    """

    folder: Path
    trouble: str  # kill, raise, interrupt or hang
    times: int
    after: int = 2
    victim: int = 8  # the width of the version
    batch_size: int = CHUNK
    low: float = 0.0
    high: float = 1.0

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.low, self.high)

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        if width(model) == self.victim and not self._mark("chunk", self.after) and self._mark("trouble", self.times):
            self._meet_trouble()
        return FoolboxDeepFool(batch_size=self.batch_size, steps=10)(model, x)

    @property
    def met(self) -> int:
        return len(list(self.folder.glob("trouble-*")))

    def _mark(self, name: str, most: int) -> bool:
        for number in range(most):
            try:
                os.close(os.open(self.folder / f"{name}-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False

    def _meet_trouble(self) -> None:
        if self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "hang":
            time.sleep(600)
        if self.trouble == "interrupt":
            raise KeyboardInterrupt
        raise RuntimeError("the search broke down")


@dataclass(frozen=True)
class HangsOnNode:
    """DeepFool that never comes back on one node of a Ray cluster, and marks that it is there."""

    folder: Path
    node: str
    batch_size: int = CHUNK

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        import ray

        if ray.get_runtime_context().get_node_id() == self.node:
            (self.folder / "trouble-0").touch()
            time.sleep(600)
        return FoolboxDeepFool(batch_size=self.batch_size, steps=10)(model, x)
