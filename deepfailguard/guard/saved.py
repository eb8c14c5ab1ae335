"""A guard as one folder without pickle: its card, its predictor, what that learned from, and the versions' weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.decision.base import Rule
from deepfailguard.errors import ConfigurationError, CorruptFileError, VersionNotFoundError
from deepfailguard.guard.calibration import Calibration, Service, learned, lessons
from deepfailguard.guard.calibration_tensors import calibration_of, calibration_tensors, service_of, service_tensors
from deepfailguard.identity import TARGET, describe, digest_tensors, rebuild, weights_fingerprint
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.store import load_json, load_tensors, save_json, save_tensors
from deepfailguard.types import Bounds
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.version import Version, load_weights

__all__ = ["GuardCard", "SavedGuard", "load_guard", "load_versions", "save_guard"]

_CARD, _PREDICTOR, _VERSIONS = "guard.json", "predictor.safetensors", "versions"
_CALIBRATION = "calibration.safetensors"


@dataclass(frozen=True, slots=True)
class GuardCard:
    """What a guard is, without what it learned.

    Attributes:
        classes: class names in label order.
        bounds: range of the input values.
        names: the versions' names, in the order of every (B, N) tensor.
        fingerprints: hashes of their weights.
        cards: their identity cards; None for models that deepfailguard did not train.
        calibration_accuracy: of each version on the calibration inputs.
        calibration_size: how many calibration inputs there were; labelled inputs of service come on top.
        calibration_fingerprint: hash of the calibration inputs and their labels.
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

    def columns_without(self, names: Sequence[str]) -> list[int]:
        """Which versions are left without some of them.

        Raises:
            ConfigurationError: there is no such version, or none is left.
        """
        unknown = [name for name in names if name not in self.names]
        if isinstance(names, str) or unknown:
            raise ConfigurationError(
                f"expected a list of versions to leave out, got {names!r}; the guard has {', '.join(self.names)}"
            )
        left = [column for column, name in enumerate(self.names) if name not in names]
        if not left:
            raise ConfigurationError(f"without {', '.join(names)} no version is left; leave out fewer")
        return left

    def of_versions(self, columns: Sequence[int]) -> "GuardCard":
        """The card of some of the versions."""
        return replace(
            self,
            names=tuple(self.names[column] for column in columns),
            fingerprints=tuple(self.fingerprints[column] for column in columns),
            cards=tuple(self.cards[column] for column in columns),
            calibration_accuracy=tuple(self.calibration_accuracy[column] for column in columns),
        )


@dataclass(frozen=True, slots=True)
class SavedGuard:
    """A guard without its models: enough to judge evidence that was cached.

    Attributes:
        card: what it is.
        predictor: fitted.
        decision: the rule.
        distance: what told (or tells) the boundary distances; None if the predictor needs none.
        calibration: what the versions said to calibration inputs.
        service: what they said to labelled inputs that came later; None if there were none.
    """

    card: GuardCard
    predictor: FailurePredictor
    decision: Rule
    distance: DistanceEstimator | None
    calibration: Calibration
    service: Service | None = None

    @property
    def summary(self) -> str:
        """Versions, predictor and decision in a line."""
        card = self.card
        rates = ", ".join(f"{n} ({a:.1%})" for n, a in zip(card.names, card.calibration_accuracy, strict=True))
        rule = describe(self.decision)[TARGET].rpartition(".")[2]
        since = (
            "" if self.service is None else f"; {len(self.service)} labelled inputs since, {self.service.basis} used"
        )
        return (
            f"{len(card.names)} versions, right on {card.calibration_size} calibration inputs: {rates}; "
            f"{type(self.predictor).__name__}, {rule}{since}"
        )

    def of_versions(self, columns: list[int]) -> "SavedGuard":
        """A guard of some of the versions; its predictor is fitted anew on what is kept of them."""
        calibration = self.calibration.of_versions(columns)
        service = None if self.service is None else self.service.of_versions(columns)
        basis = "calibration" if service is None else service.basis
        predictor = learned(self.predictor, lessons(calibration, service, basis))
        return SavedGuard(self.card.of_versions(columns), predictor, self.decision, self.distance, calibration, service)


def save_guard(folder: Path, guard: SavedGuard, models: Sequence[nn.Module]) -> None:
    """Write a guard; its card comes last, so a folder without one is not a guard."""
    (folder / _CARD).unlink(missing_ok=True)
    for old in (folder / _VERSIONS).glob("*.safetensors"):
        old.unlink()
    for position, model in enumerate(models):
        save_tensors(_weights(folder, position, guard.card.names[position]), model.state_dict())
    state = guard.predictor.state()
    save_tensors(folder / _PREDICTOR, state)
    kept = calibration_tensors(guard.calibration) | service_tensors(guard.service)
    save_tensors(folder / _CALIBRATION, kept)
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
        "calibration": digest_tensors(kept),
        "basis": None if guard.service is None else guard.service.basis,
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
    if "calibration" not in content:
        raise ConfigurationError(
            f"{folder} was saved by an older release, which kept nothing of the calibration; fit the guard again"
        )
    predictor: FailurePredictor = rebuild(content["predictor"], trusted)
    kept = _verified(folder / _CALIBRATION, content["calibration"])
    return SavedGuard(
        card=_card(content),
        predictor=predictor.with_state(_verified(folder / _PREDICTOR, content["learned"])),
        decision=rebuild(content["decision"], trusted),
        distance=rebuild(content["distance"], trusted),
        calibration=calibration_of(kept),
        service=None if content["basis"] is None else service_of(kept, content["basis"]),
    )


def _verified(path: Path, expected: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise CorruptFileError(f"the guard has lost a part: no file {path}; save the guard again")
    tensors = load_tensors(path).tensors
    if digest_tensors(tensors) != expected:
        raise CorruptFileError(f"{path} belongs to another guard than {_CARD}; save the guard again")
    return tensors


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
