"""Versions that broke in service: their weights got flipped bits, and what they say since is asked once and kept."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import TEST
from benchmarks.decisions.keeping import kept_or_made
from benchmarks.reporting import digest_of_code
from deepfailguard.faults.weights import BitFlips
from deepfailguard.identity import describe
from deepfailguard.progress import track
from deepfailguard.store import TensorFile
from deepfailguard.types import NO_ANSWER, Evidence
from deepfailguard.versions.tapping import tapped
from deepfailguard.versions.version import Version, device_of

__all__ = ["BITS", "Damage", "Said", "damaged", "with_damage"]

BITS: Final = (1, 10, 100)
"""How many bits flip."""

_BATCH: Final = 250

_CODE: Final = ("deepfailguard/faults/weights.py", "deepfailguard/versions/tapping.py")
"""What breaks versions, and what asks them."""

Said = dict[str, torch.Tensor]
"""Logits (B, K) and features (B, F), both float32 and perhaps not finite."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Flipped exponent bits in the weights of one version.

    Attributes:
        member: position of the version in the pool.
        bits: how many.
        seed: of which ones.
    """

    member: int
    bits: int
    seed: int

    @property
    def fault(self) -> BitFlips:
        """What is injected."""
        return BitFlips(bits="exponent", count=self.bits)


def damaged(
    damages: Iterable[Damage], pool: PoolEvidence, versions: dict[int, Version], folder: Path
) -> dict[Damage, Said]:
    """What damaged versions say of the test images, as far as no earlier run worked it out.

    Args:
        damages: which ones.
        pool: the images.
        versions: sound ones by their position in the pool.
        folder: of what is kept.
    """
    part, said, wanted = pool.parts[TEST].images, dict[Damage, Said](), list(dict.fromkeys(damages))
    code = digest_of_code(*_CODE)
    for damage in track(wanted, len(wanted), "asking damaged versions"):
        fault, version = damage.fault, versions[damage.member]
        made_of = {"version": version.fingerprint, "inputs": part.fingerprint, "fault": describe(fault), "code": code}

        def made(fault: BitFlips = fault, version: Version = version, seed: int = damage.seed) -> TensorFile:
            model, _ = fault.apply(version.model, seed)
            taps = [tapped(model, piece.to(device_of(model), copy=True)) for piece in part.images.split(_BATCH)]
            told = {name: [getattr(tap, name).cpu().float() for tap in taps] for name in ("logits", "features")}
            return TensorFile({name: torch.cat(each) for name, each in told.items()}, {})

        said[damage] = kept_or_made(folder, {**made_of, "seed": damage.seed}, made).tensors
    return said


def with_damage(evidence: Evidence, column: int, said: Said) -> Evidence:
    """Evidence as a guard gathers it where the version in one column is damaged; without its distances."""
    assert evidence.logits is not None
    assert evidence.features is not None
    answered = said["logits"].isfinite().all(1)
    labels, logits, found = evidence.labels.clone(), evidence.logits.clone(), evidence.found.clone()
    labels[:, column] = torch.where(answered, said["logits"].argmax(1), NO_ANSWER)
    logits[:, column] = torch.where(answered[:, None], said["logits"], 0.0)
    found[:, column] = False
    features = list(evidence.features)
    features[column] = said["features"]
    return Evidence(labels, evidence.distance, found, logits, tuple(features))
