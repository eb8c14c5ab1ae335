import math
from dataclasses import replace

import pytest
import torch

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.predictor.class_posterior import CalibratedSoftmax, failure_of, heard, smoothed
from tests.unit.predictor.simulated_logits import evidence_of, simulated


def test_the_sharpness_is_that_of_the_true_posterior() -> None:
    evidence, truth = simulated(6000, (1.0, 2.0, 3.0))
    assert evidence.logits is not None
    distorted = replace(evidence, logits=evidence.logits * torch.tensor([0.1, 1.0, 20.0])[:, None])
    sharpness = CalibratedSoftmax.fit(distorted, truth).sharpness * torch.tensor([0.1, 1.0, 20.0])
    torch.testing.assert_close(sharpness, torch.ones(3, dtype=torch.float64), rtol=0, atol=0.1)


def test_what_is_not_an_answer_says_nothing() -> None:
    evidence = evidence_of(torch.randn(5, 3, 4))
    assert evidence.logits is not None
    evidence.labels[0, 0] = -1
    evidence.logits[1, 1, 2], evidence.logits[2, 2, 0] = torch.nan, torch.inf
    expected = torch.ones(5, 3, dtype=torch.bool)
    expected[0, 0] = expected[1, 1] = expected[2, 2] = False
    assert torch.equal(heard(evidence), expected)
    said = CalibratedSoftmax(torch.ones(3, dtype=torch.float64), 4, 10).log_probability(evidence)
    torch.testing.assert_close(said[~expected], torch.full((3, 4), -math.log(4), dtype=torch.float64))
    torch.testing.assert_close(said[expected], evidence.logits[expected].double().log_softmax(1))


def test_a_version_that_never_answers_keeps_its_sharpness() -> None:
    evidence, truth = simulated(50, (1.0, 2.0))
    evidence.labels[:, 0] = -1
    assert float(CalibratedSoftmax.fit(evidence, truth).sharpness[0]) == 1.0


def test_smoothing_keeps_the_sum_and_the_order_and_no_class_is_impossible() -> None:
    after = smoothed(torch.tensor([[0.7, 0.3, 0.0, 0.0]], dtype=torch.float64), inputs=8)
    torch.testing.assert_close(after.sum(1), torch.ones(1, dtype=torch.float64))
    assert after.argsort(descending=True, stable=True).tolist() == [[0, 1, 2, 3]]
    assert float(after.min()) == pytest.approx(1 / (4 * 10))


def test_failure_is_what_is_left_of_the_answers_class() -> None:
    evidence = evidence_of(torch.randn(2, 2, 3))
    evidence.labels[:] = torch.tensor([[0, 2], [-1, 1]])
    probability = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 0.7], [1.0, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(failure_of(probability, evidence), expected)


def test_logits_that_do_not_fit() -> None:
    evidence, truth = simulated(20, (1.0, 2.0))
    softmax = CalibratedSoftmax.fit(evidence, truth)
    with pytest.raises(DataFormatError, match="needs evidence with logits"):
        softmax.scaled(replace(evidence, logits=None))
    with pytest.raises(DataFormatError, match=r"logits must be \(20, 2, 'K'\), got \(20, 2\)"):
        softmax.scaled(replace(evidence, logits=torch.zeros(20, 2)))
    with pytest.raises(ConfigurationError, match="fitted on 4 classes, got logits of 5"):
        softmax.scaled(replace(evidence, logits=torch.zeros(20, 2, 5)))
