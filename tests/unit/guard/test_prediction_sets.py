"""Sets of classes from a guard."""

import pytest
import torch
from torch import nn

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.promises import GuardedSets
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.prior import PriorPredictor
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


def test_inputs_without_an_answer_have_every_class(guard: GuardedPredictor) -> None:
    images = LATER.images[:4].clone()
    images[1, 0, 0, 0] = float("nan")
    members = guard.prediction_sets(LABELLED, miss_rate=0.3)(images)
    assert members[1].all()
    assert not members[[0, 2, 3]].all()


def test_images_that_the_guard_learned_from_are_refused() -> None:
    guard = _guard()
    with pytest.raises(ConfigurationError, match="fitted on these very images"):
        guard.prediction_sets(CALIBRATION, miss_rate=0.1)
    guard.update(LABELLED.images[:10], LABELLED.labels[:10])
    with pytest.raises(ConfigurationError, match="10 of these images were given to update"):
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
