from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.answer_densities import AnswerDensities, fit_answer_densities, usable_distances
from deepfailguard.predictor.density import Density
from deepfailguard.types import Evidence


def test_each_version_has_its_own_densities_of_right_and_wrong(calibration: Any) -> None:
    evidence, correct = calibration.evidence, calibration.correct
    at = fit_answer_densities(evidence, correct).log_at(evidence.distance)
    for i in range(3):
        distance, right = evidence.distance[:, i].double().numpy(), correct[:, i].numpy()
        np.testing.assert_allclose(at.right[:, i], gaussian_kde(distance[right]).logpdf(distance), rtol=1e-9)
        np.testing.assert_allclose(at.wrong[:, i], gaussian_kde(distance[~right]).logpdf(distance), rtol=1e-9)


def test_an_unknown_density_is_zero() -> None:
    known, unknown = Density(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.5), Density(torch.zeros(0).double(), 1.0)
    densities = AnswerDensities((known, known), (known, unknown))
    at = densities.log_at(torch.full((4, 2), 0.5))
    assert densities.both_known.tolist() == [True, False]
    assert (at.wrong[:, 1] == -torch.inf).all()
    assert torch.isfinite(at.right).all()


def test_what_can_be_used_was_answered_found_and_is_finite() -> None:
    evidence = Evidence(
        torch.tensor([[0, -1, 0, 0, 0]]),
        torch.tensor([[1.0, 1.0, 1.0, torch.nan, torch.inf]]),
        torch.tensor([[True, True, False, True, True]]),
    )
    assert usable_distances(evidence).tolist() == [[True, False, False, False, False]]


def test_what_was_not_answered_is_in_no_density_whatever_is_said_of_it(calibration: Any) -> None:
    evidence, correct = calibration.evidence, calibration.correct
    labels = evidence.labels.clone()
    labels[200:] = -1
    some = fit_answer_densities(Evidence(labels, evidence.distance, evidence.found), correct).state()
    first = fit_answer_densities(evidence[:200], correct[:200]).state()
    assert all(torch.equal(some[name], first[name]) for name in AnswerDensities.state_names())


def test_the_state_restores_every_point(calibration: Any) -> None:
    densities = fit_answer_densities(calibration.evidence, calibration.correct)
    state = densities.state()
    assert sorted(state) == sorted(AnswerDensities.state_names())
    again = AnswerDensities.from_state(state)
    for one, other in zip((*densities.right, *densities.wrong), (*again.right, *again.wrong), strict=True):
        assert torch.equal(one.points, other.points)
        assert one.bandwidth == other.bandwidth


def test_a_torn_state_is_refused(calibration: Any) -> None:
    state = fit_answer_densities(calibration.evidence, calibration.correct).state()
    with pytest.raises(ConfigurationError, match="wrong densities does not fit together"):
        AnswerDensities.from_state(state | {"wrong_points": state["wrong_points"][1:]})
