"""From data, architecture, recipe and faults to a version in the pool."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

import deepfailguard
from deepfailguard.data.base import DatasetSource, ImageSet, Splits
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.evaluation.report.curves import write_curves
from deepfailguard.faults.inject import inject_all
from deepfailguard.identity import describe, digest, weights_fingerprint
from deepfailguard.seeding import random_state_kept
from deepfailguard.training.trainer import Trainer, TrainingResult
from deepfailguard.types import Receipt
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.spec import Architecture, Recipe, VersionSpec, architecture_name
from deepfailguard.versions.version import run

__all__ = ["FiledVersion", "TrainRequest", "accuracy", "train_version"]

logger = logging.getLogger(__name__)
_BATCH = 256


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """A version that somebody wants.

    Attributes:
        source: the data set.
        architecture: what to train.
        recipe: how to train it.
        faults: of training data, program and weights, in the order of their application within each kind.
        seed: of the training and of the faults.
    """

    source: DatasetSource
    architecture: Architecture
    recipe: Recipe = field(default_factory=Recipe)
    faults: Sequence[Any] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FiledVersion:
    """A version of the pool and how it came there.

    Attributes:
        card: its identity card.
        found_again: whether it existed already.
    """

    card: IdentityCard
    found_again: bool

    def describe(self) -> str:
        """The version, its accuracy and what its faults changed, in words."""
        accuracies = ", ".join(f"{name.removesuffix('_accuracy')} {a:.1%}" for name, a in self.card.metrics.items())
        how = "found again" if self.found_again else self.card.outcome.replace("_", " ")
        lines = [f"{self.card.name} ({how}): accuracy {accuracies}", *(f"  {r}" for r in self.card.receipts)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request after its program and training-data faults."""

    spec: VersionSpec
    splits: Splits
    source_fingerprint: str
    receipts: tuple[Receipt, ...]

    @property
    def key(self) -> str:
        return self.spec.key(self.splits.classes, self.splits.train.fingerprint)


def train_version(request: TrainRequest, pool: Pool, trainer: Trainer) -> FiledVersion:
    """Return the version from the pool, after training it if it is not there yet.

    Weight faults act on a trained version: the version without them is found or trained first.

    Raises:
        ConfigurationError: a fault of test inputs, or a trainer with controlling hooks: what they do to the
            weights is not in the version's identity, and it would be found again as a sound one.
    """
    if any(getattr(hook, "role", "observer") == "controller" for hook in trainer.hooks):
        raise ConfigurationError("a version that controlling hooks change has no identity; call Trainer.train instead")
    splits = _load(request.source)
    by_kind = _sort_faults(request.faults)
    spec = VersionSpec(splits.name, request.architecture, request.recipe, request.seed)
    program = inject_all(by_kind["program"], spec, request.seed)
    data = inject_all(by_kind["training_data"], splits, request.seed)
    plan = _Plan(program.target, data.target, splits.train.fingerprint, (*program.receipts, *data.receipts))
    filed = _find_or_train(plan, pool, trainer)
    if by_kind["weights"]:
        return _with_weight_faults(filed, by_kind["weights"], plan.splits, pool, trainer.device)
    return filed


def _load(source: DatasetSource) -> Splits:
    splits = source.load()
    if not isinstance(splits, Splits):
        raise DataFormatError(
            f"{type(source).__name__}.load() returned a {type(splits).__name__}, "
            "expected deepfailguard.data.base.Splits; mydataset/arrays.py makes one of arrays"
        )
    return splits


def accuracy(model: nn.Module, images: ImageSet) -> float:
    """Share of images that a model gets right; output that is not finite is wrong."""
    right = 0
    for x, y in zip(images.images.split(_BATCH), images.labels.split(_BATCH), strict=True):
        logits = run(model, x).cpu()
        right += int(((logits.argmax(1) == y) & torch.isfinite(logits).all(1)).sum())
    return right / len(images)


def _sort_faults(faults: Sequence[Any]) -> dict[str, list[Any]]:
    by_kind: dict[str, list[Any]] = {"program": [], "training_data": [], "weights": []}
    for fault in faults:
        if fault.acts_on not in by_kind:
            raise ConfigurationError(
                f"fault {fault.name!r} acts on test inputs, not on training; "
                "give it to scripts/cache_distances.py, evaluate_live.py or study.py instead"
            )
        by_kind[fault.acts_on].append(fault)
    return by_kind


def _find_or_train(plan: _Plan, pool: Pool, trainer: Trainer) -> FiledVersion:
    found = pool.find(plan.key)
    if found is not None:
        return FiledVersion(found, found_again=True)
    _check_fits(plan)
    checkpoint = pool.checkpoint(plan.splits.name, plan.key)
    result = trainer.train(plan.spec, plan.splits.train, len(plan.splits.classes), checkpoint)
    card = _card(plan, result)
    write_curves(result.curves, pool.save(result.model, card) / "curves.png")
    checkpoint.unlink(missing_ok=True)
    return FiledVersion(card, found_again=False)


def _check_fits(plan: _Plan) -> None:
    """Try the architecture on two images before hours of training."""
    shape = plan.splits.input_shape
    with random_state_kept():
        model = plan.spec.architecture.build(len(plan.splits.classes))
    try:
        output = run(model, plan.splits.train.images[:2])
    except Exception as error:
        raise ConfigurationError(
            f"architecture {architecture_name(plan.spec.architecture)!r} cannot take inputs of shape {shape} "
            f"of data set {plan.splits.name!r}: {error}; check its channels and the images' size"
        ) from error
    came = tuple(getattr(output, "shape", ()))
    if came != (2, len(plan.splits.classes)):
        raise ConfigurationError(
            f"architecture {architecture_name(plan.spec.architecture)!r} gives outputs of shape {came}, "
            f"expected (2, {len(plan.splits.classes)}) for the classes of {plan.splits.name!r}"
        )


def _card(plan: _Plan, result: TrainingResult) -> IdentityCard:
    splits = plan.splits
    return IdentityCard(
        name=_name(plan.spec.architecture, plan.receipts, plan.spec.seed),
        key=plan.key,
        dataset=splits.name,
        source_fingerprint=plan.source_fingerprint,
        train_fingerprint=splits.train.fingerprint,
        classes=splits.classes,
        input_shape=splits.input_shape,
        bounds=splits.bounds,
        architecture=describe(plan.spec.architecture),
        recipe=plan.spec.recipe.as_dict(),
        seed=plan.spec.seed,
        receipts=plan.receipts,
        outcome=result.outcome,
        metrics=_metrics(result.model, splits),
        curves=result.curves,
        fingerprint=weights_fingerprint(result.model),
        made=_made(),
    )


def _with_weight_faults(
    base: FiledVersion, faults: list[Any], splits: Splits, pool: Pool, device: torch.device
) -> FiledVersion:
    key = digest({"base": base.card.key, "weight faults": describe(faults), "seed": base.card.seed})
    found = pool.find(key)
    if found is not None:
        return FiledVersion(found, found_again=True)
    injected = inject_all(faults, pool.load(base.card, device).model, base.card.seed)
    receipts = (*base.card.receipts, *injected.receipts)
    content = base.card.to_json() | {
        "name": "+".join([base.card.name.rsplit("-s", 1)[0], *(r.fault for r in injected.receipts)])
        + f"-s{base.card.seed}",
        "key": key,
        "metrics": _metrics(injected.target, splits),
        "fingerprint": weights_fingerprint(injected.target),
        "made": _made(),
    }
    card = IdentityCard.from_json(content | {"receipts": [_receipt_json(receipt) for receipt in receipts]})
    pool.save(injected.target, card)
    return FiledVersion(card, found_again=False)


def _receipt_json(receipt: Receipt) -> dict[str, Any]:
    return asdict(receipt)


def _name(architecture: Architecture, receipts: Sequence[Receipt], seed: int) -> str:
    return "+".join([architecture_name(architecture), *(receipt.fault for receipt in receipts)]) + f"-s{seed}"


def _metrics(model: nn.Module, splits: Splits) -> dict[str, float]:
    parts = {"train": splits.train, "calibration": splits.calibration, "test": splits.test}
    return {f"{part}_accuracy": accuracy(model, images) for part, images in parts.items()}


def _made() -> dict[str, str]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "deepfailguard": deepfailguard.__version__,
        "torch": str(torch.__version__),
    }
