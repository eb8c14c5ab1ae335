import pytest
import torch

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.faults.amounts import (
    check_amount,
    check_choice,
    check_positive,
    check_share,
    draw_distinct,
    how_many,
    split_positions,
)
from deepfailguard.faults.bits import BitField
from deepfailguard.seeding import generator


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_its_interval_is_refused(value: float) -> None:
    with pytest.raises(ConfigurationError, match=r"noise\.rate must lie in \(0, 1\]"):
        check_share("noise.rate", value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_size_that_is_not_positive_and_finite_is_refused(value: float) -> None:
    with pytest.raises(ConfigurationError, match="must be a finite number above 0"):
        check_positive("noise.sigma", value)


@pytest.mark.parametrize("count", [0, -3, 2.5, "3"])
def test_a_count_that_is_no_whole_number_above_zero_is_refused(count: int) -> None:
    with pytest.raises(ConfigurationError, match=r"flips\.count must be a whole number of at least 1"):
        check_amount("flips", 0.5, count)


def test_an_unknown_choice_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ConfigurationError, match="one of any, sign, exponent, mantissa, got 'signs'"):
        check_choice("flips.bits", "signs", BitField)


def test_a_count_goes_before_the_rate() -> None:
    assert how_many(0.5, None, 11, "weights") == round(5.5)
    assert how_many(0.5, 2, 11, "weights") == 2
    assert how_many(1e-9, None, 11, "weights") == 0


def test_a_count_beyond_the_population_is_refused() -> None:
    with pytest.raises(FaultNotApplicableError, match="asked for 12 channels, but there are only 11"):
        how_many(0.5, 12, 11, "channels")


@pytest.mark.parametrize(("count", "population"), [(0, 5), (5, 5), (3, 5), (40, 1000), (300, 1_000_000_000)])
def test_drawn_positions_differ_and_lie_in_the_population(count: int, population: int) -> None:
    drawn = draw_distinct(count, population, generator(0, "test"))
    assert drawn.shape == (count,)
    assert drawn.dtype == torch.int64
    assert len(set(drawn.tolist())) == count
    assert all(0 <= position < population for position in drawn.tolist())


def test_few_of_many_are_drawn_without_preference() -> None:
    rng = generator(0, "fair")
    counts = torch.zeros(10)
    for _ in range(2000):
        counts[draw_distinct(2, 10, rng)] += 1
    # 400 expected of each, with a deviation of sqrt(2000 * 0.2 * 0.8) = 18.
    assert counts.min() > 400 - 5 * 18
    assert counts.max() < 400 + 5 * 18


def test_positions_are_split_like_a_chain_of_tensors() -> None:
    sizes = [3, 0, 5, 1]
    positions = torch.tensor([8, 0, 4, 7, 2])
    parts = split_positions(positions, sizes)
    assert [part.tolist() for part in parts] == [[0, 2], [], [1, 4], [0]]
