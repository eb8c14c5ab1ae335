"""The guard as it is by default: all versions' evidence judged together."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.decision.classes import most_probable_class
from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.versions.version import evened
from tests.examples import CLASSES, bars, template_model

CALIBRATION, TEST = bars(240, seed=3), bars(80, seed=4)
FEW = 40


class Scrambled(nn.Module):
    """A sound first layer whose last one was overwritten: its answers are worth nothing, its features all."""

    def __init__(self) -> None:
        super().__init__()
        self.sound = template_model(seed=7, noise=0.1)
        self.last = nn.Linear(CLASSES, CLASSES)
        self.fails = False
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(CLASSES).roll(1, 0) * 3)
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("out of memory")
        logits: Tensor = self.last(self.sound(x))
        return logits


@pytest.fixture(scope="module")
def guard() -> GuardedPredictor:
    models = {"good": template_model(0, 0.1), "fair": template_model(1, 0.5), "scrambled": Scrambled()}
    return GuardedPredictor.fit(models, CALIBRATION, predictor=JointPredictor(rehearse=FEW))


def _accuracy(labels: Tensor) -> float:
    return float((labels == TEST.labels).double().mean())


def test_it_asks_for_no_distances_and_tells_class_probabilities(guard: GuardedPredictor) -> None:
    assert guard.saved.distance is None
    verdict = guard(TEST.images)
    assert not verdict.found.any()
    assert "flip" not in verdict.explain(0)
    torch.testing.assert_close(guard.predict_proba(TEST.images).sum(1), torch.ones(80, dtype=torch.float64))
    assert torch.equal(verdict.probabilities.argmax(1), verdict.labels)
    torch.testing.assert_close(verdict.failure_probability, 1 - verdict.probabilities.amax(1))
    assert _accuracy(verdict.labels) > 0.95


def test_it_answers_what_no_version_gave_where_all_last_layers_are_damaged() -> None:
    damaged = {f"scrambled {i}": Scrambled() for i in range(2)}
    verdict = GuardedPredictor.fit(damaged, CALIBRATION, predictor=JointPredictor(rehearse=FEW))(TEST.images)
    assert _accuracy(verdict.version_labels[:, 0]) < 0.1
    assert _accuracy(verdict.labels) > 0.9
    ungiven = (verdict.labels[:, None] != verdict.version_labels).all(1)
    assert ungiven.any()
    torch.testing.assert_close(verdict.weights[ungiven], torch.full((int(ungiven.sum()), 2), 0.5, dtype=torch.float64))


def test_a_version_that_fails_in_service_is_left_out(guard: GuardedPredictor) -> None:
    broken = guard.models[2]
    assert isinstance(broken, Scrambled)
    broken.fails = True
    try:
        verdict = guard(TEST.images)
    finally:
        broken.fails = False
    assert verdict.degraded
    assert (verdict.weights[:, 2] == 0).all()
    assert (verdict.version_failure_probability[:, 2] == 1).all()
    assert _accuracy(verdict.labels) > 0.8


def test_it_comes_back_from_disk_as_it_was(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    again = GuardedPredictor.load(tmp_path, [template_model(0), template_model(1), Scrambled()])
    one, other = guard(TEST.images), again(TEST.images)
    assert torch.equal(one.probabilities, other.probabilities)
    assert torch.equal(one.weights, other.weights)


def test_what_another_release_learned_is_told_as_that(guard: GuardedPredictor, tmp_path: Path) -> None:
    def without_heads(predictor: JointPredictor) -> dict[str, Tensor]:
        return {name: each for name, each in learned(predictor).items() if "hardened" not in name}

    learned = JointPredictor.state
    with pytest.MonkeyPatch.context() as older:
        older.setattr(JointPredictor, "state", without_heads)
        guard.save(tmp_path)
    with pytest.raises(ConfigurationError, match="another release of JointPredictor learned; fit the guard again"):
        GuardedPredictor.load(tmp_path, [template_model(0), template_model(1), Scrambled()])


def test_a_version_that_fails_on_all_changed_inputs_is_guarded_all_the_same() -> None:
    fussy = Scrambled()
    usual = fussy.forward

    def forward(x: Tensor) -> Tensor:
        if len(x) not in (1, *map(len, map(evened, (CALIBRATION.images, TEST.images)))):
            raise RuntimeError("a batch of another size")
        return usual(x)

    fussy.forward = forward  # type: ignore[method-assign]
    models = {"good": template_model(0, 0.1), "fussy": fussy}
    guard = GuardedPredictor.fit(models, CALIBRATION, predictor=JointPredictor(rehearse=FEW))
    assert _accuracy(guard(TEST.images).labels) > 0.9


def test_it_is_less_sure_of_inputs_that_are_none(guard: GuardedPredictor) -> None:
    nothing = torch.rand(TEST.images.shape, generator=torch.Generator().manual_seed(0))
    assert guard(nothing).failure_probability.mean() > 2 * guard(TEST.images).failure_probability.mean()


def test_a_rule_that_wants_class_probabilities_is_refused_before_anything_is_asked() -> None:
    models = {"good": template_model(0, 0.1)}
    with pytest.raises(ConfigurationError, match="KdePredictor does not tell; use JointPredictor"):
        GuardedPredictor.fit(models, CALIBRATION, predictor=KdePredictor(), decision=most_probable_class)


def test_it_can_leave_the_rehearsal_out() -> None:
    models = {"good": template_model(0, 0.1), "fair": template_model(1, 0.5)}
    plain = GuardedPredictor.fit(models, CALIBRATION, predictor=JointPredictor(rehearse=0))
    assert isinstance(plain.saved.predictor, JointPredictor)
    assert plain.saved.predictor.gate_ is None


def test_it_keeps_a_promised_risk_by_abstaining(guard: GuardedPredictor, tmp_path: Path) -> None:
    labelled, later = bars(600, seed=11), bars(2000, seed=12)
    careful, bound = guard.promising(labelled, risk=0.01, confidence=0.9)
    assert bound.guaranteed
    verdict = careful(later.images)
    answered = ~verdict.abstained
    assert torch.equal(answered, verdict.failure_probability <= bound.threshold)
    assert 0.5 < float(answered.double().mean()) < 1
    assert float((verdict.labels != later.labels)[answered].double().mean()) < 0.01
    assert not guard(later.images).abstained.any()  # the first guard is as it was
    careful.save(tmp_path)
    again = GuardedPredictor.load(tmp_path, [template_model(0), template_model(1), Scrambled()])
    assert torch.equal(again(later.images).abstained, verdict.abstained)


def test_it_promises_nothing_on_the_images_it_was_fitted_on_or_on_too_few(guard: GuardedPredictor) -> None:
    with pytest.raises(ConfigurationError, match=r"of these \d+ images were those of calibration"):
        guard.promising(CALIBRATION, risk=0.05)
    with pytest.raises(ConfigurationError, match="too few to promise"):
        guard.promising(bars(50, seed=11), risk=0.01)
