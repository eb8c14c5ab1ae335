"""A guard whose predictor needs to know how stable answers are."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.decision.classes import most_probable_class
from deepfailguard.errors import ConfigurationError, DataFormatError, WrongOutputError
from deepfailguard.guard.asking import Answers, ask, evidence_of
from deepfailguard.guard.calibration_tensors import calibration_of, calibration_tensors
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.turns import in_turns
from deepfailguard.guard.watched import WatchedGuard
from deepfailguard.pipeline.evaluating import evaluate_cached
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.scores import ScoresPredictor
from deepfailguard.predictor.staged import StagedPredictor
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds, Evidence, Need
from deepfailguard.versions.stability import CHANGES, stability
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, Affine, bar_splits, bars, template_model

CALIBRATION, TEST = bars(240, seed=3), bars(60, seed=4)
NEEDS: frozenset[Need] = frozenset({"logits", "stability"})
NAMES = ("good", "fair", "poor")


class Counting(nn.Module):
    """Counts its forward passes, and fails from one of them on if told to."""

    def __init__(self, seed: int = 0, noise: float = 0.3) -> None:
        super().__init__()
        self.sound = template_model(seed, noise)
        self.passes = 0
        self.fails: range = range(0)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes - 1 in self.fails:
            raise RuntimeError("out of memory")
        logits: Tensor = self.sound(x)
        return logits


def _models() -> dict[str, nn.Module]:
    return {name: template_model(seed, 0.1 + 0.35 * seed) for seed, name in enumerate(NAMES)}


def _version(model: nn.Module) -> Version:
    return Version.of(model, "a", CLASSES, Bounds())


def _stability(evidence: Evidence) -> Tensor:
    assert evidence.stability is not None
    return evidence.stability


def _predictor() -> ScoresPredictor:
    return ScoresPredictor(("confidence", "stability"))


@pytest.fixture(scope="module")
def guard() -> GuardedPredictor:
    return GuardedPredictor.fit(_models(), CALIBRATION, predictor=_predictor())


def test_it_is_gathered_for_every_version(guard: GuardedPredictor) -> None:
    evidence = guard.saved.calibration.evidence
    for column, model in enumerate(guard.models):
        told = stability(model, CALIBRATION.images, evidence.labels[:, column], Bounds())
        torch.testing.assert_close(_stability(evidence)[:, column], told)
    verdict = guard(TEST.images)
    assert not verdict.degraded
    right = verdict.version_labels == TEST.labels[:, None]
    failure = verdict.version_failure_probability
    assert failure[right].mean() < failure[~right].mean()


def test_the_predictor_learns_what_it_tells(guard: GuardedPredictor) -> None:
    evidence, truth = guard.saved.calibration.evidence, CALIBRATION.labels
    right, random = evidence.labels == truth[:, None], generator(0, "stability")
    stable = torch.where(right, 0.8, 0.4) + 0.15 * torch.rand(right.shape, generator=random)
    told = replace(evidence, stability=stable)

    def told_apart(predictor: ScoresPredictor) -> float:
        failure = predictor.fit(told, truth).failure_probability(told)
        return float((failure[~right][:, None] > failure[right]).double().mean())

    assert told_apart(_predictor()) > 0.99 > told_apart(ScoresPredictor(("confidence",)))


def test_a_pass_for_each_change_only_where_somebody_needs_it() -> None:
    for needs, passes in ((frozenset[Need](), 1), (frozenset[Need]({"logits"}), 1), (NEEDS, 1 + len(CHANGES))):
        model = Counting()
        answers = ask(_version(model), None, TEST.images, needs)
        assert model.passes == passes
        assert (answers.stability is None) == (passes == 1)
    assert GuardedPredictor.fit([Counting()], CALIBRATION).saved.calibration.evidence.stability is None


@pytest.mark.parametrize("failing", range(1, 1 + len(CHANGES)))
def test_who_fails_on_changed_copies_has_answered(failing: int) -> None:
    model = Counting()
    whole = ask(_version(model), None, TEST.images, NEEDS)
    model.passes, model.fails = 0, range(failing, failing + 1)
    answers = ask(_version(model), None, TEST.images, NEEDS)
    assert torch.equal(answers.distances.labels, whole.distances.labels)
    assert torch.equal(answers.logits, whole.logits)
    assert answers.stability is not None
    assert answers.stability.isnan().all()
    assert answers.health.answered == answers.health.asked == 60
    assert answers.health.problem == "its stability is not known: RuntimeError: out of memory"


def test_a_guard_answers_though_a_version_fails_on_changed_copies() -> None:
    models = [Counting(0, 0.1), Counting(1, 0.5)]
    guard = GuardedPredictor.fit(models, CALIBRATION, predictor=_predictor())
    whole = guard(TEST.images)
    models[1].passes, models[1].fails = 0, range(1, 99)
    verdict = guard(TEST.images)
    assert verdict.degraded
    assert [health.healthy for health in verdict.health] == [True, False]
    assert torch.equal(verdict.version_labels, whole.version_labels)
    assert torch.equal(verdict.version_failure_probability[:, 0], whole.version_failure_probability[:, 0])
    told = verdict.version_failure_probability[:, 1]
    assert bool(((told > 0) & (told < 1)).all())
    assert told.unique().numel() > 1  # its confidence still counts


def test_a_guard_is_not_fitted_where_a_version_fails_on_changed_copies() -> None:
    model = Counting()
    model.fails = range(3, 99)  # the first one is asked about before, to know the classes
    with pytest.raises(WrongOutputError, match="fails on calibration data: its stability is not known"):
        GuardedPredictor.fit([model], CALIBRATION, predictor=_predictor())


class Patchy(nn.Module):
    """Gives no number for some inputs, and raises on others."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :CLASSES].clone()
        if bool((x > 0.97).any()):
            raise RuntimeError("too bright")
        logits[x.mean((1, 2, 3)) < 0.1] = torch.nan
        return logits


def test_inputs_without_an_answer_have_no_stability_and_others_keep_theirs() -> None:
    images = torch.full((6, 1, 2, 2), 0.5)
    images[1] = 0.0
    images[4] = 1.0
    parts = [ask(_version(Patchy()), None, piece, NEEDS) for piece in images.split(2)]
    joined = Answers.concatenate(parts)
    assert joined.distances.labels.tolist() == [0, -1, 0, 0, -1, 0]
    assert joined.stability is not None
    assert joined.stability[[1, 4]].tolist() == [0.0] * 2
    torch.testing.assert_close(joined.stability[[0, 2, 3, 5]], torch.full((4,), 1 / 3))
    assert "1 of 2 inputs" in joined.health.problem
    empty = ask(_version(Patchy()), None, images[:0], NEEDS)
    assert _stability(evidence_of([empty, empty], NEEDS)).shape == (0, 2)


def test_answers_recorded_without_it_are_not_taken_for_unstable_ones() -> None:
    recorded = ask(_version(Counting()), None, TEST.images)
    assert _stability(evidence_of([recorded], NEEDS)).isnan().all()


def test_it_comes_back_from_disk_as_it_was(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    again = GuardedPredictor.load(tmp_path, _models())
    one, other = guard(TEST.images), again(TEST.images)
    assert torch.equal(one.version_failure_probability, other.version_failure_probability)
    assert torch.equal(_stability(guard.saved.calibration.evidence), _stability(again.saved.calibration.evidence))
    left, again_left = guard.without(["fair"]), again.without(["fair"])
    assert torch.equal(left(TEST.images).failure_probability, again_left(TEST.images).failure_probability)


def test_what_was_kept_before_it_was_known_is_still_read(guard: GuardedPredictor) -> None:
    tensors = calibration_tensors(guard.saved.calibration)
    old = {name: tensor for name, tensor in tensors.items() if "stability" not in name}
    assert len(old) == len(tensors) - 1
    assert calibration_of(old).evidence.stability is None


def test_without_some_versions_it_is_that_of_the_others(guard: GuardedPredictor) -> None:
    left = guard.without(["good"])
    kept = _stability(left.saved.calibration.evidence)
    assert torch.equal(kept, _stability(guard.saved.calibration.evidence)[:, 1:])
    torch.testing.assert_close(
        left(TEST.images).version_failure_probability, guard(TEST.images).version_failure_probability[:, 1:]
    )


def test_it_learns_from_labelled_inputs_of_service() -> None:
    guard = GuardedPredictor.fit(_models(), CALIBRATION, predictor=_predictor())
    model, labelled = guard.models[0], bars(160, seed=5)
    assert isinstance(model, Affine)
    with torch.no_grad():
        model.weight.copy_(model.weight.roll(1, 0))
    for half in (slice(80), slice(80, 160)):
        update = guard.update(labelled.images[half], labelled.labels[half])
    assert update.chosen != "calibration"
    assert update.inputs == 160
    service = guard.saved.service
    assert service is not None
    assert _stability(service.evidence).shape == (160, 3)
    assert guard(TEST.images).version_failure_probability[:, 0].mean() > 0.5


class _Rehearsing(JointPredictor):
    """A joint predictor that wants stability beside; it rehearses as others do."""

    needs: ClassVar[frozenset[Need]] = JointPredictor.needs | {"stability"}


def test_rehearsed_inputs_have_it_too() -> None:
    guard = GuardedPredictor.fit(_models(), CALIBRATION, predictor=_Rehearsing(rehearse=10))
    rehearsed = guard.saved.calibration.rehearsed
    assert rehearsed is not None
    told = _stability(rehearsed.evidence)
    assert told.shape == (90, 3)
    assert bool(((told > 0) & (told <= 1)).all())
    again = calibration_of(calibration_tensors(guard.saved.calibration)).rehearsed
    assert again is not None
    assert torch.equal(_stability(again.evidence), told)


class _Staged(StagedPredictor):
    """A cascade that wants stability beside, and tells what it saw."""

    needs: ClassVar[frozenset[Need]] = StagedPredictor.needs | {"stability"}
    seen: Evidence

    def class_probability(self, evidence: Evidence) -> Tensor:
        self.seen = evidence
        return super().class_probability(evidence)


def test_who_was_not_asked_in_a_cascade_has_none() -> None:
    models = [Counting(seed, 0.6) for seed in range(3)]
    predictor = _Staged(tolerance=0.01, rehearse=30)
    guard = GuardedPredictor.fit(models, bars(600, seed=3), predictor=predictor, decision=most_probable_class)
    guard(TEST.images)
    fitted = guard.saved.predictor
    assert isinstance(fitted, _Staged)
    live = fitted.seen
    asked = live.labels[:, 2] >= 0
    assert 0 < int(asked.sum()) < 60
    assert bool((_stability(live)[~asked, 2] == 0).all())
    assert bool((_stability(live)[asked, 2] > 0).all())
    whole = evidence_of([ask(v, None, TEST.images, guard.saved.predictor.needs) for v in guard.versions], fitted.needs)
    torch.testing.assert_close(_stability(in_turns(whole, fitted)), _stability(live))


def test_it_can_be_watched() -> None:
    models = [Counting(seed, 0.3) for seed in range(3)]
    guard = GuardedPredictor.fit(models, CALIBRATION, predictor=_predictor())
    watched = WatchedGuard(guard, scores=["stability"], inputs_per_false_alarm=1000)
    with torch.no_grad():
        models[1].sound.weight.mul_(-1)
    service = bars(400, seed=6).images
    for piece in service.split(40):
        verdict = watched(piece)
    assert [each.name for each in watched.report().quarantined] == ["Counting-1"]
    assert verdict.version_labels[:, 1].tolist() == [-1] * 40  # who is in quarantine needs no stability


def test_cached_evaluation_says_what_it_lacks(guard: GuardedPredictor, tmp_path: Path) -> None:
    splits = bar_splits()
    saved = replace(guard.saved, card=replace(guard.saved.card, classes=splits.classes))
    with pytest.raises(ConfigurationError, match="uses no distances, so there is nothing to read; evaluate it live"):
        evaluate_cached(saved, splits, tmp_path)
    models = {name: Affine(model.weight.data, model.bias.data) for name, model in _models().items()}  # type: ignore[arg-type]
    searched = GuardedPredictor.fit(
        models,
        splits.calibration,
        predictor=ScoresPredictor(("distance", "stability")),
        distance=FirstOrderDistance(),
        classes=splits.classes,
        cache=tmp_path,
    )
    for version in searched.versions:
        cached = CachedDistance(FirstOrderDistance(), tmp_path, version.fingerprint)
        cached(version.model, splits.test.images)
        cached.close()
    with pytest.raises(DataFormatError, match="needs evidence with"):
        evaluate_cached(searched.saved, splits, tmp_path)
