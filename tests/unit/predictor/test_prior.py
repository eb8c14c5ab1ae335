from typing import Any

import torch

from deepfailguard.decision.rules import highest_posterior, single_version
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.types import Evidence


def test_it_is_the_smoothed_calibration_error(calibration: Any) -> None:
    predictor = PriorPredictor().fit(calibration.evidence, calibration.truth)
    expected = ((~calibration.correct).sum(0).double() + 1) / 402
    torch.testing.assert_close(predictor.failure_probability(calibration.evidence), expected.expand(400, 3))


def test_with_the_rule_it_is_the_best_single_version(calibration: Any) -> None:
    evidence = calibration.evidence
    failure = PriorPredictor().fit(evidence, calibration.truth).failure_probability(evidence)
    best = int(calibration.correct.double().mean(0).argmax())
    guard, single = highest_posterior(evidence.labels, failure), single_version(evidence.labels, failure, version=best)
    assert torch.equal(guard.labels, single.labels)
    assert torch.equal(guard.weights, single.weights)


def test_unanswered_inputs_do_not_count() -> None:
    labels = torch.tensor([[0], [0], [-1], [-1]])
    evidence = Evidence(labels, torch.ones(4, 1), torch.ones(4, 1, dtype=torch.bool))
    predictor = PriorPredictor().fit(evidence, torch.tensor([0, 1, 1, 1]))
    assert predictor.failure_probability(evidence).flatten().tolist() == [0.5, 0.5, 1.0, 1.0]
