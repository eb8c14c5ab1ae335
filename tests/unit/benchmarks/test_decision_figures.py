"""The figures of the decision benchmark: shares, intervals, bars, tables, drawing."""

import doctest
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from benchmarks import reporting
from benchmarks.decisions import figures
from benchmarks.decisions.bars import Measured, bars_for, figures_of
from benchmarks.decisions.figures import Row, best_simple, is_worse, rows_of, share_of, shift_rows
from benchmarks.decisions.outcomes import ORACLE, Outcome
from benchmarks.decisions.plotting import plot
from benchmarks.decisions.pools import DEVELOPMENT
from benchmarks.decisions.rules import (
    BEST_SINGLE,
    GUARD,
    MAJORITY,
    PAPER,
    SOFT_VOTE,
    STACKING,
    TIES_BY_ACCURACY,
    TUNED_STACKING,
)
from benchmarks.decisions.tables import as_plain, row_lines, setting_lines, shift_lines
from benchmarks.reporting import Bar, as_json
from deepfailguard.evaluation.intervals import paired_difference

COUNT = 1000
SIMPLE = {TIES_BY_ACCURACY: 610, BEST_SINGLE: 590, SOFT_VOTE: 620, STACKING: 640, TUNED_STACKING: 635}
BASE = {MAJORITY: 600, PAPER: 630, GUARD: 700, **SIMPLE}


def first(right: int) -> Tensor:
    """Right on the first inputs."""
    return torch.arange(COUNT) < right


def outcome(
    versions: int = 2, shift: str | None = None, seed: int = 0, setting: str = "sound", **right: int
) -> Outcome:
    counts = {**BASE, ORACLE: 800, **right}
    told = {rule: first(count) for rule, count in counts.items()}
    members = tuple("abcdefg"[:versions])
    return Outcome("digits", seed, setting, members, shift, told, {GUARD: 0.02, SOFT_VOTE: 0.06})


def bar(bars: list[Bar], part: str) -> Bar:
    (found,) = [each for each in bars if part in each.text]
    return found


@pytest.mark.parametrize("module", [figures, reporting], ids=lambda module: module.__name__)
def test_doctests(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_share_is_of_mean_accuracies() -> None:
    """Not the mean of shares, in which ensembles with little headroom would count as much as others."""
    outcomes = [outcome(guard=700), outcome(majority=780, guard=790)]
    assert share_of(outcomes, GUARD) == pytest.approx((700 - 600 + 790 - 780) / (200 + 20))


def test_share_of_the_majority_is_zero_and_without_headroom_undefined() -> None:
    assert share_of([outcome()], MAJORITY) == 0
    assert share_of([outcome()], ORACLE) == 1
    assert math.isnan(share_of([outcome(majority=800)], GUARD))


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (0, 5), (0, 12), (40, 45), (40, 80), (3, 20), (80, 40), (0, 0)])
def test_worse_agrees_with_the_library_s_paired_bootstrap(better: int, worse: int) -> None:
    mine, theirs = torch.zeros(COUNT, dtype=torch.bool), torch.zeros(COUNT, dtype=torch.bool)
    mine[:better] = True
    theirs[better : better + worse] = True
    told = Outcome("digits", 0, "sound", ("a",), None, {"mine": mine, "theirs": theirs}, {})
    assert is_worse(told, "mine", "theirs") == (paired_difference(mine, theirs, seed=0).high < 0)


def test_the_best_simple_rule_is_the_best_on_these_inputs() -> None:
    assert best_simple(outcome()) == STACKING
    assert best_simple(outcome(**{TIES_BY_ACCURACY: 650})) == TIES_BY_ACCURACY
    assert best_simple(outcome(guard=900, paper=900)) == STACKING


def test_rows_count_ensembles_that_are_worse() -> None:
    rows = {row.rule: row for row in rows_of([outcome(), outcome(guard=600)])}
    assert (rows[GUARD].worse, rows[GUARD].ensembles) == (1, 2)
    assert rows[STACKING].worse == 0
    assert rows[MAJORITY].worse == 2
    assert rows[GUARD].ece == pytest.approx(0.02)
    assert rows[PAPER].ece is None


def test_intervals_hold_the_share_and_pair_the_rules() -> None:
    row = next(row for row in rows_of([outcome()]) if row.rule == STACKING)
    assert row.low < row.share < row.high
    assert row.share == pytest.approx(0.2)
    assert row.ahead == pytest.approx(0.3)
    assert 0.2 < row.ahead_low < 0.3


def test_a_rule_that_was_not_always_measured_has_no_row() -> None:
    less = outcome()
    without = {rule: right for rule, right in less.right.items() if rule != PAPER}
    bare = Outcome(less.data, 0, less.setting, less.members, None, without, less.ece)
    assert PAPER not in {row.rule for row in rows_of([outcome(), bare])}
    assert PAPER in {row.rule for row in rows_of([outcome()])}


def width(seeds: range) -> float:
    """Of the interval of the guard's share, with one and the same outcome for every seed."""
    row = next(row for row in rows_of([outcome(seed=seed) for seed in seeds]) if row.rule == GUARD)
    return row.high - row.low


def test_more_evaluation_seeds_do_not_narrow_the_interval() -> None:
    """They answer the same images: what was luck of these images is the same luck in all of them."""
    assert width(range(4)) == pytest.approx(width(range(1)))


def test_more_development_seeds_narrow_the_interval() -> None:
    assert width(range(DEVELOPMENT, DEVELOPMENT + 4)) < 0.7 * width(range(DEVELOPMENT, DEVELOPMENT + 1))


def test_data_sets_are_drawn_apart() -> None:
    told = [outcome(), replace(outcome(), data="cifar10")]
    row = next(row for row in rows_of(told) if row.rule == GUARD)
    assert row.high - row.low < 0.9 * width(range(1))


def test_shift_rows_count_what_is_below_majority_or_soft_vote() -> None:
    outcomes = [outcome(shift="blur"), outcome(shift="blur", guard=560), outcome(shift="noise")]
    blur, noise = shift_rows([outcome(), *outcomes])
    assert (blur.shift, blur.ensembles, blur.below) == ("blur", 2, 1)
    assert (noise.shift, noise.below) == ("noise", 0)
    assert noise.share == pytest.approx(0.5)


def test_bars_of_a_guard_that_reaches_all() -> None:
    bars = bars_for(figures_of("digits", [outcome(), outcome(3), outcome(shift="blur")]))
    assert {each.verdict for each in bars if "paper" not in each.text} == {"reached"}
    assert bar(bars, "2 versions: guard's rescue share, beside twice the paper's").limit == pytest.approx(0.3)


def test_bars_of_a_guard_that_misses_all() -> None:
    poor = {GUARD: 590, PAPER: 598}
    bars = bars_for(figures_of("digits", [outcome(**poor), outcome(shift="blur", **{**poor, GUARD: 560})]))
    assert {each.verdict for each in bars} == {"MISSED"}
    assert bar(bars, "paper").limit == 0  # twice a negative share would be no limit
    assert bar(bars, "worse than").note == "1 of 1"


def test_bars_say_what_was_not_measured() -> None:
    told = outcome()
    without = {rule: right for rule, right in told.right.items() if rule != PAPER}
    bars = bars_for(figures_of("digits", [Outcome("digits", 0, "sound", told.members, None, without, told.ece)]))
    assert bar(bars, "paper").verdict == "not measured"
    assert {each.verdict for each in bars if each.text.startswith("under shift")} == {"not measured"}


def measured() -> Measured:
    outcomes = [outcome(size, setting=setting) for size in (2, 3) for setting in ("sound", "mixed")]
    return figures_of("digits", [*outcomes, outcome(shift="blur")])


def test_tables_have_a_line_for_each_rule() -> None:
    told = measured()
    lines = row_lines(told.by_versions[2])
    assert len(lines) == 1 + len(BASE)
    (guard,) = [line for line in lines if line.startswith(GUARD)]
    assert "50.0" in guard
    assert "0 of 2" in guard
    assert setting_lines(told)[0].split("  ")[-1].strip() == "mixed (2)"
    assert shift_lines(told.shifts)[1].startswith("blur")
    assert len(shift_lines([])) == 1


def test_json_has_no_nan_and_all_figures() -> None:
    bars = [Bar("digits", "nothing", math.nan, 1.0)]
    content = json.loads(json.dumps(as_json({"seeds": [0]}, {"data": [as_plain(measured())]}, bars), allow_nan=False))
    (data,) = content["data"]
    assert {row["rule"] for row in data["by_versions"]["2"]} == set(BASE)
    assert content["bars"][0]["figure"] is None
    assert content["bars"][0]["verdict"] == "not measured"


def test_the_drawing_has_a_panel_for_each_data_set(tmp_path: Path) -> None:
    plot([measured(), measured()], tmp_path / "deep" / "plot.png")
    assert (tmp_path / "deep" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_is_a_plain_record() -> None:
    assert isinstance(rows_of([outcome()])[0], Row)
    assert rows_of([]) == []
