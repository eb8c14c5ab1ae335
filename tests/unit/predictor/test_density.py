import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import gaussian_kde

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.density import Density, fit_density, log_density, logistic, scott_bandwidth
from deepfailguard.seeding import generator


def _points(n: int, purpose: str) -> torch.Tensor:
    return torch.randn(n, generator=generator(0, purpose), dtype=torch.float64).exp()


@pytest.mark.parametrize("n", [2, 3, 50, 1000])
def test_log_density_equals_scipy_far_into_the_tails(n: int) -> None:
    points = _points(n, "points")
    x = torch.linspace(-20, 60, 301, dtype=torch.float64)
    ours = log_density(points, scott_bandwidth(points), x)
    np.testing.assert_allclose(ours.numpy(), gaussian_kde(points.numpy()).logpdf(x.numpy()), rtol=1e-10, atol=1e-10)


def test_bandwidth_equals_scipy() -> None:
    points = _points(37, "bandwidth")
    assert scott_bandwidth(points) == pytest.approx(float(gaussian_kde(points.numpy()).covariance[0, 0]) ** 0.5)


def test_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    points, x = _points(500, "points"), _points(101, "x")
    whole = log_density(points, 0.2, x)
    monkeypatch.setattr("deepfailguard.predictor.density._PAIRS_AT_ONCE", 1500)
    assert torch.equal(log_density(points, 0.2, x), whole)


def test_a_query_alone_has_the_same_bits_as_in_a_batch_also_with_threads() -> None:
    torch.set_num_threads(2)
    points, x = _points(40_000, "points"), _points(33, "x")
    whole = log_density(points, 0.2, x)
    assert torch.equal(torch.cat([log_density(points, 0.2, piece) for piece in x.split(1)]), whole)


def test_no_query_has_no_density() -> None:
    assert log_density(_points(5, "points"), 1.0, torch.zeros(0, dtype=torch.float64)).shape == (0,)


def test_it_stays_finite_where_the_density_underflows() -> None:
    far = torch.tensor([1e6], dtype=torch.float64)
    assert float(log_density(torch.zeros(3, dtype=torch.float64), 1.0, far)) == pytest.approx(-5e11, rel=1e-6)


def test_equal_points_get_a_bandwidth_from_the_range() -> None:
    same = torch.full((4,), 0.3)
    assert fit_density(same, 2.0).bandwidth == pytest.approx(2e-4)
    assert fit_density(same, 0.0).bandwidth == 1.0


def test_spread_points_keep_scotts_bandwidth() -> None:
    points = _points(20, "points")
    assert fit_density(points, float(points.max() - points.min())).bandwidth == scott_bandwidth(points)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_points_give_an_unknown_density(n: int) -> None:
    assert not fit_density(torch.ones(n), 1.0).known


def test_errors_say_what_came() -> None:
    with pytest.raises(ConfigurationError, match="at least 2 points, got 1"):
        scott_bandwidth(torch.ones(1))
    with pytest.raises(ConfigurationError, match="at least one point, got none"):
        log_density(torch.zeros(0), 1.0, torch.ones(1))
    with pytest.raises(ConfigurationError, match=r"bandwidth > 0, got 0\.0"):
        Density(torch.ones(2), 0.0)
    with pytest.raises(ConfigurationError, match="finite points"):
        Density(torch.tensor([1.0, torch.nan]), 1.0)


def test_logistic_equals_scipy_and_does_not_depend_on_the_place() -> None:
    x = torch.randn(1003, generator=generator(0, "logistic"), dtype=torch.float64) * 30
    np.testing.assert_allclose(logistic(x).numpy(), expit(x.numpy()), rtol=1e-14)
    assert torch.equal(torch.cat([logistic(piece) for piece in x.split(1)]), logistic(x))
