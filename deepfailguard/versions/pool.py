"""The versions that exist on disk, found again by identity or by name."""

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from deepfailguard.errors import AmbiguousVersionError, CorruptFileError, VersionNotFoundError
from deepfailguard.identity import rebuild, weights_fingerprint
from deepfailguard.store import load_json, load_tensors, save_json, save_tensors
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.version import Version

__all__ = ["TRUSTED_PACKAGES", "Pool"]

TRUSTED_PACKAGES = ("deepfailguard", "mymodel")
_CARD, _WEIGHTS = "card.json", "weights.safetensors"
_SHORT = 10  # characters of a key that are shown and that name a folder


class Pool:
    """A folder with one folder per version: ``DATASET/NAME@KEY/{card.json, weights.safetensors}``.

    Args:
        folder: of all versions.
        trusted: packages whose architectures may be rebuilt from a card.
    """

    def __init__(self, folder: Path, trusted: Sequence[str] = TRUSTED_PACKAGES) -> None:
        self.folder = folder
        self.trusted = tuple(trusted)

    def cards(self, dataset: str | None = None) -> list[IdentityCard]:
        """Cards of all versions (of one data set), ordered by name."""
        found = sorted(self.folder.glob(f"{dataset or '*'}/*/{_CARD}"))
        return sorted((IdentityCard.from_json(load_json(path)) for path in found), key=lambda c: (c.name, c.key))

    def find(self, key: str) -> IdentityCard | None:
        """The card of the version with this identity, None if it does not exist yet."""
        paths = list(self.folder.glob(f"*/*@{key[:_SHORT]}/{_CARD}"))
        return IdentityCard.from_json(load_json(paths[0])) if paths else None

    def save(self, model: nn.Module, card: IdentityCard) -> Path:
        """File a version; the card comes last, so a version without one is not there yet."""
        folder = self._folder(card)
        save_tensors(folder / _WEIGHTS, model.state_dict(), {"key": card.key})
        save_json(folder / _CARD, card.to_json())
        return folder

    def load(self, card: IdentityCard, device: torch.device) -> Version:
        """Rebuild a version and verify that its weights are those of the card.

        Raises:
            CorruptFileError: the weights differ from those that were saved.
        """
        path = self._folder(card) / _WEIGHTS
        if not path.is_file():
            raise VersionNotFoundError(f"version {card.name} has lost its weights: no file {path}; train it again")
        tensors = load_tensors(path).tensors
        with torch.random.fork_rng():  # building draws initial weights that are thrown away
            model: nn.Module = rebuild(card.architecture, self.trusted).build(len(card.classes))
        model.load_state_dict(tensors)
        if weights_fingerprint(model) != card.fingerprint:
            raise CorruptFileError(
                f"{path} holds other weights than {card.name}'s card says; delete and train it again"
            )
        model.to(device).eval()
        return Version(card.name, model, len(card.classes), card.bounds, card.fingerprint, card)

    def select(self, names: Sequence[str], dataset: str) -> list[IdentityCard]:
        """The cards of these versions, in this order. A name may carry its key: ``NAME@KEY``.

        Raises:
            VersionNotFoundError: nothing of that name; the message names the closest.
            AmbiguousVersionError: several of that name; the message lists them.
        """
        cards = self.cards(dataset)
        return [self._pick(name, cards, dataset) for name in names]

    def choose(self, names: Sequence[str] | None, dataset: str) -> list[IdentityCard]:
        """The versions of these names, or all of the data set for None; there must be one at least."""
        if names is not None:
            return self.select(names, dataset)
        cards = self.cards(dataset)
        if not cards:
            raise VersionNotFoundError(
                f"the pool {self.folder} has no versions for data set {dataset!r}; "
                "train some with scripts/train_model.py"
            )
        return cards

    def remove(self, card: IdentityCard) -> None:
        """Delete a version's folder."""
        shutil.rmtree(self._folder(card))

    def checkpoint(self, dataset: str, key: str) -> Path:
        """Where a training keeps its state until the version is filed."""
        return self.folder / dataset / f".{key[:_SHORT]}.resume.safetensors"

    def _pick(self, name: str, cards: list[IdentityCard], dataset: str) -> IdentityCard:
        wanted, _, key = name.partition("@")
        matches = [card for card in cards if card.name == wanted and card.key.startswith(key)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            choices = ", ".join(f"{card.name}@{card.key[:_SHORT]}" for card in matches)
            raise AmbiguousVersionError(f"{len(matches)} versions bear the name {name!r}; say which: {choices}")
        known = [card.name for card in cards]
        close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or known[:5]
        hint = f"did you mean {', '.join(close)}?" if close else "train some first with scripts/train_model.py"
        raise VersionNotFoundError(f"no version {name!r} for data set {dataset!r} below {self.folder}; {hint}")

    def _folder(self, card: IdentityCard) -> Path:
        return self.folder / card.dataset / f"{card.name}@{card.key[:_SHORT]}"
