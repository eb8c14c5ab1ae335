import numpy as np
import pytest
import torch
from scipy.stats import binomtest, bootstrap

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.evaluation.intervals import binomial_interval, mean_interval, paired_difference
from deepfailguard.seeding import generator


def _right(share: float, purpose: str, size: int = 500) -> torch.Tensor:
    return torch.rand(size, generator=generator(0, purpose)) < share


def test_it_agrees_with_scipys_percentile_bootstrap() -> None:
    right = _right(0.8, "right")
    ours = mean_interval(right, seed=0, resamples=4000)
    theirs = bootstrap(
        (right.double().numpy(),), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours.estimate == float(right.double().mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.005)
    assert ours.high == pytest.approx(theirs.high, abs=0.005)


def test_pairs_are_drawn_together() -> None:
    right = _right(0.6, "right")
    better = right.clone()
    better[(~right).nonzero().flatten()[:20]] = True
    difference = paired_difference(better, right, seed=0)
    assert difference.estimate == pytest.approx(20 / 500)
    assert difference.excludes_zero
    # Drawn apart the standard error would be near sqrt(2 * 0.24 / 500) = 0.031, paired it is 0.0088.
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * 0.0088, rel=0.1)
    backwards = paired_difference(right, better, seed=0)
    assert (backwards.low, backwards.high) == pytest.approx((-difference.high, -difference.low))
    assert backwards.excludes_zero


def test_equal_rules_differ_by_nothing() -> None:
    right = _right(0.6, "right")
    same = paired_difference(right, right, seed=0)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    assert not same.excludes_zero


def test_the_seed_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _right(0.8, "right")
    first = mean_interval(right, seed=1, resamples=300)
    assert mean_interval(right, seed=1, resamples=300) == first
    assert mean_interval(right, seed=2, resamples=300) != first
    monkeypatch.setattr("deepfailguard.evaluation.intervals._DRAWS_AT_ONCE", 500 * 7)
    assert mean_interval(right, seed=1, resamples=300) == first


def test_a_higher_level_is_wider() -> None:
    right = _right(0.8, "right")
    narrow, wide = (mean_interval(right, seed=0, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_wrong_input() -> None:
    with pytest.raises(DataFormatError, match=r"one shape, got \(3,\) and \(2,\)"):
        paired_difference(torch.ones(3), torch.ones(2), seed=0)
    with pytest.raises(DataFormatError, match="finite"):
        mean_interval(torch.tensor([0.0, torch.nan]), seed=0)
    with pytest.raises(DataFormatError, match="B >= 1"):
        mean_interval(torch.zeros(0), seed=0)
    with pytest.raises(ConfigurationError, match=r"level must be in \(0, 1\), got 1"):
        mean_interval(torch.ones(3), seed=0, level=1)
    with pytest.raises(ConfigurationError, match="resamples must be >= 1, got 0"):
        mean_interval(torch.ones(3), seed=0, resamples=0)


def test_binomial_intervals_are_scipys_exact_ones() -> None:
    trials = torch.tensor([1, 1, 20, 20, 20, 500])
    hits = torch.tensor([0, 1, 0, 20, 7, 123])
    for level in (0.9, 0.95):
        low, high = binomial_interval(hits, trials, level=level)
        for i, (k, n) in enumerate(zip(hits.tolist(), trials.tolist(), strict=True)):
            theirs = binomtest(k, n).proportion_ci(level, method="exact")
            assert (float(low[i]), float(high[i])) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert binomial_interval(hits[:0], trials[:0])[0].shape == (0,)


def test_binomial_intervals_of_what_is_no_share_are_refused() -> None:
    with pytest.raises(DataFormatError, match=r"0 <= hits <= trials, trials >= 1, got \[3\] of \[2\]"):
        binomial_interval(torch.tensor([3]), torch.tensor([2]))
    with pytest.raises(ConfigurationError, match="level must be in"):
        binomial_interval(torch.tensor([1]), torch.tensor([2]), level=1.0)
