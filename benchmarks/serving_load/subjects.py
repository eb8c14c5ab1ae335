"""The guards that are measured: one of versions trained on digits, and others whose versions only take their time."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.decisions.pools import FAMILIES, Draw, PoolPlan, train_pool
from benchmarks.reporting import digest_of_code
from deepfailguard.errors import CorruptFileError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.identity import digest
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.runtime.settings import Settings
from deepfailguard.seeding import generator, seed_everything
from deepfailguard.versions.spec import Architecture
from mymodel.densenet121 import DenseNet121
from mymodel.resnet50 import ResNet50

__all__ = ["BATCH", "MADE_UP", "Subject", "digits_guard", "fresh_state", "in_process", "made_up"]

BATCH: Final = 64
_CLASSES: Final = 10
_CALIBRATION: Final = 128  # images: how many it learned from changes nothing of what an answer takes
_SECONDS_TO_FIT: Final = 600.0
_DECIDING: Final = ("predictor/**/*.py", "decision/*.py", "guard/*.py", "versions/*.py")
MADE_UP: Final[dict[str, tuple[tuple[int, int, int], tuple[Architecture, ...]]]] = {
    "compact, 3x32x32": ((3, 32, 32), tuple(family() for family in FAMILIES)),
    "full size, 3x64x64": ((3, 64, 64), (ResNet50(), DenseNet121(), ResNet50(shallow=True))),
}
"""Shape of the images and architectures, by name; weights and images are random."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A guard to measure.

    Attributes:
        name: for tables.
        guard: fitted.
        folder: where it was saved; None if it was not.
        images: (L, C, H, W), what it is asked; L >= a batch.
    """

    name: str
    guard: GuardedPredictor
    folder: Path | None
    images: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Of the versions, in order."""
        return self.guard.saved.card.names

    def batches(self, size: int = BATCH) -> list[Tensor]:
        """All images in whole batches of this size; the last ones come from the start again."""
        count = -(-len(self.images) // size)
        rows = torch.arange(count * size) % len(self.images)
        return list(self.images[rows].split(size))


def digits_guard(kept: Path, say: Callable[[str], None]) -> Subject:
    """Five small versions trained on digits, and the guard of them, from their folder or made anew.

    It is asked about the images that it was calibrated on: clients may then draw from them as long as they like, and
    the watch rightly finds nothing. Other images, drawn 100,000 times from a few hundred, are another distribution,
    which it would report.
    """
    plan = PoolPlan(Draw("digits", 0, ""), kept / "pools", faults=())
    pool, cards = train_pool(plan, torch.device("cpu"), say)
    splits = plan.draw.load()
    code = digest_of_code(*(f"deepfailguard/{pattern}" for pattern in _DECIDING))
    name = digest([code, [card.fingerprint for card in cards], splits.calibration.fingerprint])[:12]
    folder = kept / f"guard-{name}"
    guard = _kept(folder)
    if guard is None:
        say(f"fitting the guard of {len(cards)} versions on {len(splits.calibration)} images")
        versions = [pool.load(card, torch.device("cpu")) for card in cards]
        guard = GuardedPredictor.fit(versions, splits.calibration, classes=splits.classes, bounds=splits.bounds)
        guard.save(folder)
    return Subject("digits, 1x8x8", guard, folder, splits.calibration.images)


def made_up(name: str, images: int = _CALIBRATION) -> Subject:
    """A guard of untrained versions, fitted on random images with random labels: it costs what a sound one costs."""
    shape, architectures = MADE_UP[name]
    seed_everything(0, "serving benchmark", name)
    models: list[nn.Module] = [architecture.build(_CLASSES).eval() for architecture in architectures]
    random = generator(0, "serving benchmark", name, "images")
    pictures = torch.rand(images, *shape, generator=random)
    labels = torch.randint(_CLASSES, (images,), generator=random)
    return Subject(name, GuardedPredictor.fit(models, (pictures, labels)), None, pictures)


def fresh_state(folder: Path) -> Path:
    """A folder for a runtime's state, in which nothing but fitted decisions is left from before."""
    for old in folder.iterdir() if folder.is_dir() else ():
        if old.name != "derived":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return folder


@contextmanager
def in_process(subject: Subject, standby: Sequence[str] = ()) -> Iterator[GuardRuntime]:
    """A runtime of a saved guard in this process, with all decisions fitted.

    It is open only while it is measured: what it does beside answering must not take time from what is measured next.
    """
    assert subject.folder is not None
    settings, state = Settings(standby=tuple(standby)), fresh_state(subject.folder.parent / "state-in-process")
    with GuardRuntime.load(subject.folder, settings=settings, state=state) as runtime:
        wait_until_fitted(runtime)
        yield runtime


def wait_until_fitted(runtime: GuardRuntime) -> None:
    """Wait for the decisions that are fitted in the background: they take time from the answers."""
    if not runtime._core.roster.derived.wait(_SECONDS_TO_FIT):
        raise TimeoutError(f"decisions for all subsets were not fitted within {_SECONDS_TO_FIT:g} s")


def _kept(folder: Path) -> GuardedPredictor | None:
    if not folder.is_dir():
        return None
    try:
        return GuardedPredictor.load(folder)
    except (CorruptFileError, FileNotFoundError):
        return None
