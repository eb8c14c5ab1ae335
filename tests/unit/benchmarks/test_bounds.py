"""The benchmark of promised risks: worlds, simulated calibrations, bars."""

import doctest
import json

import pytest
import torch

from benchmarks.bounds import thresholds
from benchmarks.bounds.figures import as_plain, bars_for, row_lines, rows_of, sets_lines, sets_rows
from benchmarks.bounds.simulating import Kept, Sets, Trials, World, keep_promises, keep_sets, world_of
from benchmarks.bounds.thresholds import NAIVE, OURS, naive_threshold
from deepfailguard.decision.risk import ANSWER_NOTHING, bound_risk
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence

TRIALS = Trials(draws=60, inputs=300, confidence=0.95)


def test_doctests() -> None:
    results = doctest.testmod(thresholds)
    assert results.attempted > 0
    assert results.failed == 0


def world(count: int = 2000) -> World:
    """Inputs that are wrong as probably as they say, and classes as probable as they say."""
    random = generator(0, "world")
    failure = torch.rand(count, generator=random, dtype=torch.float64) ** 3 * 0.5
    wrong = torch.rand(count, generator=random, dtype=torch.float64) < failure
    truth = wrong.long()
    return World("made up", failure, wrong, torch.stack([1 - failure, failure], 1), truth)


def test_a_world_knows_its_risk() -> None:
    small = World(
        "small", torch.tensor([0.1, 0.2, 0.3]), torch.tensor([False, True, True]), torch.zeros(0), torch.ones(0)
    )
    assert small.at(0.25) == (pytest.approx(2 / 3), 0.5)
    assert small.at(ANSWER_NOTHING) == (0.0, 0.0)
    assert small.at(0.2)[0] == pytest.approx(2 / 3)


def test_the_guard_s_answers_make_a_world() -> None:
    labels = torch.tensor([[0, 1], [1, 1], [-1, -1]])
    evidence = Evidence(labels, torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool))
    probability = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64)
    told = world_of("w", evidence, probability, torch.tensor([0, 0, 0]))
    assert told.failure.tolist() == pytest.approx([0.3, 0.4, 1.0])
    assert told.wrong.tolist() == [False, True, True]


def test_the_naive_threshold_is_the_largest_that_calibration_bears() -> None:
    failure, wrong = torch.tensor([0.1, 0.2, 0.2, 0.4]), torch.tensor([False, False, True, True])
    assert naive_threshold(failure, wrong, 0.34, 0.95) == pytest.approx(0.2)
    assert naive_threshold(failure, wrong, 0.32, 0.95) == pytest.approx(0.1)
    assert naive_threshold(failure, ~wrong, 0.0, 0.95) == ANSWER_NOTHING


def test_the_bound_keeps_what_the_naive_threshold_breaks() -> None:
    ours = keep_promises(world(), OURS, thresholds.thresholds()[OURS], 0.05, TRIALS)
    naive = keep_promises(world(), NAIVE, naive_threshold, 0.05, TRIALS)
    assert ours.holds >= 0.95
    assert 0.2 < naive.holds < 0.8
    assert ours.coverage < naive.coverage
    assert ours.true_risk < naive.true_risk


def test_ours_is_the_library_s_bound() -> None:
    made = world()
    expected = bound_risk(made.failure, made.wrong, risk=0.05, confidence=0.9).threshold
    assert thresholds.thresholds()[OURS](made.failure, made.wrong, 0.05, 0.9) == expected


def test_a_promise_without_answers_holds() -> None:
    kept = keep_promises(world(), "silent", lambda *_: ANSWER_NOTHING, 0.05, TRIALS)
    assert (kept.holds, kept.coverage, kept.true_risk, kept.nothing) == (1.0, 0.0, 0.0, 1.0)


def test_all_ways_see_the_same_calibrations() -> None:
    drawn = list(TRIALS.of(world()))
    assert len(drawn) == 60
    assert all(torch.equal(one, other) for one, other in zip(drawn, TRIALS.of(world()), strict=True))
    assert not torch.equal(drawn[0], drawn[1])


def test_sets_miss_as_often_as_they_may() -> None:
    sets = keep_sets(world(), 0.1, TRIALS)
    assert float(sets.misses.mean()) == pytest.approx(0.1, abs=0.01)
    assert 1 <= sets.size < 2


def kept(way: str = OURS, risk: float = 0.01, holds: float = 0.96) -> Kept:
    return Kept(way, risk, holds, coverage=0.8, true_risk=0.005, nothing=0.0)


def test_rows_are_of_all_calibrations_of_all_worlds() -> None:
    rows = rows_of([kept(), kept(holds=0.92), kept(NAIVE, holds=0.5), kept(risk=0.05)])
    assert [(row.way, row.risk, row.worlds) for row in rows] == [(OURS, 0.01, 2), (NAIVE, 0.01, 1), (OURS, 0.05, 1)]
    assert rows[0].holds == pytest.approx(0.94)
    assert rows[0].lowest == 0.92


def test_bars_hold_our_bound_against_its_confidence() -> None:
    rows = rows_of([kept(), kept(holds=0.92), kept(NAIVE, holds=0.5), kept(risk=0.05)])
    first, second = bars_for("digits", rows, [], 0.95)
    assert (first.verdict, second.verdict) == ("MISSED", "reached")
    assert f"{NAIVE} 50.0 %" in first.note


def test_sets_have_the_luck_of_the_simulation() -> None:
    steady = Sets(0.1, torch.full((50,), 0.1001, dtype=torch.float64), 1.5)
    spread = Sets(0.1, 0.1001 + 0.01 * torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(25), 1.5)
    verdicts = [bars_for("digits", [], sets_rows([each]), 0.95)[0].verdict for each in (steady, spread)]
    assert verdicts == ["MISSED", "reached"]
    (row,) = sets_rows([spread, steady])
    assert row.error == pytest.approx((0.01**2 * 50 / 49 / 50 / 2 / 2) ** 0.5)


def test_tables_and_json() -> None:
    rows, sets = rows_of([kept(), kept(NAIVE)]), sets_rows([Sets(0.1, torch.zeros(5, dtype=torch.float64), 1.0)])
    assert len(row_lines(rows)) == 3
    assert len(sets_lines(sets)) == 2
    assert json.loads(json.dumps(as_plain("digits", rows, sets), allow_nan=False))["bounds"][0]["way"] == OURS
