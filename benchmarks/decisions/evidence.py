"""What the versions of a pool say of all images: computed once and kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.decisions.images import CALIBRATION, TEST, Part, rehearsed_part
from benchmarks.decisions.pools import Draw, Member
from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.searching import within
from deepfailguard.errors import CorruptFileError
from deepfailguard.faults.rehearsal import KINDS, Kind
from deepfailguard.identity import describe, digest, digest_tensors
from deepfailguard.progress import track
from deepfailguard.store import load_tensors, save_tensors
from deepfailguard.types import NO_ANSWER, Evidence, Rehearsed
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.tapping import tapped
from deepfailguard.versions.version import Version, device_of

__all__ = ["PoolEvidence", "Said", "Versions", "gather"]

_BATCH: Final = 250


@dataclass(frozen=True, slots=True)
class Said:
    """What one version says of the B images of a part.

    Attributes:
        logits: (B, K) float32, not finite where it gives no answer.
        features: (B, F) float32.
        distance: (D,) float32 of the first D images; D = 0 where nobody asked for them.
        found: (D,) bool.
    """

    logits: Tensor = field(repr=False)
    features: Tensor = field(repr=False)
    distance: Tensor = field(repr=False)
    found: Tensor = field(repr=False)


@dataclass(frozen=True, slots=True)
class Versions:
    """Whom to ask.

    Attributes:
        pool: where the versions are.
        cards: of the versions.
        members: who they are, in the same order.
        device: where they run.
    """

    pool: Pool
    cards: Sequence[IdentityCard]
    members: tuple[Member, ...]
    device: torch.device


@dataclass(frozen=True, slots=True)
class PoolEvidence:
    """What all versions of a pool say.

    Attributes:
        data: name of the data set.
        seed: of pool and images.
        members: who they are.
        fingerprints: of their weights.
        parts: the images.
        said: by part, of each version.
    """

    data: str
    seed: int
    members: tuple[Member, ...]
    fingerprints: tuple[str, ...]
    parts: Mapping[str, Part] = field(repr=False)
    said: Mapping[str, tuple[Said, ...]] = field(repr=False)

    def truth(self, part: str) -> Tensor:
        """(B,) int64, the true classes."""
        return self.parts[part].images.labels

    def of(self, part: str, chosen: Sequence[int]) -> Evidence:
        """Evidence of some versions on all images of a part; a distance that was not searched is not found."""
        each = [self.said[part][number] for number in chosen]
        logits = torch.stack([said.logits for said in each], 1)
        sound = logits.isfinite().all(2)
        distance, found = torch.zeros(sound.shape), torch.zeros(sound.shape, dtype=torch.bool)
        for column, said in enumerate(each):
            distance[: len(said.distance), column] = said.distance
            found[: len(said.found), column] = said.found
        labels = torch.where(sound, logits.argmax(2), NO_ANSWER)
        kept = torch.where(sound[:, :, None], logits, 0.0)
        return Evidence(labels, distance, found & sound, kept, tuple(said.features for said in each))

    def searched(self, part: str) -> int:
        """How many images of a part have distances: the first ones."""
        return min(len(said.distance) for said in self.said[part])

    def distances_digest(self, chosen: Sequence[int]) -> str:
        """Hash of all distances of some versions: another search, other distances."""
        said = {f"{part}/{number}": self.said[part][number] for part in (CALIBRATION, TEST) for number in chosen}
        found = {f"{name}/found": each.found for name, each in said.items()}
        return digest_tensors({name: each.distance for name, each in said.items()} | found)

    def rehearsed(self, chosen: Sequence[int], without: frozenset[Kind]) -> Rehearsed:
        """Evidence of some versions on rehearsed images of all kinds but some."""
        names = [rehearsed_part(kind) for kind in KINDS if kind not in without]
        sources = [source for name in names if (source := self.parts[name].source) is not None]
        evidence = Evidence.concatenate([self.of(name, chosen) for name in names])
        return Rehearsed(evidence, torch.cat([self.truth(name) for name in names]), torch.cat(sources))


@dataclass(frozen=True, slots=True)
class _Work:
    """What one version is asked."""

    card: IdentityCard
    part: Part
    search: DistanceEstimator | None
    searched: int

    @property
    def made_of(self) -> dict[str, object]:
        search = None if self.search is None else describe(self.search)
        inputs = self.part.images.fingerprint
        return {"version": self.card.fingerprint, "inputs": inputs, "search": search, "searched": self.searched}


def gather(
    draw: Draw, versions: Versions, parts: Mapping[str, Part], search: DistanceEstimator, searched: int, folder: Path
) -> PoolEvidence:
    """Ask all versions about all parts; what was kept by an earlier run is not asked again.

    Args:
        draw: of data set and seed.
        versions: whom to ask.
        parts: the images.
        search: tells distances of calibration and test images.
        searched: of how many calibration images at most, the first ones.
        folder: of what is kept.
    """
    cards = versions.cards
    limits = {CALIBRATION: searched, TEST: len(parts[TEST].images)}
    said: dict[str, list[Said]] = {name: [] for name in parts}
    for card in track(cards, len(cards), "asking versions"):
        loaded: list[Version] = []
        for name, part in parts.items():
            limit = limits.get(name, 0)
            work = _Work(card, part, within(search, card.bounds) if limit else None, limit)
            path = folder / f"{digest(work.made_of)[:24]}.safetensors"
            said[name].append(_kept(path) or _ask_and_keep(work, path, versions, loaded))
    fingerprints = tuple(card.fingerprint for card in cards)
    told = {name: tuple(each) for name, each in said.items()}
    return PoolEvidence(draw.data, draw.seed, versions.members, fingerprints, parts, told)


def _kept(path: Path) -> Said | None:
    """What an earlier run kept; None if it is not there or damaged."""
    try:
        return Said(**load_tensors(path).tensors)
    except (FileNotFoundError, CorruptFileError):
        return None


def _ask_and_keep(work: _Work, path: Path, versions: Versions, loaded: list[Version]) -> Said:
    if not loaded:  # a version is only loaded where something is missing
        loaded.append(versions.pool.load(work.card, versions.device))
    said = _ask(loaded[0], work)
    tensors = {name: getattr(said, name) for name in Said.__slots__}
    save_tensors(path, tensors, work.made_of)
    return said


def _ask(version: Version, work: _Work) -> Said:
    images = work.part.images.images
    logits, features = (torch.cat(each) for each in zip(*_tapped(version, images), strict=True))
    if work.search is None:
        return Said(logits, features, torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    distances = work.search(version.model, images[: work.searched])
    return Said(logits, features, distances.size, distances.found)


def _tapped(version: Version, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for piece in images.split(_BATCH):
        tap = tapped(version.model, piece.to(device_of(version.model), copy=True))
        yield tap.logits.cpu().float(), tap.features.cpu().float()
