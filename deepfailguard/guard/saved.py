"""A guard as one folder without pickle: its card, its predictor, what that learned from, and the versions' weights."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.decision.base import Rule
from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.calibration import Basis, Calibration, Service, learned, lessons
from deepfailguard.guard.calibration_tensors import (
    calibration_of,
    calibration_tensors,
    canary_of,
    canary_tensors,
    service_of,
    service_tensors,
)
from deepfailguard.guard.canary import Canary
from deepfailguard.guard.folders import (
    CALIBRATION_FILE,
    CANARY_FILE,
    CARD_FILE,
    MANIFEST_FILE,
    PREDICTOR_FILE,
    check_replaceable,
    in_words,
    put_in_place,
    standing_guard,
    verified_part,
    weights_file,
)
from deepfailguard.guard.judging import for_versions, option_of
from deepfailguard.guard.manifest import verify_guard, write_manifest
from deepfailguard.identity import TARGET, describe, digest_tensors, rebuild, weights_fingerprint
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.store import load_json, save_json, save_tensors
from deepfailguard.types import Bounds
from deepfailguard.versions.card import IdentityCard

__all__ = ["GuardCard", "SavedGuard", "load_guard", "save_guard"]

logger = logging.getLogger(__name__)


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
        if isinstance(names, str):
            raise ConfigurationError(f"expected a list of versions to leave out, got {names!r}; give [{names!r}]")
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ConfigurationError(
                f"there is no version {', '.join(map(repr, unknown))}; the guard has {', '.join(self.names)}"
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
        canary: inputs with the answers that are expected of the versions; None in a guard that was saved before.
    """

    card: GuardCard
    predictor: FailurePredictor
    decision: Rule
    distance: DistanceEstimator | None
    calibration: Calibration
    service: Service | None = None
    canary: Canary | None = None

    @property
    def basis(self) -> Basis:
        """What the predictor learned from."""
        return "calibration" if self.service is None else self.service.basis

    @property
    def summary(self) -> str:
        """Versions, predictor and decision in a line."""
        card = self.card
        rates = ", ".join(f"{n} ({a:.1%})" for n, a in zip(card.names, card.calibration_accuracy, strict=True))
        rule = describe(self.decision)[TARGET].rpartition(".")[2]
        since = (
            "" if self.service is None else f"; {len(self.service)} labelled inputs since, {self.service.basis} used"
        )
        threshold = describe(self.decision).get("abstain_above")
        abstains = "" if threshold is None else f", abstains above {threshold:.3g}"
        return (
            f"{len(card.names)} versions, right on {card.calibration_size} calibration inputs: {rates}; "
            f"{type(self.predictor).__name__}, {rule}{abstains}{since}"
        )

    def of_versions(self, columns: list[int]) -> "SavedGuard":
        """A guard of some of the versions; its predictor is fitted anew on what is kept of them.

        Raises:
            ConfigurationError: the decision answers by a version that is not among them.
        """
        decision = for_versions(self.decision, columns)
        if len(columns) < len(self.card.names) and option_of(decision, "abstain_above") is not None:
            logger.warning(
                "without %s the threshold of the decision is another guard's: no risk is promised; see `promising`",
                ", ".join(name for n, name in enumerate(self.card.names) if n not in columns),
            )
        calibration = self.calibration.of_versions(columns)
        service = None if self.service is None else self.service.of_versions(columns)
        predictor = learned(self.predictor, lessons(calibration, service, self.basis))
        canary = None if self.canary is None else self.canary.of_versions(columns)
        card = self.card.of_versions(columns)
        return SavedGuard(card, predictor, decision, self.distance, calibration, service, canary)


def save_guard(folder: Path, guard: SavedGuard, models: Sequence[nn.Module]) -> None:
    """Write a guard. What cannot be written leaves a guard that stands in the folder as it was.

    Raises:
        ConfigurationError: the weights of a version changed since the guard learned from it, a part of the guard
            cannot be described, or the folder holds other things than a guard.
    """
    check_replaceable(folder)
    _check_unchanged(guard.card, models)
    files = _tensor_files(guard)
    content = _content(guard, {name: digest_tensors(tensors) for name, tensors in files.items()})
    files |= {str(weights_file(n, guard.card.names[n])): model.state_dict() for n, model in enumerate(models)}
    before = standing_guard(folder)
    if before is not None and before != content:
        logger.info("replacing the guard in %s: %s", folder, in_words(before))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new.") as beside:
        for name, tensors in files.items():
            save_tensors(Path(beside, name), tensors)
        save_json(Path(beside, CARD_FILE), content)
        write_manifest(Path(beside), [*files, CARD_FILE])
        put_in_place(Path(beside), folder, [*files, MANIFEST_FILE, CARD_FILE])


def _tensor_files(guard: SavedGuard) -> dict[str, dict[str, Tensor]]:
    """The parts of a guard that are tensors, by file name."""
    kept = calibration_tensors(guard.calibration) | service_tensors(guard.service)
    files = {PREDICTOR_FILE: guard.predictor.state(), CALIBRATION_FILE: kept}
    return files if guard.canary is None else {**files, CANARY_FILE: canary_tensors(guard.canary)}


def _check_unchanged(card: GuardCard, models: Sequence[nn.Module]) -> None:
    """Refuse weights that nobody could load: they would not be those of the card."""
    known = zip(card.names, card.fingerprints, models, strict=True)
    changed = [name for name, fingerprint, model in known if weights_fingerprint(model) != fingerprint]
    if changed:
        raise ConfigurationError(
            f"the weights of {', '.join(changed)} changed since the guard learned from them; load them again, or let "
            "the guard learn from what they are now, by update(images, labels) with labels enough to compare, or by fit"
        )


def _content(guard: SavedGuard, digests: Mapping[str, str]) -> dict[str, Any]:
    """The card's file, with the digests of the other files' tensors."""
    card, service = guard.card, guard.service
    told = zip(card.names, card.fingerprints, card.cards, card.calibration_accuracy, strict=True)
    return {
        "classes": list(card.classes),
        "bounds": [card.bounds.low, card.bounds.high],
        "versions": [
            {"name": name, "fingerprint": fingerprint, "card": None if c is None else c.to_json(), "accuracy": accuracy}
            for name, fingerprint, c, accuracy in told
        ],
        "calibration_size": card.calibration_size,
        "calibration_fingerprint": card.calibration_fingerprint,
        "input_shape": list(card.input_shape),
        "learned": digests[PREDICTOR_FILE],
        "calibration": digests[CALIBRATION_FILE],
        "canary": digests.get(CANARY_FILE),
        "service": None if service is None else {"basis": service.basis, "fingerprints": list(service.fingerprints)},
        "predictor": describe(guard.predictor),
        "decision": describe(guard.decision),
        "distance": describe(guard.distance),
    }


def load_guard(folder: Path, trusted: Sequence[str], public_key: Path | None = None) -> SavedGuard:
    """Read a guard without its models, once all its files are those of its manifest.

    Args:
        folder: of the guard.
        trusted: packages whose classes the folder may name.
        public_key: of who must have signed the manifest; nobody need have if None.

    Raises:
        FileNotFoundError: the folder holds no guard.
        CorruptFileError: a file was changed since it was saved.
        SignatureError: the guard is not signed with the private key to this public one.
        ConfigurationError: a part of it comes from a package that is not trusted.
    """
    verify_guard(folder, public_key)
    content = load_json(folder / CARD_FILE)
    if not {"calibration", "service"} <= content.keys():
        raise ConfigurationError(
            f"{folder} was saved by an older release, which kept less of the calibration; fit the guard again"
        )
    predictor: FailurePredictor = rebuild(content["predictor"], trusted)
    kept = verified_part(folder / CALIBRATION_FILE, content["calibration"])
    canary = content.get("canary")  # releases before had none
    return SavedGuard(
        card=_card(content),
        predictor=_with_state(predictor, verified_part(folder / PREDICTOR_FILE, content["learned"]), folder),
        decision=rebuild(content["decision"], trusted),
        distance=rebuild(content["distance"], trusted),
        calibration=calibration_of(kept),
        service=None if content["service"] is None else service_of(kept, **content["service"]),
        canary=None if canary is None else canary_of(verified_part(folder / CANARY_FILE, canary)),
    )


def _with_state(predictor: FailurePredictor, learned: dict[str, Tensor], folder: Path) -> FailurePredictor:
    try:
        return predictor.with_state(learned)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{folder} holds what another release of {type(predictor).__name__} learned; fit the guard again"
        ) from error


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
