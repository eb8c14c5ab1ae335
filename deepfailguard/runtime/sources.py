"""Where a version's sound weights are kept: in a guard's folder, or in memory."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from deepfailguard.errors import ConfigurationError, VersionError
from deepfailguard.guard.loading import load_version
from deepfailguard.guard.saved import GuardCard
from deepfailguard.identity import weights_fingerprint
from deepfailguard.versions.pool import TRUSTED_PACKAGES
from deepfailguard.versions.version import Version, device_of

__all__ = ["FolderSource", "MemorySource"]


@dataclass(frozen=True, slots=True)
class FolderSource:
    """The weights that a guard's folder holds, verified against the guard's card each time that they are read.

    Attributes:
        folder: of the guard.
        card: of the guard.
        position: of the version in the card.
        trusted: packages whose architectures may be rebuilt.
        model: of the version's architecture, where deepfailguard cannot rebuild it; it stays as it is.
        device: where the version shall run.
    """

    folder: Path
    card: GuardCard
    position: int
    trusted: Sequence[str] = TRUSTED_PACKAGES
    model: nn.Module | None = field(default=None, repr=False)
    device: torch.device | str = "cpu"

    def load(self) -> Version:
        """A fresh, verified version.

        Raises:
            VersionNotFoundError: the file is gone.
            CorruptFileError: it holds other weights than the guard was fitted with.
            ConfigurationError: they do not fit the model, or nobody knows how to build one.
        """
        model = None if self.model is None else _copied(self.model, self.card.names[self.position])
        version = load_version(self.folder, self.card, self.position, self.trusted, model)
        version.model.to(self.device)
        return version


class MemorySource:
    """A copy of a version's model on the CPU, which nobody else touches; it is verified each time that it is copied.

    Args:
        version: stays as it is. Its copies run on its device.

    Raises:
        ConfigurationError: its model cannot be copied, or no longer has the weights of its fingerprint.
    """

    def __init__(self, version: Version) -> None:
        self._device = device_of(version.model)
        self._kept = replace(version, model=_copied(version.model, version.name).cpu())
        if not self._is_sound():
            raise ConfigurationError(
                f"version {version.name!r} no longer has the weights of its fingerprint {version.fingerprint[:16]}: "
                "they changed since it was enrolled; load the guard anew"
            )

    def load(self) -> Version:
        """A fresh, verified version.

        Raises:
            VersionError: what is kept in memory is no longer what it was.
        """
        if not self._is_sound():
            raise VersionError(
                f"the copy of version {self._kept.name!r} in memory is damaged: it does not have the fingerprint "
                f"{self._kept.fingerprint[:16]} any more; load the guard anew, from its folder"
            )
        return replace(self._kept, model=_copied(self._kept.model, self._kept.name).to(self._device))

    def _is_sound(self) -> bool:
        return weights_fingerprint(self._kept.model) == self._kept.fingerprint


def _copied(model: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a part of anybody's model raises
        raise ConfigurationError(
            f"the model of version {name!r} cannot be copied: {type(error).__name__}: {error}; a runtime needs copies "
            "to start versions anew (copy.deepcopy must work, so keep locks, open files and graphs out of the model)"
        ) from error
