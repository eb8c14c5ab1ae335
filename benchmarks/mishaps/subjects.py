"""The guard that is put under fault: five small networks trained on digits, kept for the next run."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.mishaps.faulty import Faulty
from benchmarks.mishaps.switches import Switch
from deepfailguard.data.base import ImageSet
from deepfailguard.errors import DeepfailguardError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.identity import digest
from deepfailguard.seeding import generator, seed_everything
from mydataset.digits import Digits

__all__ = ["NAMES", "Subject", "guard_on_digits", "with_switches"]

logger = logging.getLogger(__name__)

_EPOCHS: Final = 12
_BATCH: Final = 32
_RATE: Final = 4e-3


@dataclass(frozen=True, slots=True)
class Subject:
    """A guard to put under fault.

    Attributes:
        guard: of versions that are `Faulty`, all of them sound; nobody turns their switches.
        folder: where it was saved.
        plans: make an untrained network of each version's architecture.
        images: (L, C, H, W) that no version was trained and the guard was not fitted on.
        truth: (L,) int64, their labels.
    """

    guard: GuardedPredictor
    folder: Path
    plans: tuple[Callable[[], nn.Module], ...]
    images: Tensor
    truth: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Of the versions, in order."""
        return self.guard.saved.card.names


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Images of the same shape."""
        return F.relu(x + self.body(x))


class _Widening(nn.Module):
    """Appends new channels to its input."""

    def __init__(self, width: int, more: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(width, more, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """With more channels."""
        return torch.cat([x, F.relu(self.body(x))], 1)


def _plain() -> list[nn.Module]:
    second = (nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *second, nn.Flatten(), nn.Linear(96, 10)]


def _wide() -> list[nn.Module]:
    return [nn.Conv2d(1, 24, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10)]


def _residual() -> list[nn.Module]:
    block = _Residual(nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1)))
    return [nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.ReLU(), block, nn.Flatten(), nn.Linear(192, 10)]


def _dense() -> list[nn.Module]:
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
    return [*first, _Widening(8, 8), _Widening(16, 8), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 10)]


def _normalised() -> list[nn.Module]:
    first = (nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU())
    second = (nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU())
    return [*first, *second, nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)]


_PLANS: Final[dict[str, Callable[[], list[nn.Module]]]] = {
    "plain": _plain,
    "wide": _wide,
    "residual": _residual,
    "dense": _dense,
    "normalised": _normalised,
}
NAMES: Final = tuple(_PLANS)


def guard_on_digits(folder: Path, seed: int, say: Callable[[str], None]) -> Subject:
    """The guard, from its folder or trained and fitted anew.

    Args:
        folder: keeps it.
        seed: of weights and order.
        say: gets a line about what takes time.
    """
    splits = Digits().load()
    plans = tuple(partial(_network, name) for name in NAMES)
    code = [repr(plan()) for plan in plans]
    key = digest([code, _EPOCHS, _BATCH, _RATE, seed, splits.train.fingerprint, splits.calibration.fingerprint])[:12]
    kept = folder / f"guard-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    models = with_switches(plans, folder, NAMES)
    guard = _kept(kept, models)
    if guard is None:
        say(f"training {len(NAMES)} versions on {len(splits.train)} images, and fitting the guard")
        for name, model in models.items():
            seed_everything(seed, "chaos", name)
            model.inner = _trained(_network(name), splits.train, seed)
        guard = GuardedPredictor.fit(models, splits.calibration, classes=splits.classes, bounds=splits.bounds)
        guard.save(kept)
    return Subject(guard, kept, plans, splits.test.images, splits.test.labels)


def with_switches(plans: Sequence[Callable[[], nn.Module]], folder: Path, names: Sequence[str]) -> dict[str, Faulty]:
    """Untrained versions with switches in a folder, by name."""
    named = zip(names, plans, strict=True)
    return {name: Faulty(plan(), Switch(folder / f"{name}.switch")).eval() for name, plan in named}


def _network(name: str) -> nn.Module:
    return nn.Sequential(*_PLANS[name]())


def _kept(folder: Path, models: dict[str, Faulty]) -> GuardedPredictor | None:
    if not folder.is_dir():
        return None
    try:
        return GuardedPredictor.load(folder, models=models)
    except (DeepfailguardError, OSError) as error:
        logger.warning("fitting the guard again: %s", error)
        return None


def _trained(model: nn.Module, images: ImageSet, seed: int) -> nn.Module:
    draw = generator(seed, "chaos", "order")
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=0.01)
    model.train()
    for _ in range(_EPOCHS):
        for index in torch.randperm(len(images), generator=draw).split(_BATCH):
            loss = F.cross_entropy(model(images.images[index]), images.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval()
