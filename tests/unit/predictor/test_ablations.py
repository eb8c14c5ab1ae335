from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.ablations import DistanceOnlyPredictor, failure_score, trust
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence

PUBLISHED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "v1": lambda right, wrong: right - wrong,
    "v2": lambda right, wrong: right / (right + wrong),
    "v3": lambda right, wrong: right,
    "v4": lambda right, wrong: 1 - wrong,
}


@pytest.mark.parametrize("form", PUBLISHED)
def test_the_smallest_score_is_the_published_argmax(form: Any, calibration: Any) -> None:
    evidence, correct = calibration.evidence, calibration.correct
    columns = []
    for i in range(3):
        distance, right = evidence.distance[:, i].double().numpy(), correct[:, i].numpy()
        densities = (gaussian_kde(distance[chosen]).pdf(distance) for chosen in (right, ~right))
        columns.append(PUBLISHED[form](*densities))
    expected = np.stack(columns, axis=1).argmax(1)
    score = DistanceOnlyPredictor(form).fit(evidence, calibration.truth).failure_probability(evidence)
    np.testing.assert_array_equal(score.argmin(1).numpy(), expected)
    assert len(set(expected.tolist())) > 1


@pytest.mark.parametrize("form", PUBLISHED)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_scores_keep_the_order_of_trusts_that_differ_by_more_than_is_documented(form: Any, spread: float) -> None:
    right, wrong = torch.randn(2, 3000, generator=generator(0, form), dtype=torch.float64) * spread
    values = trust(form, right, wrong)
    score = failure_score(form, values)
    assert ((score >= 0) & (score <= 1)).all()
    resolution = {
        "v1": 1e-12 * values.abs(),
        "v2": torch.full_like(values, 1e-15),
        "v3": 1e-12 * values.abs(),
        "v4": 1e-15 * (1 + wrong.exp()) ** 2,
    }[form]
    larger = values[:, None] - values > torch.maximum(resolution[:, None], resolution)
    assert larger.sum() > 0.3 * larger.numel()
    assert (score[:, None] < score)[larger].all()
    equal = values[:, None] == values
    assert (score[:, None] == score)[equal].all()


def test_a_missing_density_counts_as_zero() -> None:
    evidence = Evidence(
        torch.zeros(4, 1, dtype=torch.int64), torch.tensor([[0.1], [0.2], [0.3], [0.4]]), torch.ones(4, 1).bool()
    )
    all_right = torch.zeros(4, dtype=torch.int64)
    scores = {
        form: DistanceOnlyPredictor(form).fit(evidence, all_right).failure_probability(evidence)  # type: ignore[arg-type]
        for form in PUBLISHED
    }
    assert (scores["v1"] < 0.5).all()
    assert (scores["v2"] == 0).all()
    assert (scores["v4"] == 0).all()
    none = DistanceOnlyPredictor("v2").fit(evidence[:1], all_right[:1]).failure_probability(evidence)
    assert none.flatten().tolist() == [0.5] * 4


def test_without_a_distance_the_score_is_one(calibration: Any) -> None:
    predictor = DistanceOnlyPredictor("v2").fit(calibration.evidence, calibration.truth)
    query = calibration.evidence[:3]
    found = query.found.clone()
    found[1, 2] = False
    distance = query.distance.clone()
    distance[0, 0] = torch.nan
    score = predictor.failure_probability(Evidence(query.labels, distance, found))
    expected = predictor.failure_probability(query)
    expected[1, 2] = expected[0, 0] = 1
    assert torch.equal(score, expected)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one of v1, v2, v3, v4, got 'v5'"):
        DistanceOnlyPredictor("v5")  # type: ignore[arg-type]
