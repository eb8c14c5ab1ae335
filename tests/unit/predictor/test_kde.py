from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from torch import Tensor

from deepfailguard.decision.rules import highest_posterior
from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.types import Evidence


def _one(distance: list[float], found: list[bool] | None = None, labels: list[int] | None = None) -> Evidence:
    """Evidence of one version."""
    size = len(distance)
    return Evidence(
        torch.tensor(labels or [0] * size)[:, None],
        torch.tensor(distance)[:, None],
        torch.tensor(found if found is not None else [True] * size)[:, None],
    )


def _truth(correct: Tensor) -> Tensor:
    """True classes of inputs that are all answered with class 0, rightly where `correct` (B,) says so."""
    return (~correct).long()


def _published(evidence: Evidence, correct: Tensor, prior: np.ndarray) -> np.ndarray:
    """P(wrong | d) as the authors' program computes it, with scipy and densities instead of logarithms."""
    columns = []
    for i in range(evidence.versions):
        distance, right = evidence.distance[:, i].double().numpy(), correct[:, i].numpy()
        good = gaussian_kde(distance[right]).pdf(distance) * prior[i]
        bad = gaussian_kde(distance[~right]).pdf(distance) * (1 - prior[i])
        columns.append(bad / (good + bad))
    return np.stack(columns, axis=1)


def test_it_is_bayes_on_scipys_densities(calibration: Any) -> None:
    evidence, correct = calibration.evidence, calibration.correct
    expected = _published(evidence, correct, correct.double().mean(0).numpy())
    ours = KdePredictor().fit(evidence, calibration.truth).failure_probability(evidence)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_equal_prior_leaves_the_accuracy_out(calibration: Any) -> None:
    evidence, correct = calibration.evidence, calibration.correct
    ours = KdePredictor(prior="equal").fit(evidence, calibration.truth).failure_probability(evidence)
    expected = _published(evidence, correct, np.full(3, 0.5))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_with_the_rule_it_answers_as_the_published_argmax(calibration: Any) -> None:
    evidence, correct = calibration.evidence, calibration.correct
    trust = 1 - _published(evidence, correct, correct.double().mean(0).numpy())
    picked = np.take_along_axis(evidence.labels.numpy(), trust.argmax(1)[:, None], axis=1)[:, 0]
    # Where several posteriors round to 1 the published program takes the first version, and log space the surest.
    ordered = np.sort(trust, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-12
    assert clear.mean() > 0.8
    failure = KdePredictor().fit(evidence, calibration.truth).failure_probability(evidence)
    answers = highest_posterior(evidence.labels, failure).labels.numpy()
    np.testing.assert_array_equal(answers[clear], picked[clear])


def test_published_densities_can_be_used(calibration: Any) -> None:
    evidence, correct = calibration.evidence, calibration.correct
    right, wrong = [], []
    for i in range(3):
        for chosen, into in ((correct[:, i], right), (~correct[:, i], wrong)):
            kde = gaussian_kde(evidence.distance[chosen, i].double().numpy())
            into.append((torch.from_numpy(kde.dataset[0]), float(kde.covariance[0, 0] ** 0.5)))
    imported = KdePredictor.from_densities(right, wrong, correct.double().mean(0))
    fitted = KdePredictor().fit(evidence, calibration.truth)
    torch.testing.assert_close(imported.failure_probability(evidence), fitted.failure_probability(evidence))
    unfound = Evidence(evidence.labels, evidence.distance, torch.zeros_like(evidence.found))
    expected = (1 - correct.double().mean(0)).expand(400, 3)
    torch.testing.assert_close(imported.failure_probability(unfound), expected)


def test_published_densities_must_fit_together() -> None:
    density = [(torch.ones(3), 0.1)]
    with pytest.raises(ConfigurationError, match="accuracy must be"):
        KdePredictor.from_densities(density, density, torch.tensor([1.5]))
    with pytest.raises(ConfigurationError, match="got 1 and 2"):
        KdePredictor.from_densities(density, density * 2, torch.tensor([0.5]))


def test_a_certain_prior_stays_certain_where_both_densities_underflow() -> None:
    right, wrong = [(torch.tensor([0.0, 1.0]), 1e-200)], [(torch.tensor([0.0, 1.0]), 1e-200)]
    query = _one([0.5])
    for accuracy, expected in ((1.0, 0.0), (0.0, 1.0), (0.75, 0.25)):
        predictor = KdePredictor.from_densities(right, wrong, torch.tensor([accuracy]))
        assert float(predictor.failure_probability(query)) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [0, 1])
def test_too_few_wrong_answers_leave_the_smoothed_prior(wrong: int) -> None:
    evidence = _one([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], found=[True] * 7 + [False])
    truth = _truth(torch.arange(8) >= wrong)
    failure = KdePredictor().fit(evidence, truth).failure_probability(evidence)
    torch.testing.assert_close(failure, torch.full((8, 1), (wrong + 1) / 10, dtype=torch.float64))


@pytest.mark.parametrize("right", [0, 1])
def test_too_few_right_answers_leave_the_smoothed_prior(right: int) -> None:
    evidence = _one([0.1, 0.2, 0.3, 0.4])
    failure = KdePredictor().fit(evidence, _truth(torch.arange(4) < right)).failure_probability(evidence)
    torch.testing.assert_close(failure, torch.full((4, 1), (4 - right + 1) / 6, dtype=torch.float64))


def test_without_densities_an_equal_prior_says_one_half() -> None:
    evidence = _one([0.1, 0.2, 0.3])
    predictor = KdePredictor(prior="equal").fit(evidence, _truth(torch.ones(3, dtype=torch.bool)))
    assert predictor.failure_probability(evidence).flatten().tolist() == [0.5] * 3


def test_constant_distances_leave_the_prior() -> None:
    evidence = _one([0.1] * 10)
    failure = KdePredictor().fit(evidence, _truth(torch.arange(10) < 7)).failure_probability(evidence)
    torch.testing.assert_close(failure, torch.full((10, 1), 0.3, dtype=torch.float64))


def test_constant_distances_of_right_answers_only_stay_finite() -> None:
    evidence = _one([0.5] * 6 + [0.1, 0.2, 0.9, 0.7])
    failure = KdePredictor().fit(evidence, _truth(torch.arange(10) < 6)).failure_probability(evidence)
    assert torch.isfinite(failure).all()
    assert (failure[:6] < 0.01).all()
    assert (failure[6:] > 0.99).all()


def test_not_found_is_an_outcome_of_its_own_whatever_its_size() -> None:
    # 6 right of which 3 were not found, 4 wrong of which 1 was not found.
    found = [True, True, True, False, False, False, True, True, True, False]
    truth = _truth(torch.arange(10) < 6)
    distance = [0.9, 0.8, 1.0, 0.1, 7.0, 0.2, 0.3, 0.2, 0.1, 0.4]
    predictor = KdePredictor().fit(_one(distance, found), truth)
    odds = (4 / 6) * (2 / 6) / (4 / 8)
    failure = predictor.failure_probability(_one([0.0, 0.5, torch.inf], [False] * 3))
    torch.testing.assert_close(failure, torch.full((3, 1), odds / (1 + odds), dtype=torch.float64))
    # Found: the outcome's ratio and that of the densities of the found distances.
    good, bad = gaussian_kde(np.float32([0.9, 0.8, 1.0])), gaussian_kde(np.float32([0.3, 0.2, 0.1]))
    odds = (4 / 6) * (4 / 6) / (4 / 8) * float(bad.pdf(0.5)[0] / good.pdf(0.5)[0])
    assert float(predictor.failure_probability(_one([0.5]))) == pytest.approx(odds / (1 + odds), rel=1e-6)


def test_too_few_found_wrong_distances_leave_prior_and_outcome() -> None:
    truth = _truth(torch.arange(6) < 3)
    evidence = _one([0.1, 0.5, 0.9, 0.2, 0.3, 0.4], found=[True] * 3 + [False] * 3)
    failure = KdePredictor().fit(evidence, truth).failure_probability(evidence)
    expected = torch.tensor([0.2, 0.2, 0.2, 0.8, 0.8, 0.8], dtype=torch.float64)[:, None]
    torch.testing.assert_close(failure, expected)  # odds (1/5) / (4/5), and the inverse


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_distance_that_is_not_finite_counts_as_not_found(bad: float) -> None:
    truth = _truth(torch.arange(8) % 2 == 0)
    distance = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    lost = KdePredictor().fit(_one([bad, *distance[1:]]), truth)
    unfound = KdePredictor().fit(_one(distance, found=[False] + [True] * 7), truth)
    query = _one([0.35, bad])
    same = _one([0.35, 0.35], found=[True, False])
    assert torch.equal(lost.failure_probability(query), unfound.failure_probability(same))


def test_outside_the_calibration_range_the_nearest_end_counts(calibration: Any) -> None:
    evidence = calibration.evidence.of_versions([1])
    predictor = KdePredictor().fit(evidence, calibration.truth)
    low, high = float(evidence.distance.min()), float(evidence.distance.max())
    ends, outside = _one([low, high]), _one([0.0, 1e30])
    assert torch.equal(predictor.failure_probability(outside), predictor.failure_probability(ends))


def test_unanswered_inputs_teach_nothing(calibration: Any) -> None:
    evidence, truth = calibration.evidence, calibration.truth
    labels = evidence.labels.clone()
    labels[200:] = -1
    some = KdePredictor().fit(Evidence(labels, evidence.distance, evidence.found), truth)
    first = KdePredictor().fit(evidence[:200], truth[:200])
    assert torch.equal(some.failure_probability(evidence), first.failure_probability(evidence))


def test_an_unknown_prior_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'accuracy' or 'equal', got 'uniform'"):
        KdePredictor(prior="uniform")  # type: ignore[arg-type]
