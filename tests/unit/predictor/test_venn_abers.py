import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor
from torch.testing import assert_close

from deepfailguard.predictor.venn_abers import fit_venn_abers


def _pairs(count: int, different: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Scores with ties, the more of them the fewer are different, and ones that are likelier where they are high."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(different, (count,), generator=random).double() / different
    return scores, torch.rand(count, generator=random) < (scores + share) / 2


def _by_brute_force(scores: Tensor, ones: Tensor, asked: float, truth: bool) -> float:
    """Isotonic regression with the asked pair among the others, at the asked score."""
    pairs = np.append(scores.numpy(), asked), np.append(ones.double().numpy(), float(truth))
    return float(IsotonicRegression().fit(*pairs).predict([asked])[0])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("different", [1, 4, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 60])
def test_it_is_isotonic_regression_with_the_pair_added(count: int, different: int, share: float) -> None:
    scores, ones = _pairs(count, different, share, seed=count)
    asked = torch.cat([scores.unique(), scores.unique() + 1e-4, torch.tensor([-1.0, 0.5, 2.0])]).double()
    lower, upper = fit_venn_abers(scores, ones).bounds(asked)
    for at, low, high in zip(asked.tolist(), lower.tolist(), upper.tolist(), strict=True):
        assert low == pytest.approx(_by_brute_force(scores, ones, at, False), abs=1e-6)
        assert high == pytest.approx(_by_brute_force(scores, ones, at, True), abs=1e-6)


def test_the_probability_lies_between_the_bounds_and_within_what_so_few_answers_can_tell() -> None:
    for seed in range(20):
        fitted = fit_venn_abers(*_pairs(30, 12, 0.2, seed))
        asked = torch.linspace(-1, 2, 50, dtype=torch.float64)
        said, (lower, upper) = fitted(asked), fitted.bounds(asked)
        assert ((lower < upper) & (lower <= said) & (said <= upper)).all()
        assert ((said >= 1 / 32) & (said <= 31 / 32)).all()
        assert (lower.diff() >= 0).all()
        assert (upper.diff() >= 0).all()


def test_a_score_beyond_those_of_calibration_counts_as_the_nearest() -> None:
    fitted = fit_venn_abers(torch.tensor([1.0, 1.0, 2.0, 2.0]), torch.tensor([True, False, False, True]))
    asked = torch.tensor([-5.0, 1.0 - 1e-9, 1.0, 2.0, 2.0 + 1e-9, 7.0], dtype=torch.float64)
    assert_close(fitted(asked), fitted(torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], dtype=torch.float64)))
    assert float(fitted.bounds(asked)[1][-1]) == 1.0


@pytest.mark.parametrize("one", [False, True])
def test_one_score_and_one_outcome_are_the_smoothed_share(one: bool) -> None:
    fitted = fit_venn_abers(torch.full((8,), 3.0), torch.full((8,), one))
    assert_close(fitted(torch.tensor([3.0]).double()), torch.tensor([(8 * one + 1) / 10], dtype=torch.float64))


def test_an_order_of_the_scores_is_all_that_counts() -> None:
    scores, ones = _pairs(50, 20, 0.3, seed=1)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    fitted, other = fit_venn_abers(scores, ones), fit_venn_abers(scores[shuffled].exp(), ones[shuffled])
    asked = torch.linspace(-1, 2, 50, dtype=torch.float64)
    assert torch.equal(fitted(asked), other(asked.exp()))


def test_infinite_scores_have_their_place() -> None:
    far = torch.tensor([-torch.inf, -torch.inf, torch.inf, torch.inf], dtype=torch.float64)
    said = fit_venn_abers(far, far > 0)(torch.tensor([-torch.inf, 0.0, torch.inf], dtype=torch.float64))
    assert_close(said, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))


def test_the_bound_of_the_true_outcome_is_calibrated_whatever_the_scores_say() -> None:
    """Theorem 1 of Vovk et al. (2015) on 20 calibration pairs and a score that is far from a probability."""
    random, told, came = torch.Generator().manual_seed(0), [], []
    for _ in range(4000):
        posterior = torch.rand(21, generator=random)
        ones, scores = torch.rand(21, generator=random) < posterior.square(), (posterior * 6).round() - 50
        lower, upper = fit_venn_abers(scores[1:], ones[1:]).bounds(scores[:1].double())
        told.append(float(upper if ones[0] else lower))
        came.append(bool(ones[0]))
    said, outcome = torch.tensor(told), torch.tensor(came).float()
    for low, high in ((-0.1, 0.1), (0.1, 0.25), (0.25, 0.4), (0.4, 0.6), (0.6, 0.85), (0.85, 1.1)):
        rows = (said >= low) & (said < high)
        assert int(rows.sum()) > 100
        gaps = outcome[rows] - said[rows]
        assert abs(float(gaps.mean())) < 3 * float(gaps.std() / rows.sum().sqrt()) + 1e-6
