"""The versions of a guard, read from its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from deepfailguard.errors import ConfigurationError, CorruptFileError, VersionNotFoundError
from deepfailguard.guard.saved import GuardCard, weights_file
from deepfailguard.identity import rebuild, weights_fingerprint
from deepfailguard.store import load_tensors
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.version import Version, load_weights

__all__ = ["load_versions"]


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
        _load_weights(folder / weights_file(position, name), model, card.fingerprints[position])
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
