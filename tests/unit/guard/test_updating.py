"""A guard that learns from labelled inputs of service."""

import copy
import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.estimates.distilling import Teaching
from deepfailguard.boundary.estimates.learned import LearnedDistance
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.decision.rules import majority_vote
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.turns import in_turns
from deepfailguard.guard.updating import Update
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.predictor.dynamic_selection import DynamicSelectionPredictor
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.predictor.scores import ScoresPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.predictor.stacking import StackingPredictor
from deepfailguard.predictor.staged import StagedPredictor
from tests.examples import CLASSES, Affine, bars, template_model

CALIBRATION, LABELLED, TEST = bars(240, seed=3), bars(200, seed=5), bars(300, seed=4)
JOINT = JointPredictor(rehearse=20)
LEARNED = LearnedDistance(BoundarySearch(batch_size=32), Teaching(width=8, epochs=3), batch_size=32)


class Breaking(nn.Module):
    """Raises if told to."""

    def __init__(self, seed: int, noise: float) -> None:
        super().__init__()
        self.sound = template_model(seed, noise)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("out of memory")
        logits: Tensor = self.sound(x)
        return logits


def _models() -> dict[str, nn.Module]:
    return {"best": template_model(0, 0.1), "fair": template_model(1, 0.6), "weak": Breaking(2, 0.6)}


def _guard(predictor: FailurePredictor = JOINT, **settings: Any) -> GuardedPredictor:
    return GuardedPredictor.fit(_models(), CALIBRATION, predictor=predictor, **settings)


def _permute_last_layer(guard: GuardedPredictor) -> None:
    model = guard.models[0]
    assert isinstance(model, Affine)
    with torch.no_grad():
        model.weight.copy_(model.weight.roll(1, 0))


def _accuracy(guard: GuardedPredictor) -> float:
    return float((guard(TEST.images).labels == TEST.labels).double().mean())


@pytest.mark.parametrize(
    "predictor", [JOINT, PriorPredictor(), StagedPredictor(rehearse=20)], ids=lambda p: type(p).__name__
)
def test_labelled_inputs_heal_a_guard_of_which_a_version_broke(predictor: FailurePredictor, tmp_path: Path) -> None:
    guard = _guard(predictor)
    healthy = _accuracy(guard)
    _permute_last_layer(guard)
    broken = _accuracy(guard)
    update = guard.update(LABELLED.images, LABELLED.labels)
    healed = _accuracy(guard)
    assert broken < healthy - 0.1
    assert healed > broken + 0.6 * (healthy - broken)
    assert update.chosen != "calibration"
    assert update.losses[update.chosen] < update.losses["calibration"]
    assert update.inputs == 200
    guard.save(tmp_path)  # with the weights that the version has now
    again = GuardedPredictor.load(tmp_path, _models())
    assert torch.equal(again(TEST.images).failure_probability, guard(TEST.images).failure_probability)
    assert repr(again) == repr(guard)
    assert update.chosen in repr(again)


def test_inputs_like_those_of_calibration_change_nothing() -> None:
    guard = _guard()
    before = guard(TEST.images).probabilities
    update = guard.update(LABELLED.images, LABELLED.labels)
    assert update.chosen == "calibration"
    assert set(update.losses) == {"calibration", "calibration and service", "service"}
    assert torch.equal(guard(TEST.images).probabilities, before)
    assert str(update).startswith("learned from calibration: log loss on 200 labelled inputs is ")


def test_a_few_inputs_show_nothing_and_are_kept() -> None:
    guard = _guard(PriorPredictor())
    _permute_last_layer(guard)
    few = guard.update(LABELLED.images[:5], LABELLED.labels[:5])
    assert few == Update("calibration", {}, 5)
    assert "5 labelled inputs show nothing, give 8" in str(few)
    assert guard.update(LABELLED.images[5:8], LABELLED.labels[5:8]).losses
    for start in range(8, 200, 48):
        last = guard.update(LABELLED.images[start : start + 48], LABELLED.labels[start : start + 48])
    assert last.inputs == 200
    at_once = _guard(PriorPredictor())
    _permute_last_layer(at_once)
    assert at_once.update(LABELLED.images, LABELLED.labels) == last  # and it is deterministic
    assert torch.equal(at_once(TEST.images).failure_probability, guard(TEST.images).failure_probability)


@pytest.mark.parametrize(
    "predictor",
    [
        JointPredictor(rehearse=0),
        KdePredictor(),
        SoftVotePredictor(),
        StackingPredictor(),
        DynamicSelectionPredictor("knora_e"),
        ScoresPredictor(),
        StagedPredictor(rehearse=0),
    ],
    ids=lambda p: type(p).__name__,
)
def test_every_predictor_survives_eight_inputs_of_one_class(predictor: FailurePredictor) -> None:
    guard = GuardedPredictor.fit(_models(), bars(40, seed=3), predictor=predictor)
    images = LABELLED.images[LABELLED.labels == 1][:8]
    update = guard.update(images, torch.ones(8, dtype=torch.int64))
    assert len(update.losses) == 3
    assert all(0 <= loss < 20 for loss in update.losses.values())
    assert (guard(TEST.images).labels >= 0).all()


def test_an_image_that_comes_again_counts_once_with_its_last_label() -> None:
    guard = _guard(PriorPredictor())
    wrong = (LABELLED.labels + 1) % CLASSES
    guard.update(LABELLED.images, wrong)
    update = guard.update(LABELLED.images[20:], LABELLED.labels[20:])
    assert update.inputs == 200
    service = guard.saved.service
    assert service is not None
    assert torch.equal(service.truth, torch.cat([wrong[:20], LABELLED.labels[20:]]))
    assert torch.equal(service.evidence.labels, guard(LABELLED.images).version_labels)


def test_it_goes_back_when_what_was_learned_is_no_longer_better() -> None:
    guard = _guard(PriorPredictor())
    before = guard(TEST.images).failure_probability
    guard.update(LABELLED.images, (LABELLED.labels + 1) % CLASSES)
    changed = guard(TEST.images).failure_probability
    assert not torch.equal(changed, before)
    assert guard.update(LABELLED.images, LABELLED.labels).chosen == "calibration"
    assert torch.equal(guard(TEST.images).failure_probability, before)


def test_a_version_that_fails_teaches_that_it_does_not_answer(tmp_path: Path) -> None:
    guard = _guard()
    failing = guard.models[2]
    assert isinstance(failing, Breaking)
    failing.fails = True
    guard.update(LABELLED.images[:40], LABELLED.labels[:40])
    failing.fails = False
    update = guard.update(LABELLED.images[40:80], LABELLED.labels[40:80])
    assert update.inputs == 80
    service = guard.saved.service
    assert service is not None
    assert (service.evidence.labels[:40, 2] == -1).all()
    assert (service.evidence.labels[40:, 2] >= 0).all()
    guard.save(tmp_path)
    again = GuardedPredictor.load(tmp_path, _models())
    assert again.update(LABELLED.images[80:90], LABELLED.labels[80:90]).inputs == 90


def test_a_guard_without_the_broken_version_learns_from_what_the_others_said() -> None:
    guard = _guard()
    _permute_last_layer(guard)
    chosen = guard.update(LABELLED.images, LABELLED.labels).chosen
    left = guard.without(["best"])
    service = left.saved.service
    assert service is not None
    assert service.basis == chosen
    assert service.evidence.versions == 2
    assert left.update(bars(60, seed=9).images, bars(60, seed=9).labels).inputs == 260


@pytest.mark.parametrize("distance", [None, LEARNED], ids=["searched", "learned"])
def test_cached_distances_are_those_of_the_weights_of_now(distance: DistanceEstimator | None, tmp_path: Path) -> None:
    cached = _guard(KdePredictor(), distance=distance, cache=tmp_path)
    live = _guard(KdePredictor(), distance=distance)
    for guard in (cached, live):
        _permute_last_layer(guard)
    one, other = (guard.update(LABELLED.images, LABELLED.labels) for guard in (cached, live))
    assert one == other
    assert one.chosen != "calibration"
    verdict = cached(TEST.images)
    assert not verdict.degraded
    assert torch.equal(verdict.distance, live(TEST.images).distance)
    cached.save(tmp_path / "guard")
    again = GuardedPredictor.load(tmp_path / "guard", _models())
    assert torch.equal(again(TEST.images).distance, verdict.distance)


def test_what_cannot_be_learned_from_is_refused_and_changes_nothing() -> None:
    guard = _guard(PriorPredictor())
    saved, good = guard.saved, bars(20, seed=6)
    bad = good.images.clone()
    bad[3, 0, 0, 0] = float("nan")
    for images, labels, message in (
        (bad, good.labels, r"1 of 20 labelled images \(the first is number 3\) have values that are NaN"),
        (good.images, good.labels + 1, r"labelled labels span 1\.\.3"),
        (good.images, good.labels[:5], "labels must be"),
        (good.images, good.labels.float(), "labels must be"),
        (good.images[:, :, :4], good.labels, r"of shape \(1, 8, 8\) as in calibration"),
        (good.images[:0], good.labels[:0], "labelled data are empty"),
        (CALIBRATION.images.flip(0), CALIBRATION.labels.flip(0), "240 of these 240 images are calibration data"),
        (
            torch.cat([good.images, CALIBRATION.images[7:8]]),
            LABELLED.labels[:21],
            "1 of these 21 images are calibration",
        ),
    ):
        with pytest.raises(DataFormatError, match=message):
            guard.update(images, labels)
    assert guard.saved is saved


def test_what_other_weights_said_no_longer_counts(caplog: pytest.LogCaptureFixture) -> None:
    guard, late = _guard(PriorPredictor()), bars(60, seed=9)
    guard.update(LABELLED.images, LABELLED.labels)
    _permute_last_layer(guard)
    with caplog.at_level(logging.WARNING):
        update = guard.update(late.images, late.labels)
    assert "weights changed: 200 labelled inputs that others had answered no longer count" in caplog.text
    alone = _guard(PriorPredictor())
    _permute_last_layer(alone)
    assert alone.update(late.images, late.labels) == update
    assert update.inputs == 60
    assert torch.equal(alone(TEST.images).failure_probability, guard(TEST.images).failure_probability)


@pytest.mark.parametrize("labelled", [5, 200])
def test_a_repaired_version_brings_back_what_was_calibrated(labelled: int, tmp_path: Path) -> None:
    guard = _guard(PriorPredictor())
    sound = copy.deepcopy(guard.models[0].state_dict())
    before = guard(TEST.images).failure_probability
    _permute_last_layer(guard)
    assert guard.update(LABELLED.images, LABELLED.labels).chosen != "calibration"
    guard.models[0].load_state_dict(sound)
    update = guard.update(LABELLED.images[:labelled], LABELLED.labels[:labelled])
    assert (update.chosen, update.inputs) == ("calibration", labelled)
    assert torch.equal(guard(TEST.images).failure_probability, before)
    guard.save(tmp_path)
    again = GuardedPredictor.load(tmp_path, _models())
    assert torch.equal(again(TEST.images).failure_probability, before)


def test_changed_weights_are_saved_only_after_the_guard_learned_what_they_are_worth(tmp_path: Path) -> None:
    guard = _guard(PriorPredictor())
    guard.save(tmp_path)
    before = guard(TEST.images).failure_probability
    with torch.no_grad():
        guard.get_parameter("models.0.weight").mul_(1.001)
    guard.update(LABELLED.images[:5], LABELLED.labels[:5])  # shows nothing
    with pytest.raises(ConfigurationError, match=r"the weights of best changed since .* by update\(images, labels\)"):
        guard.save(tmp_path)
    old = GuardedPredictor.load(tmp_path, _models())
    assert torch.equal(old(TEST.images).failure_probability, before)
    assert guard.update(LABELLED.images, LABELLED.labels).chosen == "calibration"
    guard.save(tmp_path)
    new = GuardedPredictor.load(tmp_path, _models())
    assert torch.equal(new.get_parameter("models.0.weight"), guard.get_parameter("models.0.weight"))


def test_an_error_in_between_leaves_the_guard_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = _guard(PriorPredictor())
    _permute_last_layer(guard)
    saved, versions = guard.saved, guard.versions

    def failing(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(PriorPredictor, "fit", failing)
    with pytest.raises(MemoryError):
        guard.update(LABELLED.images, LABELLED.labels)
    assert guard.saved is saved
    assert guard.versions is versions


def test_threads_are_answered_while_it_learns() -> None:
    guard = _guard()
    _permute_last_layer(guard)
    before = guard(TEST.images).labels
    with ThreadPoolExecutor(4) as threads:
        updates = [threads.submit(guard.update, p.images, p.labels) for p in (LABELLED, bars(50, seed=8))]
        answers = [verdict.labels for verdict in threads.map(guard, [TEST.images] * 6)]
    assert max(update.result().inputs for update in updates) == 250
    after = guard(TEST.images).labels
    first = copy.deepcopy(guard)
    assert torch.equal(first(TEST.images).labels, after)
    assert all(len(answer) == 300 for answer in answers)
    assert not torch.equal(before, after)


def test_a_threshold_that_was_found_for_another_predictor_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    careful, _ = _guard().promising(bars(400, seed=11), risk=0.05)
    _permute_last_layer(careful)
    with caplog.at_level(logging.WARNING):
        careful.update(LABELLED.images, LABELLED.labels)
    assert "threshold of the decision was found for others" in caplog.text


def test_a_decision_without_a_threshold_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    plain = _guard(PriorPredictor(), decision=functools.partial(majority_vote, abstain_above=None))
    _permute_last_layer(plain)
    with caplog.at_level(logging.WARNING):
        assert plain.update(LABELLED.images, LABELLED.labels).chosen != "calibration"
    assert "threshold" not in caplog.text


def test_nothing_is_promised_on_inputs_that_it_learned_from() -> None:
    guard = _guard(PriorPredictor())
    guard.update(LABELLED.images, LABELLED.labels)
    with pytest.raises(ConfigurationError, match="200 of these 200 images were given to update"):
        guard.promising(LABELLED, risk=0.5)


def test_a_cascade_is_judged_by_what_it_would_have_asked() -> None:
    guard = _guard(StagedPredictor(rehearse=20))
    evidence = guard.saved.calibration.evidence
    seen = in_turns(evidence, guard.saved.predictor)
    assert torch.equal(seen.labels, guard(CALIBRATION.images).version_labels)
    silent = seen.labels == -1
    assert silent.any()
    assert seen.logits is not None
    assert (seen.logits[silent] == 0).all()
    assert (seen.logits[~silent] != 0).any(1).all()
    assert seen.features is not None
    assert all((each[column] == 0).all() for each, column in zip(seen.features, silent.T, strict=True))
    assert in_turns(evidence, KdePredictor()) is evidence
