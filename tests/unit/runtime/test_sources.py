import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deepfailguard.errors import ConfigurationError, CorruptFileError, VersionError, VersionNotFoundError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.saved import GuardCard, load_guard
from deepfailguard.identity import describe, weights_fingerprint
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.runtime.sources import FolderSource, MemorySource
from deepfailguard.types import Bounds
from deepfailguard.versions.pool import TRUSTED_PACKAGES
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, bars, template_model

IMAGES = bars(20, seed=4).images


def model(seed: int) -> nn.Module:
    return template_model(seed, noise=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    GuardedPredictor.fit([model(0), model(1)], bars(60, seed=3), predictor=SoftVotePredictor()).save(folder)
    return folder


@pytest.fixture(scope="module")
def card(folder: Path) -> GuardCard:
    return load_guard(folder, TRUSTED_PACKAGES).card


def version() -> Version:
    return Version.of(model(1), "one", CLASSES, Bounds())


def test_a_folder_gives_fresh_verified_versions(folder: Path, card: GuardCard) -> None:
    skeleton = template_model(7)
    before = weights_fingerprint(skeleton)
    source = FolderSource(folder, card, 1, model=skeleton)
    first, second = source.load(), source.load()
    assert first.name == card.names[1]
    assert first.fingerprint == weights_fingerprint(first.model) == weights_fingerprint(model(1))
    assert torch.equal(first.logits(IMAGES), model(1)(IMAGES))
    assert {id(p) for p in first.model.parameters()}.isdisjoint(id(p) for p in second.model.parameters())
    assert weights_fingerprint(skeleton) == before


def test_a_folder_that_lost_or_changed_weights_is_told(folder: Path, card: GuardCard) -> None:
    damaged = replace(card, fingerprints=(card.fingerprints[0], card.fingerprints[0]))
    with pytest.raises(CorruptFileError, match="holds other weights than the guard was fitted with"):
        FolderSource(folder, damaged, 1, model=model(0)).load()
    with pytest.raises(VersionNotFoundError, match="lost a version"):
        FolderSource(folder / "elsewhere", card, 1, model=model(0)).load()
    with pytest.raises(ConfigurationError, match="cannot rebuild it"):
        FolderSource(folder, card, 1).load()


def test_sources_travel(folder: Path, card: GuardCard) -> None:
    for source in (FolderSource(folder, card, 1, model=model(0)), MemorySource(version())):
        there = pickle.loads(pickle.dumps(source))  # noqa: S301 - what we wrote a moment ago
        assert describe_weights(there.load()) == describe_weights(source.load())


def describe_weights(loaded: Version) -> object:
    return describe({name: tensor.tolist() for name, tensor in loaded.model.state_dict().items()})


def test_memory_keeps_sound_weights_whatever_happens_to_those_that_serve() -> None:
    serving = version()
    source = MemorySource(serving)
    with torch.no_grad():
        serving.model.weight.mul_(0)  # type: ignore[operator, union-attr]
        source.load().model.weight.mul_(0)  # type: ignore[operator, union-attr]
    loaded = source.load()
    assert weights_fingerprint(loaded.model) == loaded.fingerprint == version().fingerprint
    assert torch.equal(loaded.logits(IMAGES), model(1)(IMAGES))


def test_memory_that_was_damaged_is_told() -> None:
    source = MemorySource(version())
    with torch.no_grad():
        next(source._kept.model.parameters()).view(-1)[3] += 1
    with pytest.raises(VersionError, match=r"the copy of version 'one' in memory is damaged.*load the guard anew"):
        source.load()


def test_memory_refuses_weights_that_had_changed_before() -> None:
    changed = version()
    with torch.no_grad():
        next(changed.model.parameters()).view(-1)[3] += 1
    with pytest.raises(ConfigurationError, match="'one' no longer has the weights of its fingerprint"):
        MemorySource(changed)


def test_memory_refuses_what_cannot_be_copied() -> None:
    locked = version()
    locked.model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match=r"model of version 'one' cannot be copied: TypeError: .*lock"):
        MemorySource(locked)
