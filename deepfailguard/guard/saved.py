"""A guard as one folder: ``guard.json``, ``predictor.safetensors``, ``versions/*.safetensors``. No pickle."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.decision.base import Rule
from deepfailguard.errors import ConfigurationError, CorruptFileError, VersionNotFoundError
from deepfailguard.identity import describe, digest_tensors, rebuild, weights_fingerprint
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.store import load_json, load_tensors, save_json, save_tensors
from deepfailguard.types import Bounds
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.version import Version, load_weights

__all__ = ["GuardCard", "SavedGuard", "load_guard", "load_versions", "save_guard"]

_CARD, _PREDICTOR, _VERSIONS = "guard.json", "predictor.safetensors", "versions"


@dataclass(frozen=True, slots=True)
class GuardCard:
    """What a guard is, without what it learned.

    Attributes:
        classes: class names in label order.
        bounds: range of the input values.
        names: the versions' names, in the order of every (B, N) tensor.
        fingerprints: hashes of their weights.
        cards: their identity cards; None for models that deepfailguard did not train.
        calibration_accuracy: of each version.
        calibration_size: how many inputs the predictor learned from.
        calibration_fingerprint: hash of these inputs and their labels.
        input_shape: (C, H, W).
    """

    classes: tuple[str, ...]
    bounds: Bounds
    names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    cards: tuple[IdentityCard | None, ...]
    calibration_accuracy: tuple[float, ...]
    calibration_size: int
    calibration_fingerprint: str
    input_shape: tuple[int, int, int]

    @property
    def identities(self) -> dict[str, str]:
        """Fingerprints by name."""
        return dict(zip(self.names, self.fingerprints, strict=True))


@dataclass(frozen=True, slots=True)
class SavedGuard:
    """A guard without its models: enough to judge evidence that was cached.

    Attributes:
        card: what it is.
        predictor: fitted.
        decision: the rule.
        distance: what told (or tells) the boundary distances; None if the predictor needs none.
    """

    card: GuardCard
    predictor: FailurePredictor
    decision: Rule
    distance: DistanceEstimator | None


def save_guard(folder: Path, guard: SavedGuard, models: Sequence[nn.Module]) -> None:
    """Write a guard; its card comes last, so a folder without one is not a guard."""
    (folder / _CARD).unlink(missing_ok=True)
    for old in (folder / _VERSIONS).glob("*.safetensors"):
        old.unlink()
    for position, model in enumerate(models):
        save_tensors(_weights(folder, position, guard.card.names[position]), model.state_dict())
    state = guard.predictor.state()
    save_tensors(folder / _PREDICTOR, state)
    content = {
        "classes": list(guard.card.classes),
        "bounds": [guard.card.bounds.low, guard.card.bounds.high],
        "versions": [
            {"name": name, "fingerprint": fingerprint, "card": None if card is None else card.to_json(), "accuracy": a}
            for name, fingerprint, card, a in zip(
                guard.card.names,
                guard.card.fingerprints,
                guard.card.cards,
                guard.card.calibration_accuracy,
                strict=True,
            )
        ],
        "calibration_size": guard.card.calibration_size,
        "calibration_fingerprint": guard.card.calibration_fingerprint,
        "input_shape": list(guard.card.input_shape),
        "learned": digest_tensors(state),
        "predictor": describe(guard.predictor),
        "decision": describe(guard.decision),
        "distance": describe(guard.distance),
    }
    save_json(folder / _CARD, content)


def load_guard(folder: Path, trusted: Sequence[str]) -> SavedGuard:
    """Read a guard without its models.

    Raises:
        FileNotFoundError: the folder holds no guard.
        CorruptFileError: a file was changed since it was saved.
        ConfigurationError: a part of it comes from a package that is not trusted.
    """
    if not (folder / _CARD).is_file():
        raise FileNotFoundError(f"{folder} holds no guard (no {_CARD}); make one with scripts/train_guard.py or save()")
    content = load_json(folder / _CARD)
    predictor: FailurePredictor = rebuild(content["predictor"], trusted)
    state = load_tensors(folder / _PREDICTOR).tensors
    if digest_tensors(state) != content["learned"]:
        raise CorruptFileError(f"{folder / _PREDICTOR} belongs to another guard than {_CARD}; save the guard again")
    predictor = predictor.with_state(state)
    return SavedGuard(
        _card(content), predictor, rebuild(content["decision"], trusted), rebuild(content["distance"], trusted)
    )


def load_versions(
    folder: Path, card: GuardCard, trusted: Sequence[str], models: Sequence[nn.Module] | Mapping[str, nn.Module] | None
) -> list[Version]:
    """Read the weights of a guard's versions and verify each against its fingerprint.

    Args:
        folder: of the guard.
        card: of the guard.
        trusted: packages whose architectures may be rebuilt.
        models: untrained (or trained) modules of the right architectures, in order or by name; needed for those
            versions that deepfailguard did not train, since it does not know how to build them.
    """
    if isinstance(models, Mapping):
        models = _in_order(models, card.names)
    if models is not None and len(models) != len(card.names):
        raise ConfigurationError(f"the guard has {len(card.names)} versions, got {len(models)} models")
    versions = []
    for position, name in enumerate(card.names):
        identity = card.cards[position]
        model = _build(name, identity, trusted) if models is None else models[position]
        _check_kind(model, position)
        _load_weights(_weights(folder, position, name), model, card.fingerprints[position])
        versions.append(Version(name, model, len(card.classes), card.bounds, card.fingerprints[position], identity))
    return versions


def _in_order(models: Mapping[str, nn.Module], names: Sequence[str]) -> list[nn.Module]:
    if set(models) != set(names):
        raise ConfigurationError(f"the guard's versions are {', '.join(names)}; got models for {', '.join(models)}")
    return [models[name] for name in names]


def _build(name: str, card: IdentityCard | None, trusted: Sequence[str]) -> nn.Module:
    if card is None:
        raise ConfigurationError(
            f"version {name!r} was not trained by deepfailguard, which cannot rebuild it: "
            "pass the modules, GuardedPredictor.load(folder, models=[...]); their weights are read from the folder"
        )
    with torch.random.fork_rng():  # building draws initial weights that are thrown away
        model: nn.Module = rebuild(card.architecture, trusted).build(len(card.classes))
    return model


def _load_weights(path: Path, model: nn.Module, fingerprint: str) -> None:
    if not path.is_file():
        raise VersionNotFoundError(f"the guard has lost a version: no file {path}; save the guard again")
    load_weights(model, load_tensors(path).tensors, path.stem)
    if weights_fingerprint(model) != fingerprint:
        raise CorruptFileError(f"{path} holds other weights than the guard was fitted with; save the guard again")
    model.eval()


def _check_kind(model: object, position: int) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"expected a torch module as model {position}, got a {type(model).__name__}")


def _weights(folder: Path, position: int, name: str) -> Path:
    """The number keeps apart names that differ only in what a file name cannot hold."""
    safe = re.sub(r"[^\w.+@-]", "_", name)
    return folder / _VERSIONS / f"{position}-{safe}.safetensors"


def _shape(shape: list[int]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


def _card(content: dict[str, Any]) -> GuardCard:
    versions = content["versions"]
    return GuardCard(
        classes=tuple(content["classes"]),
        bounds=Bounds(*content["bounds"]),
        names=tuple(version["name"] for version in versions),
        fingerprints=tuple(version["fingerprint"] for version in versions),
        cards=tuple(None if v["card"] is None else IdentityCard.from_json(v["card"]) for v in versions),
        calibration_accuracy=tuple(version["accuracy"] for version in versions),
        calibration_size=content["calibration_size"],
        calibration_fingerprint=content["calibration_fingerprint"],
        input_shape=_shape(content["input_shape"]),
    )
