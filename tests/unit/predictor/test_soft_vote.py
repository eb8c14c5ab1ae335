from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from tests.unit.predictor.simulated_logits import evidence_of, simulated


def test_equal_weights_are_the_mean_of_the_scaled_softmaxes() -> None:
    evidence, truth = simulated(500, (1.0, 2.0))
    predictor = SoftVotePredictor().fit(evidence, truth)
    assert evidence.logits is not None
    assert predictor.softmax_ is not None
    mean = (evidence.logits * predictor.softmax_.sharpness[:, None]).softmax(2).mean(1)
    torch.testing.assert_close(predictor.class_probability(evidence), _finished(mean, predictor))


def test_accuracy_weighs_the_versions() -> None:
    evidence, truth = simulated(500, (0.2, 3.0))
    predictor = SoftVotePredictor(weights="accuracy").fit(evidence, truth)
    assert predictor.weight_ is not None
    right = (evidence.labels == truth[:, None]).sum(0)
    torch.testing.assert_close(predictor.weight_, (right + 1).double() / 502)
    assert evidence.logits is not None
    assert predictor.softmax_ is not None
    probability = (evidence.logits * predictor.softmax_.sharpness[:, None]).softmax(2)
    mean = (probability * right[:, None].add(1)).sum(1) / right.add(1).sum()
    torch.testing.assert_close(predictor.class_probability(evidence), _finished(mean, predictor))


def _finished(mean: Tensor, predictor: SoftVotePredictor) -> Tensor:
    """The mean to the power that was learned, normalised and smoothed; of 500 inputs and 4 classes."""
    powered = mean**predictor.power_
    return powered / powered.sum(1, keepdim=True) * (501 / 502) + 1 / (502 * 4)


@pytest.mark.parametrize("pool", ["mean", "log"])
def test_its_failure_probability_is_calibrated_though_versions_differ(pool: Literal["mean", "log"]) -> None:
    strengths = (0.1, 0.1, 2.0, 2.5)
    predictor = SoftVotePredictor(pool=pool).fit(*simulated(3000, strengths))
    test, truth = simulated(5000, strengths, purpose="test")
    surest = predictor.class_probability(test).max(1)
    wrong = (surest.indices != truth).double()
    assert abs(float((1 - surest.values).mean() - wrong.mean())) < 0.02
    assert predictor.power_ > 1.2  # two versions that know nothing make the mean too careful


def test_the_log_pool_of_independent_experts_orders_classes_as_the_true_posterior() -> None:
    evidence, truth = simulated(3000, (1.5, 1.5, 1.5))
    predictor = SoftVotePredictor(pool="log").fit(evidence, truth)
    assert evidence.logits is not None
    bayes = evidence.logits.sum(1).argmax(1)
    assert (predictor.class_probability(evidence).argmax(1) == bayes).double().mean() > 0.99


@pytest.mark.parametrize("pool", ["mean", "log"])
def test_who_does_not_answer_is_left_out(pool: Literal["mean", "log"]) -> None:
    evidence, truth = simulated(300, (1.0, 2.0, 0.5))
    predictor = SoftVotePredictor("accuracy", pool).fit(evidence, truth)
    silent = replace(evidence, labels=evidence.labels.clone())
    silent.labels[:, 2] = -1
    silent.labels[0] = -1
    two = SoftVotePredictor("accuracy", pool).fit(evidence.of_versions([0, 1]), truth)
    two.power_ = predictor.power_
    said = predictor.class_probability(silent)
    torch.testing.assert_close(said[1:], two.class_probability(evidence.of_versions([0, 1]))[1:])
    torch.testing.assert_close(said[0], torch.full((4,), 0.25, dtype=torch.float64))
    assert (predictor.failure_probability(silent)[:, 2] == 1).all()


def test_one_version_that_is_wrongly_sure_cannot_silence_the_others() -> None:
    calibration, truth = simulated(400, (2.0,) * 4)
    predictor = SoftVotePredictor(pool="log").fit(calibration, truth)
    logits = torch.tensor([8.0, 0.0, 0.0, 0.0]).repeat(1, 4, 1)
    logits[0, 3] = torch.tensor([-1e6, 1e6, 0.0, 0.0])
    assert int(predictor.class_probability(evidence_of(logits)).argmax(1)) == 0


def test_one_class() -> None:
    evidence = evidence_of(torch.randn(5, 2, 1))
    predictor = SoftVotePredictor().fit(evidence, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(predictor.failure_probability(evidence), torch.zeros(5, 2, dtype=torch.float64))


def test_wrong_settings() -> None:
    with pytest.raises(ConfigurationError, match="weights must be 'equal' or 'accuracy', got 'best'"):
        SoftVotePredictor(weights="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="pool must be 'mean' or 'log', got 'max'"):
        SoftVotePredictor(pool="max")  # type: ignore[arg-type]
