"""The identity card that lies beside a version's weights."""

from dataclasses import asdict, dataclass, field
from typing import Any

from deepfailguard.errors import CorruptFileError
from deepfailguard.types import Bounds, Change, Receipt

__all__ = ["IdentityCard"]


@dataclass(frozen=True, slots=True)
class IdentityCard:
    """What a version is, where it comes from and how good it was.

    Attributes:
        name: name for people.
        key: identity: the same key, the same weights.
        dataset: name of the data set.
        source_fingerprint: hash of the data set's train part, before any fault: inputs that it may have seen.
        train_fingerprint: hash of the images and labels it was trained on, after the faults.
        classes: class names in label order.
        input_shape: (C, H, W).
        bounds: range of the input values.
        architecture: description from which the network can be rebuilt.
        recipe: how it was trained.
        seed: of the training.
        receipts: what each fault changed, in the order of their application.
        outcome: ``completed`` or ``stopped_early``.
        metrics: accuracies and losses by name.
        curves: one list per measured quantity, one entry per epoch.
        fingerprint: hash of the weights.
        made: date, library versions.
    """

    name: str
    key: str
    dataset: str
    source_fingerprint: str
    train_fingerprint: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    bounds: Bounds
    architecture: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    receipts: tuple[Receipt, ...]
    outcome: str
    metrics: dict[str, float]
    curves: dict[str, list[float]]
    fingerprint: str
    made: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> tuple[str, ...]:
        """Names of its faults, empty for a sound version."""
        return tuple(receipt.fault for receipt in self.receipts)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "IdentityCard":
        """From what `to_json` returned.

        Raises:
            CorruptFileError: fields are missing or unknown.
        """
        try:
            return cls._from_json(content)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"not an identity card of this version of deepfailguard: {error}; train the version again"
            ) from error

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> "IdentityCard":
        receipts = tuple(
            Receipt(r["fault"], r["settings"], r["seed"], tuple(Change(**change) for change in r["changes"]))
            for r in content["receipts"]
        )
        channels, height, width = content["input_shape"]
        return cls(
            **{
                **content,
                "classes": tuple(content["classes"]),
                "input_shape": (channels, height, width),
                "bounds": Bounds(**content["bounds"]),
                "receipts": receipts,
            }
        )
