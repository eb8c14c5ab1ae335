"""Images of the decision benchmark, and what versions say of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.decisions.evidence import PoolEvidence, Versions, gather
from benchmarks.decisions.images import (
    CALIBRATION,
    RELATED,
    SHIFTS,
    TEST,
    Part,
    load_parts,
    rehearsed_part,
    shifted_part,
)
from benchmarks.decisions.pools import Draw, Member, Sizes
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.data.base import ImageSet
from deepfailguard.faults.rehearsal import KINDS
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds
from deepfailguard.versions.version import Version

DRAW = Draw("digits", 100, "", Sizes(train=50, calibration=40, test=30))


class CountingPool:
    """Versions by name, and how often one was loaded."""

    def __init__(self, models: dict[str, nn.Module]) -> None:
        self.versions = {name: Version.of(model, name, 3) for name, model in models.items()}
        self.loads = 0

    @property
    def cards(self) -> list[Any]:
        return [
            SimpleNamespace(name=v.name, fingerprint=v.fingerprint, bounds=Bounds()) for v in self.versions.values()
        ]

    def load(self, card: Any, device: torch.device) -> Version:
        self.loads += 1
        return self.versions[card.name]


class NoNumber(nn.Module):
    """A model that fails on bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        return torch.where((x.mean((1, 2, 3)) > 0.5)[:, None], torch.nan, logits)


def linear(seed: int) -> nn.Module:
    layer = nn.Linear(16, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 16, generator=generator(seed, "weights")))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def part(count: int, name: str, source: bool = False) -> Part:
    random = generator(0, "images", name)
    images = ImageSet(torch.rand(count, 1, 4, 4, generator=random), torch.randint(3, (count,), generator=random))
    return Part(images, torch.arange(count) if source else None)


def small_parts() -> dict[str, Part]:
    rehearsed = {rehearsed_part(kind): part(5, kind, source=True) for kind in KINDS}
    return {CALIBRATION: part(20, CALIBRATION), TEST: part(10, TEST), **rehearsed}


def asked(pool: CountingPool, folder: Path, searched: int = 8) -> PoolEvidence:
    members = tuple(Member(name, None) for name in pool.versions)
    versions = Versions(pool, pool.cards, members, torch.device("cpu"))  # type: ignore[arg-type]
    return gather(DRAW, versions, small_parts(), BoundarySearch("fast"), searched, folder)


def test_what_was_kept_is_not_asked_again(tmp_path: Path) -> None:
    pool = CountingPool({"a": linear(1), "b": linear(2)})
    first = asked(pool, tmp_path)
    assert pool.loads == 2
    again = asked(pool, tmp_path)
    assert pool.loads == 2
    assert torch.equal(first.of(TEST, [0, 1]).distance, again.of(TEST, [0, 1]).distance)
    assert first.distances_digest([0, 1]) == again.distances_digest([0, 1])


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    pool = CountingPool({"a": linear(1)})
    before = asked(pool, tmp_path).of(CALIBRATION, [0])
    for path in tmp_path.iterdir():
        path.write_bytes(b"torn")
    after = asked(pool, tmp_path).of(CALIBRATION, [0])
    assert pool.loads == 2
    assert before.logits is not None
    assert after.logits is not None
    assert torch.equal(before.logits, after.logits)


def test_other_weights_are_asked_anew(tmp_path: Path) -> None:
    asked(CountingPool({"a": linear(1)}), tmp_path)
    other = CountingPool({"a": linear(2)})
    asked(other, tmp_path)
    assert other.loads == 1


def test_only_some_distances_are_searched(tmp_path: Path) -> None:
    evidence = asked(CountingPool({"a": linear(1)}), tmp_path, searched=8)
    assert evidence.searched(CALIBRATION) == 8
    assert evidence.of(CALIBRATION, [0]).found.squeeze(1).nonzero().max() < 8
    assert bool(evidence.of(TEST, [0]).found.any())
    assert not bool(evidence.of(rehearsed_part("blur"), [0]).found.any())


def test_logits_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    evidence = asked(CountingPool({"a": NoNumber()}), tmp_path)
    bright = evidence.parts[CALIBRATION].images.images.mean((1, 2, 3)) > 0.5
    told = evidence.of(CALIBRATION, [0])
    assert bool(bright.any())
    assert torch.equal(told.labels[:, 0] == -1, bright)
    assert told.logits is not None
    assert bool(told.logits.isfinite().all())


def test_rehearsed_evidence_leaves_kinds_out(tmp_path: Path) -> None:
    evidence = asked(CountingPool({"a": linear(1)}), tmp_path)
    everything, less = evidence.rehearsed([0], frozenset()), evidence.rehearsed([0], frozenset({"noise", "gamma"}))
    assert len(everything.truth) == 5 * len(KINDS)
    kept = torch.cat([evidence.truth(rehearsed_part(kind)) for kind in KINDS if kind not in ("noise", "gamma")])
    assert torch.equal(less.truth, kept)
    assert len(less.evidence) == len(less.source) == len(kept)


def test_shifts_change_the_same_test_images() -> None:
    parts = load_parts(DRAW, 25, 10, tuple(RELATED), print)
    test = parts[TEST].images
    assert len(test) == 25
    for shift in SHIFTS:
        shifted = parts[shifted_part(shift)].images
        assert torch.equal(shifted.labels, test.labels)
        assert not torch.equal(shifted.images, test.images)
    assert shifted_part("natural") not in parts


def test_rehearsed_images_bear_the_labels_of_their_sources() -> None:
    parts = load_parts(DRAW, 25, 10, (), print)
    truth = parts[CALIBRATION].images.labels
    for kind in KINDS:
        changed = parts[rehearsed_part(kind)]
        assert changed.source is not None
        assert torch.equal(changed.images.labels, truth[changed.source])
    assert not any(name.startswith("test ") for name in parts)


@pytest.mark.parametrize("shift", list(SHIFTS))
def test_a_tested_family_is_never_rehearsed(shift: str) -> None:
    assert shift in RELATED[shift]
    assert RELATED[shift] <= set(KINDS)
