"""The versions that exist on disk, found again by identity or by name."""

import difflib
import glob
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from deepfailguard.errors import AmbiguousVersionError, CorruptFileError, VersionNotFoundError
from deepfailguard.identity import rebuild, weights_fingerprint
from deepfailguard.seeding import random_state_kept
from deepfailguard.store import load_json, load_tensors, save_json, save_tensors
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.version import Version, load_weights

__all__ = ["TRUSTED_PACKAGES", "Pool"]

logger = logging.getLogger(__name__)

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
        """Cards of all versions (of one data set), ordered by name; damaged ones are left out and logged.

        Versions that bear the same name are given their keys: ``NAME@KEY``.
        """
        paths = self.folder.glob(f"{glob.escape(dataset) if dataset else '*'}/*/{_CARD}")
        cards = [card for path in sorted(paths) if (card := _read_card(path)) is not None]
        names = Counter(card.name for card in cards)
        named = [replace(c, name=f"{c.name}@{c.key[:_SHORT]}") if names[c.name] > 1 else c for c in cards]
        return sorted(named, key=lambda card: (card.name, card.key))

    def find(self, key: str) -> IdentityCard | None:
        """The card of the version with this identity; None if it does not exist yet or is damaged (logged)."""
        for path in self.folder.glob(f"*/*@{key[:_SHORT]}/{_CARD}"):
            card = _read_card(path)
            if card is not None and card.key == key and _is_whole(path.parent / _WEIGHTS, key):
                return card
        return None

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
        with random_state_kept():  # building draws initial weights that are thrown away
            model: nn.Module = rebuild(card.architecture, self.trusted).build(len(card.classes))
        load_weights(model, tensors, card.name)
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
                f"the pool {self.folder} has no versions for data set {dataset!r}{self._others(dataset)}; "
                "train some with scripts/train_model.py"
            )
        return cards

    def checkpoint(self, dataset: str, key: str) -> Path:
        """Where a training keeps its state until the version is filed."""
        return self.folder / dataset / f".{key[:_SHORT]}.resume.safetensors"

    def _pick(self, name: str, cards: list[IdentityCard], dataset: str) -> IdentityCard:
        wanted, _, key = name.partition("@")
        matches = [card for card in cards if _plain(card.name) == wanted and card.key.startswith(key)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            choices = ", ".join(card.name for card in matches)
            raise AmbiguousVersionError(
                f"{len(matches)} versions bear the name {name!r}; say which: {choices} "
                f"(recipe and training images differ, see card.json in their folders below {self.folder / dataset})"
            )
        known = sorted({_plain(card.name) for card in cards})
        close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or known[:5]
        hint = f"; did you mean {', '.join(close)}?"
        if not close:
            hint = f"{self._others(dataset)}; train some first with scripts/train_model.py"
        raise VersionNotFoundError(f"no version {name!r} for data set {dataset!r} below {self.folder}{hint}")

    def _others(self, dataset: str) -> str:
        """What versions there are for other data sets."""
        there = Counter(path.parents[1].name for path in sorted(self.folder.glob(f"*/*/{_CARD}")))
        del there[dataset]  # those that could not be read
        told = ", ".join(f"{name} ({count})" for name, count in there.items())
        return f", but some for {told}" if told else ""

    def _folder(self, card: IdentityCard) -> Path:
        return self.folder / card.dataset / f"{_plain(card.name)}@{card.key[:_SHORT]}"


def _plain(name: str) -> str:
    return name.partition("@")[0]


def _read_card(path: Path) -> IdentityCard | None:
    try:
        return IdentityCard.from_json(load_json(path))
    except CorruptFileError as error:
        logger.warning("left out a version whose card is damaged, %s: %s", path, error)
        return None


def _is_whole(weights: Path, key: str) -> bool:
    try:
        return bool(load_tensors(weights).metadata["key"] == key)
    except (CorruptFileError, FileNotFoundError, KeyError) as error:
        logger.warning("a version's weights are damaged or lost, it must be made again: %s", error)
        return False
