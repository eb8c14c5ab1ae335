"""The versions of a guard, read from its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from deepfailguard.errors import ConfigurationError, CorruptFileError, VersionNotFoundError
from deepfailguard.guard.folders import weights_file
from deepfailguard.guard.saved import GuardCard
from deepfailguard.identity import rebuild, weights_fingerprint
from deepfailguard.seeding import random_state_kept
from deepfailguard.store import load_tensors
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.version import Version, load_weights

__all__ = ["in_order", "load_version", "load_versions"]


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
    given = in_order(models, card.names)
    return [load_version(folder, card, position, trusted, model) for position, model in enumerate(given)]


def load_version(
    folder: Path, card: GuardCard, position: int, trusted: Sequence[str], model: nn.Module | None = None
) -> Version:
    """Read the weights of one version and verify them against its fingerprint.

    Args:
        folder: of the guard.
        card: of the guard.
        position: of the version in the card.
        trusted: packages whose architectures may be rebuilt.
        model: a module of the right architecture, whose weights are overwritten; built anew if None.

    Raises:
        VersionNotFoundError: the file is gone.
        CorruptFileError: it holds other weights than the guard was fitted with.
        ConfigurationError: they do not fit the model, or nobody knows how to build one.
    """
    name, identity, fingerprint = card.names[position], card.cards[position], card.fingerprints[position]
    built = _build(name, identity, trusted) if model is None else model
    _load_weights(folder / weights_file(position, name), built, fingerprint)
    return Version(name, built, len(card.classes), card.bounds, fingerprint, identity)


def in_order(
    models: Sequence[nn.Module] | Mapping[str, nn.Module] | None, names: Sequence[str]
) -> Sequence[nn.Module | None]:
    """A module, or None, for each version in the guard's order.

    Raises:
        ConfigurationError: they are not one module for each version.
    """
    if models is None:
        return [None] * len(names)
    if isinstance(models, Mapping):
        if set(models) != set(names):
            raise ConfigurationError(f"the guard's versions are {', '.join(names)}; got models for {', '.join(models)}")
        models = [models[name] for name in names]
    if len(models) != len(names):
        raise ConfigurationError(f"the guard has {len(names)} versions, got {len(models)} models")
    for position, model in enumerate(models):
        _check_kind(model, position)
    return models


def _build(name: str, card: IdentityCard | None, trusted: Sequence[str]) -> nn.Module:
    if card is None:
        raise ConfigurationError(
            f"version {name!r} was not trained by deepfailguard, which cannot rebuild it: "
            "pass the modules, GuardedPredictor.load(folder, models=[...]); their weights are read from the folder"
        )
    with random_state_kept():  # building draws initial weights that are thrown away
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
