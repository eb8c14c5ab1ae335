"""The guard that watches its versions: what a caller sees."""

import copy
import functools
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.decision.rules import single_version
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.judging import with_threshold
from deepfailguard.guard.watch_report import WatchReport
from deepfailguard.guard.watched import WatchedGuard
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.predictor.staged import StagedPredictor
from deepfailguard.store import load_tensors, save_tensors
from tests.examples import bars, template_model

CALIBRATION, SERVICE = bars(300, seed=3), bars(400, seed=4)
NAMES = ("ann", "bob", "eve")


class Breakable(nn.Module):
    """A classifier that can be broken and repaired, and counts how often it is asked."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.sound = template_model(seed, 0.3)
        self.sound_weight = self.sound.weight.detach().clone()
        self.raises = False
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        if self.raises:
            raise RuntimeError("out of memory")
        logits: Tensor = self.sound(x)
        return logits

    @torch.no_grad()
    def damage(self) -> None:
        self.sound.weight.copy_(self.sound_weight.roll(1, 0) * 4)

    @torch.no_grad()
    def repair(self) -> None:
        self.sound.weight.copy_(self.sound_weight)
        self.raises = False


@pytest.fixture(scope="module")
def fitted() -> GuardedPredictor:
    models = {name: Breakable(seed) for seed, name in enumerate(NAMES)}
    return GuardedPredictor.fit(models, CALIBRATION, predictor=JointPredictor(rehearse=0))


@pytest.fixture
def guard(fitted: GuardedPredictor) -> Iterator[GuardedPredictor]:
    yield fitted
    for model in fitted.models:
        assert isinstance(model, Breakable)
        model.repair()


def _model(guard: GuardedPredictor, position: int) -> Breakable:
    model = guard.models[position]
    assert isinstance(model, Breakable)
    return model


def _serve(watched: WatchedGuard, first: int, last: int, batch: int = 20) -> None:
    for start in range(first, last, batch):
        watched(SERVICE.images[start : min(start + batch, last)])


def _apart(watched: WatchedGuard) -> list[tuple[str, int]]:
    return [(each.name, each.since) for each in watched.report().quarantined]


def test_it_answers_like_the_guard_while_nothing_changes(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    for start in range(0, 400, 50):
        images = SERVICE.images[start : start + 50]
        verdict, plain = watched(images), guard(images)
        assert torch.equal(verdict.labels, plain.labels)
        assert torch.equal(verdict.failure_probability, plain.failure_probability)
        assert verdict.health == plain.health
    assert (watched.report().inputs, watched.report().cause) == (400, "nothing")
    assert torch.equal(watched.predict(images), guard.predict(images))
    assert torch.equal(watched.predict_proba(images), guard.predict_proba(images))


def test_a_broken_version_is_set_apart_in_the_very_batch_and_not_asked_again(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    _serve(watched, 0, 100)
    _model(guard, 1).damage()
    images = SERVICE.images[100:140]
    verdict = watched(images)
    assert _apart(watched) == [("bob", 100)]
    assert verdict.degraded
    others = guard.without(["bob"])(images)
    assert torch.equal(verdict.labels, others.labels)
    assert torch.equal(verdict.failure_probability, others.failure_probability)
    before = _model(guard, 1).asked
    again = watched(SERVICE.images[140:180])
    assert _model(guard, 1).asked == before
    assert (again.labels == SERVICE.labels[140:180]).double().mean() > 0.9


def test_it_is_told_in_a_line_who_is_watched_and_who_is_set_apart(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard, scores=["confidence"], inputs_per_false_alarm=50_000)
    told = "watches disagreement, confidence, at most one false alarm in 50,000 inputs; in quarantine: "
    assert repr(watched) == f"WatchedGuard of {guard.saved.summary}; {told}nobody"
    _model(guard, 1).damage()
    with watched._one_at_a_time:  # as in a debugger that stops while a batch is answered
        assert repr(watched).endswith("nobody")
    watched(SERVICE.images[:40])
    assert repr(watched).endswith("; in quarantine: bob since input 0")
    alone = WatchedGuard(guard.without(["bob", "eve"]), scores=["confidence"])
    assert "; watches confidence, " in repr(alone)


def test_shapes_and_places_stay_and_the_health_names_the_version(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    _model(guard, 1).damage()
    for verdict in (watched(SERVICE.images[:40]), watched(SERVICE.images[40:50])):
        inputs = len(verdict)
        for columns in (verdict.weights, verdict.version_labels, verdict.distance, verdict.found):
            assert columns.shape == (inputs, 3)
        assert (verdict.version_labels[:, 1] == -1).all()
        assert (verdict.version_labels[:, [0, 2]] >= 0).all()
        assert (verdict.version_failure_probability[:, 1] == 1).all()
        assert (verdict.weights[:, 1] == 0).all()
        torch.testing.assert_close(verdict.weights.sum(1), torch.ones(inputs, dtype=torch.float64))
        assert [health.name for health in verdict.health] == list(NAMES)
        assert "in quarantine since input 0: it" in verdict.health[1].problem
        assert "bob does not count: in quarantine since input 0" in verdict.explain(0)
        assert "2 of 2 versions gave it (1 in quarantine)" in verdict.explain(0)


def test_a_version_that_raises_counts_as_changed(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    _model(guard, 2).raises = True
    verdict = watched(SERVICE.images[:60])
    assert _apart(watched) == [("eve", 0)]
    assert (verdict.labels == SERVICE.labels[:60]).double().mean() > 0.9


def test_nobody_is_set_apart_where_the_inputs_changed(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    for start in range(0, 400, 20):
        watched(SERVICE.images[start : start + 20] * 0.4)
    report = watched.report()
    assert (report.cause, report.quarantined) == ("inputs", ())
    assert report.changed.all()
    assert "it is the inputs" in str(report)


def test_inputs_that_the_guard_leaves_unanswered_are_not_watched(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    images = SERVICE.images[:200].clone()
    images[::2] = torch.nan
    images[1::4] = 7.0
    verdict = watched(images)
    assert watched.report().inputs == 50
    assert watched.report().alarms == ()
    assert len(verdict.problems) == 150
    assert watched(images[:0]).labels.shape == (0,)
    assert len(watched(images[::2])) == 100
    assert watched.report().inputs == 50


def test_release_after_repair(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    _model(guard, 1).damage()
    _serve(watched, 0, 60)
    _model(guard, 1).repair()
    watched.release(["bob"])
    assert watched.report().alarms == ()
    verdict = watched(SERVICE.images[60:100])
    assert torch.equal(verdict.labels, guard(SERVICE.images[60:100]).labels)
    assert (verdict.version_labels[:, 1] >= 0).all()
    with pytest.raises(ConfigurationError, match="got \\['joe'\\]; there are ann, bob, eve"):
        watched.release(["joe"])
    with pytest.raises(ConfigurationError, match="expected names"):
        watched.release("bob")


def test_what_is_acknowledged_is_usual_from_then_on(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    _model(guard, 1).damage()
    _serve(watched, 0, 60)
    watched.acknowledge(["ann"])
    assert _apart(watched) == [("bob", 0)]
    watched.acknowledge()
    assert watched.report().alarms == ()
    assert _apart(watched) == []


def test_callbacks_hear_of_each_alarm_once_and_may_ask_back(guard: GuardedPredictor) -> None:
    heard: list[WatchReport] = []

    def listen(report: WatchReport) -> None:
        heard.append(report)
        asked = threading.Thread(target=watched.report)  # nobody must hold the lock while others are told
        asked.start()
        asked.join(timeout=60)
        assert not asked.is_alive()

    def fail(report: WatchReport) -> None:
        raise RuntimeError("no network")

    watched = WatchedGuard(guard, scores=(), on_alarm=[fail, listen])
    _serve(watched, 0, 100)
    assert heard == []
    _model(guard, 1).damage()
    _serve(watched, 100, 300)
    assert len(heard) == 1
    assert [each.name for each in heard[0].quarantined] == ["bob"]
    assert watched.failures == {"fail": 1}


def test_state_goes_on_elsewhere_as_if_nothing_had_happened(guard: GuardedPredictor, tmp_path: Any) -> None:
    watched = WatchedGuard(guard)
    _model(guard, 1).damage()
    _serve(watched, 0, 60)
    save_tensors(tmp_path / "watch.safetensors", watched.state())
    again = WatchedGuard(guard).with_state(load_tensors(tmp_path / "watch.safetensors").tensors)
    assert _apart(again) == [("bob", 0)]
    one, other = watched(SERVICE.images[60:100]), again(SERVICE.images[60:100])
    assert torch.equal(one.labels, other.labels)
    assert one.health == other.health
    assert str(again.report()) == str(watched.report())
    with pytest.raises(ConfigurationError, match="not that of a watch over this guard"):
        WatchedGuard(guard.without(["eve"])).with_state(watched.state())
    with pytest.raises(ConfigurationError, match="not that of a watch over this guard"):
        WatchedGuard(guard, scores=()).with_state(watched.state())


def test_recorded_answers_are_judged_as_asked_ones(guard: GuardedPredictor) -> None:
    _model(guard, 1).damage()
    recorded: list[tuple[Any, Any, int]] = []

    class Recording(WatchedGuard):
        def _ask(self, images: Tensor) -> Any:
            saved, answers = super()._ask(images)
            recorded.append((answers, torch.arange(len(images)), len(images)))
            return saved, answers

    live, replay = Recording(guard), WatchedGuard(guard)
    for start in range(0, 120, 40):
        verdict = live(SERVICE.images[start : start + 40])
        again = replay.judge(*recorded[-1])
        assert torch.equal(verdict.labels, again.labels)
    assert str(live.report()) == str(replay.report())


def test_an_update_between_asking_and_judging_does_not_mix_two_guards(guard: GuardedPredictor) -> None:
    old = guard.saved

    class Racing(WatchedGuard):
        def _ask(self, images: Tensor) -> Any:
            asked = super()._ask(images)
            guard.saved = replace(old, decision=with_threshold(old.decision, 0.0))  # abstains always
            return asked

    watched = Racing(guard)
    try:
        assert not watched(SERVICE.images[:40]).abstained.all()
    finally:
        guard.saved = old


def test_a_copy_goes_on_alone(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    _serve(watched, 0, 40)
    twin = copy.deepcopy(watched)
    assert str(twin.report()) == str(watched.report())
    _model(guard, 1).damage()
    _serve(watched, 40, 100)
    _serve(twin, 40, 100)
    assert _apart(watched) == [("bob", 40)]
    assert (_apart(twin), twin.report().inputs) == ([], 100)  # its models are copies too


def test_a_promised_risk_ends_with_quarantine_and_that_is_said_once(
    guard: GuardedPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    careful, _ = guard.promising(bars(400, seed=11), risk=0.1)
    watched = WatchedGuard(careful)
    _model(guard, 1).damage()
    with caplog.at_level(logging.WARNING):
        _serve(watched, 0, 100)
    assert _apart(watched) == [("bob", 0)]
    assert caplog.text.count("without bob the threshold of the decision is another guard's") == 1


def test_what_is_watched_follows_from_what_the_predictor_needs() -> None:
    models = [template_model(seed, 0.3) for seed in range(2)]
    assert WatchedGuard(GuardedPredictor.fit(models, CALIBRATION, predictor=SoftVotePredictor())).scores == (
        "logsumexp",
    )
    published = GuardedPredictor.fit(models, CALIBRATION, predictor=KdePredictor())
    assert WatchedGuard(published).scores == ("distance",)
    watched = WatchedGuard(published)
    assert torch.equal(watched(SERVICE.images[:20]).labels, published(SERVICE.images[:20]).labels)


def test_what_cannot_be_watched_is_refused(guard: GuardedPredictor) -> None:
    models = [template_model(seed, 0.3) for seed in range(2)]
    staged = GuardedPredictor.fit(models, CALIBRATION, predictor=StagedPredictor())
    with pytest.raises(ConfigurationError, match="StagedPredictor leaves versions unasked"):
        WatchedGuard(staged)
    with pytest.raises(ConfigurationError, match=r"scores \['mood'\] cannot be had"):
        WatchedGuard(guard, scores=["mood"])
    single = functools.partial(single_version, version=1)
    with pytest.raises(ConfigurationError, match="answers by a single version, without which nothing would be"):
        WatchedGuard(GuardedPredictor.fit(models, CALIBRATION, predictor=SoftVotePredictor(), decision=single))
    few = GuardedPredictor.fit(models, bars(60), predictor=SoftVotePredictor())
    with pytest.raises(DataFormatError, match="at least 100 calibration inputs, got 60"):
        WatchedGuard(few)


def test_the_guard_of_the_others_follows_an_update_of_the_guard(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    _model(guard, 1).damage()
    _serve(watched, 0, 40)
    assert not watched(SERVICE.images[40:80]).abstained.all()
    old = guard.saved
    try:
        guard.saved = replace(old, decision=with_threshold(old.decision, 0.0))
        assert watched(SERVICE.images[80:120]).abstained.all()
    finally:
        guard.saved = old


def test_threads_are_served_one_after_the_other(guard: GuardedPredictor) -> None:
    watched = WatchedGuard(guard)
    _model(guard, 1).damage()
    told: list[int] = []

    def serve(start: int) -> None:
        told.extend(len(watched(SERVICE.images[first : first + 10])) for first in range(start, start + 100, 10))

    threads = [threading.Thread(target=serve, args=(start,)) for start in range(0, 400, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert told == [10] * 40
    assert watched.report().inputs == 400
    assert [name for name, _ in _apart(watched)] == ["bob"]
