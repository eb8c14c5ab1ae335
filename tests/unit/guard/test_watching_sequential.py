import itertools
import math
from collections import Counter
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from deepfailguard.guard.cells import Cells, fit_cells
from deepfailguard.guard.sequential import BetState, advance, forget, start_bets, take_back
from deepfailguard.seeding import generator


def _random(*shape: int, purpose: str = "ties") -> Tensor:
    return torch.rand(shape, generator=generator(0, purpose), dtype=torch.float64)


def _fitted(n: int, statistics: int = 1) -> tuple[Cells, BetState]:
    cells = fit_cells(_random(n, statistics, purpose="calibration"), _random(n, statistics))
    return cells, start_bets(cells.gaps, statistics)


def test_cells_follow_the_urn_exactly() -> None:
    """Of all orders of 3 calibration and 2 service values, as many fall into each pair of cells as the urn says."""
    pairs: Counter[tuple[int, ...]] = Counter()
    for order in itertools.permutations(range(5)):
        values = torch.tensor(order, dtype=torch.float64)[:, None]
        cells = fit_cells(values[:3], torch.zeros(3, 1))
        pairs[tuple(cells.of(values[3:], torch.zeros(2, 1)).flatten().tolist())] += 1
    assert cells.gaps.tolist() == [1, 1, 1, 1]
    for first, second in itertools.product(range(4), repeat=2):
        assert pairs[first, second] / 120 == pytest.approx(1 / 4 * (1 + (first == second)) / 5)


@pytest.mark.parametrize("n", [2, 3, 99, 100, 150, 1000, 10_000])
def test_each_gap_belongs_to_its_cell(n: int) -> None:
    cells = fit_cells(torch.arange(n, dtype=torch.float64).flip(0)[:, None], torch.zeros(n, 1))
    one_per_gap = torch.arange(n + 1, dtype=torch.float64)[:, None] - 0.5
    counted = torch.bincount(cells.of(one_per_gap, torch.zeros(n + 1, 1)).flatten(), minlength=len(cells.gaps))
    assert torch.equal(counted.double(), cells.gaps)
    assert cells.gaps[0] == cells.gaps[-1] == 1
    assert cells.gaps.sum() == n + 1
    assert cells.edges.dtype == torch.float64


def test_equal_values_are_spread_over_the_cells_by_their_random_numbers() -> None:
    cells = fit_cells(torch.ones(500, 200, dtype=torch.float64), _random(500, 200))
    found = cells.of(torch.ones(200, 200, dtype=torch.float64), _random(200, 200, purpose="service"))
    shares = torch.bincount(found.flatten(), minlength=len(cells.gaps)) / found.numel()
    torch.testing.assert_close(shares.double(), cells.gaps / 501, atol=0.004, rtol=0)
    cells = fit_cells(torch.ones(500, 1, dtype=torch.float64), _random(500, 1))
    assert cells.of(torch.zeros(1, 1).double(), torch.ones(1, 1)).item() == 0
    assert cells.of(torch.full((1, 1), 2.0).double(), torch.zeros(1, 1)).item() == len(cells.gaps) - 1


def test_infinite_values_are_extreme_and_may_be_tied() -> None:
    values = torch.cat([torch.zeros(50, 1), torch.full((50, 1), torch.inf)]).double()
    cells = fit_cells(values, _random(100, 1))
    found = cells.of(torch.full((1000, 1), torch.inf).double(), _random(1000, 1, purpose="service"))
    assert int(found.min()) >= len(cells.gaps) // 2 - 1
    assert len(found.unique()) > 5


class _Slow:
    """One statistic, one input at a time, with plain numbers and the formulas of the papers."""

    def __init__(self, gaps: list[float]) -> None:
        self.urn, self.usual, self.earlier, self.inputs = list(gaps), list(gaps), list(gaps), 0
        self.short, self.long = [0.0] * len(gaps), [0.0] * len(gaps)
        self.sums, self.start, self.gain = [0.0] * 16, [0] * 16, [1.0] * 16

    def bets(self) -> list[list[float]]:
        total = sum(self.usual)
        share = [x / total for x in self.usual]
        middles = [sum(share[:k]) + share[k] / 2 for k in range(len(share))]
        bets = []
        tilts = [[math.exp(shift * NormalDist().inv_cdf(m)) for m in middles] for shift in (-0.5, 0.5)]
        for tail in (0.02, 0.04, 0.07, 0.1, 0.15, 0.3):
            tilts.append([3.0 if m < tail else 1.0 for m in middles])
            tilts.append([3.0 if m > 1 - tail else 1.0 for m in middles])
        for tilt in tilts:
            tilted = [s * t for s, t in zip(share, tilt, strict=True)]
            bets.append([t / sum(tilted) for t in tilted])
        for seen, caution in ((self.short, 4.0), (self.long, 16.0)):
            bets.append([(caution * s + f) / (caution + sum(seen)) for s, f in zip(share, seen, strict=True)])
        return bets

    def add(self, cell: int) -> tuple[float, int]:
        for bet, q in enumerate(self.bets()):
            factor = q[cell] * sum(self.urn) / self.urn[cell]
            self.sums[bet] = (self.sums[bet] + 1) * factor
            self.gain[bet] *= factor
            if self.gain[bet] < 1:
                self.gain[bet], self.start[bet] = 1.0, self.inputs + 1
        self.urn[cell] += 1
        self.short = [x * (1 - 1 / 32) + (k == cell) for k, x in enumerate(self.short)]
        self.long = [x * (1 - 1 / 256) + (k == cell) for k, x in enumerate(self.long)]
        self.inputs += 1
        if self.inputs % 512 == 0:
            self.usual, self.earlier = self.earlier, list(self.urn)
        best = max(range(16), key=lambda bet: self.sums[bet])
        return math.log(sum(self.sums) / 16), self.start[best]


def test_it_equals_the_recursion_input_by_input() -> None:
    cells, state = _fitted(120, statistics=2)
    values = _random(1200, 2, purpose="service")
    values[1100:, 1] = 0.9  # a change, so that the sums are not always near the same
    found = cells.of(values, _random(1200, 2))
    _, paths = advance(state, found)
    for column in range(2):
        slow = _Slow(cells.gaps.tolist())
        expected = [slow.add(cell) for cell in found[:, column].tolist()]
        evidence = torch.tensor([log_sum for log_sum, _ in expected], dtype=torch.float64)
        torch.testing.assert_close(paths.log_evidence[:, column], evidence, rtol=1e-6, atol=1e-6)
        assert paths.since[:, column].tolist() == [start for _, start in expected]


def test_the_evidence_grows_by_one_per_input_on_average() -> None:
    """The martingale: over the urn's probabilities of the next cell, the mean of each new sum is the old one + 1."""
    cells, state = _fitted(300)
    for batch in torch.split(cells.of(_random(700, 1, purpose="service"), _random(700, 1)), 100):
        state, _ = advance(state, batch)
        probabilities = state.counts[0] / state.counts[0].sum()
        means = sum(
            p * advance(state, torch.tensor([[k]]))[0].log_sum[0].exp() for k, p in enumerate(probabilities.tolist())
        )
        torch.testing.assert_close(means, state.log_sum[0].exp() + 1, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rate", [None, 0.1], ids=["continuous", "rare events"])
def test_false_alarms_keep_to_their_bound(rate: float | None) -> None:
    """Of 300 streams of 1000 inputs at most 300 * 1000 / 2000 may reach 2000, however small the calibration."""
    random = generator(0, "streams", rate)

    def draw(inputs: int) -> Tensor:
        values = torch.rand(inputs, 300, generator=random, dtype=torch.float64)
        return values if rate is None else (values < rate).double()

    ties = [torch.rand(size, 300, generator=random, dtype=torch.float64) for size in (100, *[250] * 4)]
    cells = fit_cells(draw(100), ties[0])
    state, reached = start_bets(cells.gaps, 300), torch.zeros(300, dtype=torch.bool)
    for tie in ties[1:]:
        state, paths = advance(state, cells.of(draw(250), tie))
        reached |= (paths.log_evidence >= math.log(2000)).any(0)
    assert 0 < int(reached.sum()) <= 300 * 1000 / 2000


def test_no_input_changes_nothing() -> None:
    _, state = _fitted(100, statistics=3)
    after, paths = advance(state, torch.zeros(0, 3, dtype=torch.int64))
    assert after is state
    assert paths.log_evidence.shape == paths.since.shape == (0, 3)
    assert paths.since.dtype == torch.int64


def test_evidence_may_be_taken_back_and_service_forgotten() -> None:
    cells, begin = _fitted(100, statistics=2)
    state, _ = advance(begin, torch.full((40, 2), 20))
    first = torch.tensor([True, False])
    back = take_back(state, first)
    assert torch.isneginf(back.log_sum[0]).all()
    assert back.start[0].tolist() == [40] * 16
    assert torch.equal(back.counts, state.counts)
    assert torch.equal(back.log_sum[1], state.log_sum[1])
    anew = forget(state, first, cells.gaps)
    for name in ("counts", "usual", "earlier", "log_sum", "height"):
        assert torch.equal(getattr(anew, name)[0], getattr(begin, name)[0]), name
        assert torch.equal(getattr(anew, name)[1], getattr(state, name)[1]), name
    assert torch.equal(anew.lately[:, 0], begin.lately[:, 0])
