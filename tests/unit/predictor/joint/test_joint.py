"""The joint predictor and its parts on evidence that is made up."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.predictor.class_posterior import fit_sharpness, opinion
from deepfailguard.predictor.joint.gate import fit_gate
from deepfailguard.predictor.joint.heads import fit_head
from deepfailguard.predictor.joint.hearing import hear
from deepfailguard.predictor.joint.opinions import Opinions, fit_voice, harden, listen
from deepfailguard.predictor.joint.pooling import LEVELS, Freedom, chosen_of, fit_pool, try_levels
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence, Rehearsed

CLASSES = 4


def _truth(inputs: int, purpose: str, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, (inputs,), generator=generator(0, "truth", purpose))


def _evidence(truth: Tensor, strengths: list[float], purpose: str, classes: int = CLASSES) -> Evidence:
    """Logits that point to the truth as strongly as told (against noise of deviation 1), and features that know it."""
    random = generator(0, "joint", purpose, len(strengths))
    hot = torch.nn.functional.one_hot(truth, classes).float()
    places = 3 * torch.randn(classes, 3, generator=generator(0, "places"))
    logits = [s * hot + torch.randn(len(truth), classes, generator=random) for s in strengths]
    features = tuple(hot @ places + torch.randn(len(truth), 3, generator=random) for _ in strengths)
    stacked = torch.stack(logits, 1)
    labels, nothing = stacked.argmax(2), torch.zeros(len(truth), len(strengths))
    return Evidence(labels, nothing, nothing.bool(), stacked, features)


def _accuracy(probability: Tensor, truth: Tensor) -> float:
    return float((probability.argmax(1) == truth).double().mean())


def test_it_is_right_more_often_than_any_version_and_as_sure_as_it_should_be() -> None:
    truth, later = _truth(1500, "calibration"), _truth(4000, "test")
    predictor = JointPredictor().fit(_evidence(truth, [2.0, 1.5, 0.0], "calibration"), truth)
    test = _evidence(later, [2.0, 1.5, 0.0], "test")
    told = predictor.class_probability(test)
    torch.testing.assert_close(told.sum(1), torch.ones(4000, dtype=torch.float64))
    best = max(float((test.labels[:, n] == later).double().mean()) for n in range(3))
    assert _accuracy(told, later) > best + 0.1
    assert abs(float(told.amax(1).mean()) - _accuracy(told, later)) < 0.02
    failure = predictor.failure_probability(test)
    torch.testing.assert_close(failure, 1 - told.gather(1, test.labels))
    assert abs(float(failure.mean() - (test.labels != later[:, None]).double().mean())) < 0.02


def test_with_few_inputs_it_is_hardly_more_than_the_mean_of_the_versions() -> None:
    truth, later = _truth(40, "few"), _truth(3000, "test")
    predictor = JointPredictor().fit(_evidence(truth, [2.0, 2.0, 2.0], "few"), truth)
    test = _evidence(later, [2.0, 2.0, 2.0], "test")
    assert test.logits is not None
    assert _accuracy(predictor.class_probability(test), later) > _accuracy(test.logits.softmax(2).mean(1), later) - 0.02


@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_any_number_of_classes(classes: int) -> None:
    truth = _truth(120, "classes", classes)
    evidence = _evidence(truth, [8.0, 6.0], "classes", classes)
    told = JointPredictor().fit(evidence, truth).class_probability(evidence)
    assert told.shape == (120, classes)
    assert _accuracy(told, truth) > 0.9


def test_calibration_without_an_error_claims_no_more_than_it_can() -> None:
    truth = _truth(60, "no error")
    evidence = _evidence(truth, [30.0, 30.0], "no error")
    failure = JointPredictor().fit(evidence, truth).failure_probability(evidence)
    assert (failure > 0.5 / 62).all()
    assert (failure < 0.1).all()


def test_one_input_all_alike_and_a_class_never_seen() -> None:
    truth = torch.zeros(1, dtype=torch.int64)
    one = _evidence(truth, [2.0], "one")
    assert torch.isfinite(JointPredictor().fit(one, truth).class_probability(one)).all()
    truth = _truth(100, "unseen") % (CLASSES - 1)
    evidence = _evidence(truth, [2.0, 2.0], "unseen")
    same = Evidence(*(t[:, [0, 0, 0]] for t in (evidence.labels, evidence.distance, evidence.found)))
    assert evidence.logits is not None
    assert evidence.features is not None
    same = Evidence(same.labels, same.distance, same.found, evidence.logits[:, [0, 0, 0]], (evidence.features[0],) * 3)
    told = JointPredictor().fit(same, truth).class_probability(same)
    assert torch.isfinite(told).all()
    assert (told[:, CLASSES - 1] > 0).all()


def test_versions_without_answer_or_features_count_nothing() -> None:
    truth, later = _truth(400, "calibration"), _truth(300, "test")
    predictor = JointPredictor().fit(_evidence(truth, [3.0, 3.0], "calibration"), truth)
    test = _evidence(later, [3.0, 3.0], "test")
    assert test.logits is not None
    assert test.features is not None
    labels, logits = test.labels.clone(), test.logits.clone()
    labels[:, 1], logits[:, 1] = -1, 0.0
    gone = Evidence(labels, test.distance, test.found, logits, (test.features[0], torch.zeros(300, 0)))
    spoilt = Evidence(labels, test.distance, test.found, logits, (test.features[0], torch.full((300, 3), torch.nan)))
    told = predictor.class_probability(gone)
    assert torch.equal(told, predictor.class_probability(spoilt))
    assert (predictor.failure_probability(gone)[:, 1] == 1).all()
    assert 0.7 < _accuracy(told, later) <= _accuracy(predictor.class_probability(test), later)
    silent = Evidence(torch.full_like(labels, -1), test.distance, test.found, torch.zeros_like(logits), test.features)
    assert (predictor.failure_probability(silent) == 1).all()


def test_rehearsed_changes_teach_which_version_to_trust_when_inputs_change() -> None:
    truth, later = _truth(1500, "calibration"), _truth(2000, "changed later")
    usual = _evidence(truth, [3.0, 2.0], "calibration")
    changed = _evidence(truth[:600], [0.0, 2.0], "rehearsed")  # the better version breaks down under change
    assert changed.features is not None
    strange = tuple(4 * torch.randn(each.shape, generator=generator(0, "strange")) for each in changed.features)
    changed = Evidence(changed.labels, changed.distance, changed.found, changed.logits, strange)
    test = _evidence(later, [0.0, 2.0], "changed later")
    assert test.features is not None
    odd = tuple(4 * torch.randn(each.shape, generator=generator(0, "odd")) for each in test.features)
    test = Evidence(test.labels, test.distance, test.found, test.logits, odd)
    rehearsed = Rehearsed(changed, truth[:600], torch.arange(600))
    with_it = JointPredictor().fit(usual, truth, rehearsed)
    without = JointPredictor().fit(usual, truth)
    assert _accuracy(with_it.class_probability(test), later) > _accuracy(without.class_probability(test), later) + 0.05
    assert with_it.gate_ is not None
    assert with_it.gate_(listen(with_it.voices_, test, CLASSES)).mean() > 0.8
    assert with_it.gate_(listen(with_it.voices_, usual, CLASSES)).mean() < 0.3
    assert without.gate_ is None
    again = JointPredictor().with_state(with_it.state())
    assert torch.equal(again.class_probability(test), with_it.class_probability(test))


def test_what_was_rehearsed_leaves_it_as_sure_of_usual_inputs_as_it_should_be() -> None:
    truth, asked_truth = _truth(600, "calibration"), _truth(600, "asked")
    usual, asked = _evidence(truth, [1.5, 1.0], "calibration"), _evidence(asked_truth, [1.5, 1.0], "asked")
    changed = _evidence(truth, [0.3, 0.2], "changed")
    predictor = JointPredictor().fit(usual, truth, Rehearsed(changed, truth, torch.arange(600)))
    assert 1 < predictor.sharpness_ <= 2
    told = predictor.class_probability(asked)
    assert abs(float(told.amax(1).mean()) - _accuracy(told, asked_truth)) < 0.03
    predictor.sharpness_ = 1.0
    unsure = predictor.class_probability(asked)
    assert torch.equal(unsure.argmax(1), told.argmax(1))
    assert float(unsure.amax(1).mean()) < float(told.amax(1).mean())


def test_wrong_evidence_is_refused() -> None:
    truth = _truth(50, "calibration")
    evidence = _evidence(truth, [2.0, 2.0], "calibration")
    bare = Evidence(evidence.labels, evidence.distance, evidence.found)
    with pytest.raises(DataFormatError, match="needs evidence with logits and features"):
        JointPredictor().fit(bare, truth)
    with pytest.raises(DataFormatError, match="true classes go up to 9, but there are logits of 4"):
        JointPredictor().fit(evidence, torch.full_like(truth, 9))
    predictor = JointPredictor().fit(evidence, truth)
    with pytest.raises(ConfigurationError, match="fitted on 4 classes, got logits of 3"):
        predictor.class_probability(_evidence(truth % 3, [2.0, 2.0], "three", classes=3))


def test_the_sharpness_undoes_a_factor() -> None:
    truth = _truth(4000, "sharpness")
    logits = _evidence(truth, [2.0], "sharpness").logits
    assert logits is not None
    assert fit_sharpness(10 * logits[:, 0].double(), truth) == pytest.approx(
        fit_sharpness(logits[:, 0].double(), truth) / 10, rel=1e-2
    )


def test_an_opinion_is_centred_and_never_too_sure() -> None:
    said = opinion(torch.tensor([[0.0, -1e9]], dtype=torch.float64))
    assert said.tolist() == [[6.0, -6.0]]


def test_a_head_is_fishers_discriminant_where_nothing_is_shrunk() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    truth = _truth(500, "head")
    features = _evidence(truth, [1.0], "head").features
    assert features is not None
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(features[0].numpy(), truth.numpy())
    said, distance = fit_head(features[0], truth, CLASSES, 1e-9)(features[0])
    expected = torch.from_numpy(theirs.predict_log_proba(features[0].numpy()))
    torch.testing.assert_close(said, expected, rtol=1e-3, atol=1e-3)
    assert (distance > 0).all()


def test_more_freedom_is_taken_only_where_it_is_shown_to_help() -> None:
    truth = _truth(1200, "levels")
    evidence = _evidence(truth, [2.0, 2.0, 2.0], "levels")
    assert evidence.logits is not None
    own = torch.stack([opinion(evidence.logits[:, n].double().log_softmax(1)) for n in range(3)], 1)
    alike = torch.cat([own.mean(1, keepdim=True), own], 1)
    assert chosen_of(try_levels(alike, truth)) == LEVELS[0]
    turned = alike.clone()
    turned[:, 1:] = turned[:, 1:].roll(1, 2)  # every version names the next class: only corrections can tell
    turned[:, 0] = turned[:, 1:].mean(1)
    trials = try_levels(turned, truth)
    level = chosen_of(trials)
    assert math.isfinite(level.correction)
    assert trials[0].taken
    assert all(trial.taken == (trial.gain > trial.error) for trial in trials[1:])
    assert trials[[trial.level for trial in trials].index(level)].loss < trials[0].loss / 2
    pool = fit_pool(turned, truth, level)
    assert _accuracy(pool.log_probability(turned), truth) > 0.8
    assert chosen_of(try_levels(turned[:8], truth[:8])) == LEVELS[0]
    assert fit_pool(turned, truth, Freedom(math.inf)).weight[1:].abs().max() == 0


def test_the_choice_is_told_with_its_evidence(caplog: pytest.LogCaptureFixture) -> None:
    truth = _truth(300, "told")
    with caplog.at_level(logging.INFO):
        predictor = JointPredictor(rehearse=0).fit(_evidence(truth, [2.0, 2.0], "told"), truth)
        JointPredictor(rehearse=0).fit(_evidence(truth[:5], [2.0, 2.0], "told"), truth[:5])
    tried, few = [record.getMessage() for record in caplog.records]
    assert str(predictor.level_) in tried
    assert f"plain mean {predictor.trials_[0].loss:.3f}" in tried
    assert "too few inputs" in few


def test_a_head_that_has_seen_changes_is_right_more_often_on_changed_inputs() -> None:
    truth, later = _truth(600, "hardened"), _truth(400, "hardened later")
    evidence = _evidence(truth, [1.0], "hardened")

    def turned(inputs: Tensor, purpose: str) -> Evidence:
        """A change that moves the features along one direction, each input's as far as it happens."""
        usual, random = _evidence(inputs, [1.0], purpose), generator(0, "far", purpose)
        assert usual.features is not None
        far = 8 * torch.randn(len(inputs), 1, generator=random) * torch.tensor([1.0, -1.0, 0.5])
        return replace(usual, features=(usual.features[0] + far,))

    rows = torch.arange(600)
    hearing = hear(evidence, truth, Rehearsed(turned(truth, "turned"), truth, rows))
    told = listen(hearing.voices, turned(later, "turned later"), CLASSES)
    assert _accuracy(told.hardened[:, 0], later) > _accuracy(told.second[:, 0], later) + 0.1
    for opinions, labels in ((hearing.usual, truth), (hearing.changed, truth)):  # as on inputs that no head has seen
        assert opinions.hardened.abs().sum() > 0
        assert _accuracy(opinions.hardened[:, 0], labels) < 1
    unrehearsed = hear(evidence, truth, None)
    assert unrehearsed.usual.hardened.abs().sum() == 0
    assert unrehearsed.voices[0].hardened is None
    torch.testing.assert_close(hearing.usual.second, unrehearsed.usual.second)


def test_heads_that_have_seen_changes_did_not_see_the_input_in_question() -> None:
    truth, fold = _truth(80, "unseen"), torch.arange(80) % 4
    evidence = _evidence(truth, [1.0], "unseen")
    assert evidence.logits is not None
    assert evidence.features is not None
    features = evidence.features[0]
    voice, others = fit_voice(evidence.logits[:, 0], features, truth, CLASSES, fold, folds=4)
    relabelled = truth.clone()
    relabelled[2] = (truth[2] + 1) % CLASSES
    both = [harden(voice, others, CLASSES, features, told, fold) for told in (truth, relabelled)]
    centres = [[each.hardened.centres for each in hardened if each.hardened] for _, hardened in both]
    same = [torch.equal(one, other) for one, other in zip(*centres, strict=True)]
    assert same == [False, False, True, False]
    assert [voice.head for voice in both[0][1]] == [voice.head for voice in others]


def test_changed_inputs_are_heard_by_heads_that_did_not_see_what_they_were_made_of() -> None:
    truth = _truth(80, "sources")
    evidence, rows = _evidence(truth, [1.0], "sources"), torch.arange(80)
    blurred = 6 * torch.randn(80, 3, generator=generator(0, "blurred"))  # nobody is so sure that it would be cut off
    evidence = replace(evidence, features=(blurred,))
    relabelled = truth.clone()
    relabelled[5] = (truth[5] + 1) % CLASSES
    one, other = (hear(evidence, told, Rehearsed(evidence, told, rows)) for told in (truth, relabelled))
    for part in ("usual", "changed"):
        said = [getattr(each, part).hardened[:, 0] for each in (one, other)]
        # The same but for the sharpness, which is that of all inputs together.
        alike = torch.cosine_similarity(said[0], said[1], dim=1)
        assert alike[5] > 1 - 1e-9
        assert (alike < 1 - 1e-6).sum() >= 40  # those of the other folds


def test_a_version_that_failed_on_all_that_was_rehearsed_is_heard_without() -> None:
    truth = _truth(60, "failed")
    evidence, changed = _evidence(truth, [2.0, 2.0], "failed"), _evidence(truth, [1.0, 1.0], "failed changes")
    assert changed.features is not None
    silent = replace(changed, labels=changed.labels.clone(), features=(changed.features[0], torch.zeros(60, 0)))
    silent.labels[:, 1] = -1
    predictor = JointPredictor().fit(evidence, truth, Rehearsed(silent, truth, torch.arange(60)))
    assert [voice.hardened is None for voice in predictor.voices_] == [False, True]
    assert _accuracy(predictor.class_probability(evidence), truth) > 0.8


def test_corrections_that_many_classes_do_not_allow_are_not_told() -> None:
    opinions = torch.randn(30, 7, 200, generator=generator(0, "many"), dtype=torch.float64)
    trials = try_levels(opinions, torch.arange(30))
    assert trials
    assert not any(math.isfinite(trial.level.correction) for trial in trials)


def test_the_gate_knows_strangers() -> None:
    def heard(strangeness: float, purpose: str) -> Opinions:
        random = generator(0, purpose)
        own = torch.randn(200, 2, CLASSES, generator=random, dtype=torch.float64)
        strange = strangeness + 0.1 * torch.randn(200, 2, generator=random, dtype=torch.float64)
        return Opinions(own[:, 0], own, own, own, strange, torch.ones(200, 2, dtype=torch.bool))

    gate = fit_gate(heard(0.0, "usual"), heard(1.0, "changed"))
    assert gate(heard(0.0, "more")).mean() < 0.1
    assert gate(heard(1.0, "others")).mean() > 0.9


def test_a_version_without_a_say_does_not_make_an_input_look_changed() -> None:
    random = generator(0, "missing")

    def heard(shift: float, has_say: Tensor) -> Opinions:
        own = torch.randn(400, 3, CLASSES, generator=random, dtype=torch.float64) * has_say[:, :, None]
        strange = (shift + 0.5 * torch.randn(400, 3, generator=random, dtype=torch.float64)) * has_say
        return Opinions(own.mean(1), own, own, own, strange, has_say)

    everybody = torch.ones(400, 3, dtype=torch.bool)
    gate = fit_gate(heard(1.0, everybody), heard(0.0, everybody))  # a strangeness of 0 is a sign of change here
    two = everybody.clone()
    two[:, 2] = False
    assert gate(heard(1.0, two)).mean() < gate(heard(1.0, everybody)).mean() + 0.1
    nobody = gate(heard(1.0, torch.zeros_like(everybody)))
    torch.testing.assert_close(nobody, gate.offset.sigmoid().expand(400))


def test_parts_of_a_hearing_are_those_of_the_chosen_inputs() -> None:
    truth = _truth(60, "hearing")
    evidence = _evidence(truth, [2.0, 1.0], "hearing")
    source = torch.tensor([3, 50, 3, 7])
    hearing = hear(evidence, truth, Rehearsed(evidence[source], truth[source], source))
    chosen = torch.arange(60) % 2 == 1
    part = hearing.take(chosen)
    assert torch.equal(part.truth, truth[1::2])
    assert torch.equal(part.usual.own, hearing.usual.own[1::2])
    assert torch.equal(part.truth[part.source], part.changed_truth)
    assert torch.equal(part.changed.own, hearing.changed.own[[0, 2, 3]])
    assert len(hearing.take(torch.arange(60) < 3).source) == 0


def test_the_gate_learns_from_the_signs_that_it_sees_in_service() -> None:
    random = generator(0, "silent")

    def heard(shift: float, silent: float) -> Opinions:
        has_say = torch.rand(600, 2, generator=random) >= silent
        own = torch.randn(600, 2, CLASSES, generator=random, dtype=torch.float64) * has_say[:, :, None]
        strange = (shift + 0.5 * torch.randn(600, 2, generator=random, dtype=torch.float64)) * has_say
        return Opinions(own.mean(1), own, own, own, strange, has_say)

    usual, changed = heard(0.0, 0.0), heard(1.0, 0.0)
    full, gaps = fit_gate(usual, changed), fit_gate(usual, heard(1.0, 0.6))  # versions fail on changed inputs
    for gate in (full, gaps):
        assert gate(usual).mean() < 0.2
        assert gate(changed).mean() > 0.65


def test_the_order_of_the_calibration_inputs_does_not_decide_what_is_learned_from_changes() -> None:
    truth = _truth(1200, "sorted")
    usual, changed = _evidence(truth, [1.5, 1.0], "sorted"), _evidence(truth, [0.7, 0.5], "sorted changes")
    order = truth.argsort(stable=True)
    told = []
    for rows in (torch.arange(1200), order):
        back = torch.empty_like(rows).scatter_(0, rows, torch.arange(1200))
        rehearsed = Rehearsed(changed, truth, back)
        told.append(JointPredictor().fit(usual[rows], truth[rows], rehearsed).robust_)
    assert told[0] is not None
    assert told[1] is not None
    torch.testing.assert_close(told[0].bias, told[1].bias, rtol=0, atol=0.1)


def test_sure_and_unsure_answers_keep_their_order_where_no_calibration_input_was_wrong() -> None:
    random = generator(0, "no errors")
    truth = torch.randint(CLASSES, (40,), generator=random)
    margin = 4 + torch.rand(40, 1, generator=random, dtype=torch.float64)
    scores = margin * torch.nn.functional.one_hot(truth, CLASSES)
    factor = fit_sharpness(scores, truth)
    told = (scores * factor).softmax(1).amax(1)
    assert 1 < factor < 10
    assert torch.equal(told.argsort(), margin.squeeze(1).argsort())


@pytest.mark.parametrize("lost", ["gate.slope", "robust.bias", "voice1.factors", "sharpness"])
def test_a_damaged_state_is_told_and_leaves_the_predictor_as_it_was(lost: str) -> None:
    truth = _truth(120, "state")
    evidence = _evidence(truth, [1.5, 1.0], "state")
    fitted = JointPredictor().fit(evidence, truth, Rehearsed(evidence, truth, torch.arange(120)))
    damaged = {name: value for name, value in fitted.state().items() if name != lost}
    before = fitted.class_probability(evidence)
    with pytest.raises(ConfigurationError, match="pass what state"):
        fitted.with_state(damaged)
    assert torch.equal(fitted.class_probability(evidence), before)
