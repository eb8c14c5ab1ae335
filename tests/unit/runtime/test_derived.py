"""Decisions for the versions that are left: fitted once, found again, never in the way."""

from pathlib import Path

import pytest
import torch

from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.runtime import derived
from deepfailguard.runtime.derived import DerivedGuards
from tests.examples import bars, template_model


@pytest.fixture(scope="module")
def whole() -> SavedGuard:
    models = [template_model(seed, noise=0.1 * seed) for seed in range(3)]
    return GuardedPredictor.fit(models, bars(150, seed=3), predictor=JointPredictor(rehearse=0)).saved


def test_all_parts_are_fitted_in_the_background(whole: SavedGuard) -> None:
    guards = DerivedGuards(whole)
    assert guards.get([0, 1, 2]) is whole
    guards.fit_ahead([0, 1, 2])
    assert guards.wait(120.0)
    for columns in ([0, 1], [0, 2], [1, 2], [0], [1], [2]):
        guard = guards.get(columns)
        assert guard is not None
        assert guard.card.names == tuple(whole.card.names[n] for n in columns)
    guards.close()


def test_what_is_asked_for_in_vain_comes_first(whole: SavedGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []

    def fitted(self: DerivedGuards, key: tuple[int, ...]) -> SavedGuard:
        made.append(key)
        return whole

    monkeypatch.setattr(DerivedGuards, "_make", fitted)
    guards = DerivedGuards(whole)
    assert guards.get([1]) is None  # nobody fits yet
    guards.fit_ahead([0, 1, 2])
    assert guards.wait(60.0)
    guards.close()
    assert made[0] == (1,)
    assert sorted(made) == [(0,), (0, 1), (0, 2), (1,), (1, 2), (2,)]


def test_what_was_fitted_is_found_after_a_restart_and_damage_is_mended(
    whole: SavedGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = whole.calibration.evidence.of_versions([0, 2])
    first = DerivedGuards(whole, tmp_path).fit([0, 2])
    assert first is not None
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(SavedGuard, "of_versions", lambda *_: pytest.fail("it was fitted again"))
        again = DerivedGuards(whole, tmp_path).fit([0, 2])
    assert again is not None
    told = [guard.predictor.failure_probability(evidence) for guard in (first, again)]
    assert torch.equal(*told)
    assert again.card == first.card
    file.write_bytes(b"torn" + file.read_bytes()[4:])
    mended = DerivedGuards(whole, tmp_path).fit([0, 2])
    assert mended is not None
    assert torch.equal(mended.predictor.failure_probability(evidence), told[0])


def test_another_guard_does_not_find_it(whole: SavedGuard, tmp_path: Path) -> None:
    DerivedGuards(whole, tmp_path).fit([0, 2])
    models = [template_model(seed, noise=0.1 * seed) for seed in range(3)]
    other = GuardedPredictor.fit(models, bars(150, seed=4), predictor=SoftVotePredictor()).saved
    DerivedGuards(other, tmp_path).fit([0, 2])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_decision_that_cannot_be_had_is_none(whole: SavedGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> SavedGuard:
        raise ArithmeticError("singular")

    monkeypatch.setattr(SavedGuard, "of_versions", fail)
    guards = DerivedGuards(whole)
    assert guards.fit([0]) is None
    assert guards.get([0]) is None


def test_of_many_versions_only_the_largest_parts_are_fitted_ahead() -> None:
    parts = list(derived._parts(range(12)))
    assert len(parts) == 64
    assert len(parts[0]) == 11
    assert len(parts[-1]) == 10
    assert len(list(derived._parts(range(6)))) == 62
