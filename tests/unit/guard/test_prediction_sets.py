"""Sets of classes from a guard."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.data.base import ImageSet
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.promises import GuardedSets
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.seeding import generator
from tests.examples import CLASSES, Affine, bars, template_model

CALIBRATION, LABELLED, LATER = bars(240, seed=3), bars(400, seed=5), bars(2000, seed=6)


def _guard() -> GuardedPredictor:
    models: dict[str, nn.Module] = {"fair": template_model(1, 0.8), "poor": template_model(2, 1.0)}
    return GuardedPredictor.fit(models, CALIBRATION, predictor=JointPredictor(rehearse=0))


@pytest.fixture(scope="module")
def guard() -> GuardedPredictor:
    return _guard()


def _missed(sets: GuardedSets, label: int | None = None) -> float:
    members = sets(LATER.images).gather(1, LATER.labels[:, None])[:, 0]
    chosen = torch.ones(len(LATER), dtype=torch.bool) if label is None else LATER.labels == label
    return float((~members[chosen]).double().mean())


def test_sets_lack_the_true_class_as_often_as_was_allowed(guard: GuardedPredictor) -> None:
    sets = guard.prediction_sets((LABELLED.images, LABELLED.labels), miss_rate=0.1)
    members = sets(LATER.images)
    assert members.shape == (2000, CLASSES)
    assert members.dtype == torch.bool
    assert 0.05 < _missed(sets) < 0.13
    assert 1 <= float(members.sum(1).double().mean()) < 2
    smaller = guard.prediction_sets(LABELLED, miss_rate=0.02)(LATER.images)
    assert smaller.sum() > members.sum()


def test_the_promise_can_be_kept_for_each_class(guard: GuardedPredictor) -> None:
    sets = guard.prediction_sets(LABELLED, miss_rate=0.1, by_class=True)
    assert sets.rule.by_class
    assert all(_missed(sets, label) < 0.16 for label in range(CLASSES))


def test_they_are_told_in_a_line(guard: GuardedPredictor) -> None:
    told = f"GuardedSets of {CLASSES} classes, at most 0.1 of the sets lack the true one"
    assert repr(guard.prediction_sets(LABELLED, miss_rate=0.1)) == f"{told}; by {guard!r}"
    by_class = guard.prediction_sets(LABELLED, miss_rate=0.1, by_class=True)
    assert repr(by_class) == f"{told} for each class alone; by {guard!r}"


def test_inputs_without_an_answer_have_every_class(guard: GuardedPredictor) -> None:
    images = LATER.images[:4].clone()
    images[1, 0, 0, 0] = float("nan")
    members = guard.prediction_sets(LABELLED, miss_rate=0.3)(images)
    assert members[1].all()
    assert not members[[0, 2, 3]].all()


def test_an_update_that_comes_in_between_does_not_mix_two_guards() -> None:
    class Racing(GuardedPredictor):
        def _derived(self, versions: Any, saved: Any) -> Any:
            derived = super()._derived(versions, saved)
            self.saved = None  # type: ignore[assignment]  # of no use from here on
            return derived

    models: dict[str, nn.Module] = {"fair": template_model(1, 0.8)}
    guard = Racing.fit(models, CALIBRATION, predictor=JointPredictor(rehearse=0))
    assert _missed(guard.prediction_sets(LABELLED, miss_rate=0.1)) < 0.16


def test_where_every_version_fails_all_classes_are_possible() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sound, self.fails = template_model(1, 0.8), False

        def forward(self, x: Tensor) -> Tensor:
            if self.fails:
                raise RuntimeError("out of memory")
            logits: Tensor = self.sound(x)
            return logits

    models = [Failing(), Failing()]
    rare = torch.cat([(CALIBRATION.labels > 0).nonzero()[:3, 0], (CALIBRATION.labels == 0).nonzero()[:, 0]])
    guard = GuardedPredictor.fit(models, CALIBRATION.take(rare), predictor=JointPredictor(rehearse=0))
    sets = guard.prediction_sets(LABELLED, miss_rate=0.3)
    assert not sets(LATER.images[:4]).all()
    for model in models:
        model.fails = True
    verdict = guard(LATER.images[:4])
    assert verdict.labels.tolist() == [-1] * 4
    assert (verdict.probabilities == 0).all()
    assert guard.as_classifier()(LATER.images[:4]).isnan().all()
    assert sets(LATER.images[:4]).all()


def test_images_that_the_guard_learned_from_are_refused() -> None:
    guard = _guard()
    shuffled = torch.randperm(240, generator=generator(0, "shuffled"))
    for seen in (CALIBRATION, CALIBRATION.take(shuffled), CALIBRATION.take(slice(1, None))):
        with pytest.raises(ConfigurationError, match=f"{len(seen)} of these {len(seen)} images were those of calib"):
            guard.prediction_sets(seen, miss_rate=0.1)
    mixed = ImageSet(
        torch.cat([LABELLED.images, CALIBRATION.images[:10]]), torch.cat([LABELLED.labels, CALIBRATION.labels[:10]])
    )
    with pytest.raises(ConfigurationError, match="10 of these 410 images were those of calibration"):
        guard.promising(mixed, risk=0.3)
    guard.update(LABELLED.images[:10], LABELLED.labels[:10])
    with pytest.raises(ConfigurationError, match="10 of these 400 images were given to update"):
        guard.prediction_sets(LABELLED, miss_rate=0.1)


def test_what_does_not_fit_is_refused(guard: GuardedPredictor) -> None:
    with pytest.raises(ConfigurationError, match=r"miss_rate must be in \(0, 1\), got 2"):
        guard.prediction_sets(LABELLED, miss_rate=2)
    with pytest.raises(DataFormatError, match=r"truth spans 0\.\.3"):
        guard.prediction_sets((LABELLED.images, LABELLED.labels + (LABELLED.labels == 2)), miss_rate=0.1)


def test_an_update_does_not_touch_sets_that_were_promised_before() -> None:
    guard = GuardedPredictor.fit({"a": template_model(0, 0.1), "b": template_model(1, 0.8)}, CALIBRATION)
    sets = guard.prediction_sets(LABELLED, miss_rate=0.1)
    model = guard.models[0]
    assert isinstance(model, Affine)
    with torch.no_grad():
        model.weight.copy_(model.weight.roll(1, 0))
    before = sets(LATER.images)
    service = bars(100, seed=8)
    assert guard.update(service.images, service.labels).chosen != "calibration"
    assert torch.equal(sets(LATER.images), before)


def test_predictors_without_class_probabilities_make_sets_too() -> None:
    guard = GuardedPredictor.fit([template_model(1, 0.8)], CALIBRATION, predictor=PriorPredictor())
    assert _missed(guard.prediction_sets(LABELLED, miss_rate=0.1)) < 0.16
