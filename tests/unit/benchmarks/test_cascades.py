"""The benchmark of cascades: orders, replay, costs, bars."""

import doctest
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.cascade import CODE
from benchmarks.cascades import measuring
from benchmarks.cascades.figures import as_plain, bars_for, row_lines, row_of
from benchmarks.cascades.measuring import ORDERS, Cascade, in_order, measure_cascades, replayed
from benchmarks.cascades.timing import family_seconds, seconds_of
from benchmarks.decisions.ensembles import Ensemble
from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import CALIBRATION, TEST
from benchmarks.decisions.pools import FAMILIES
from deepfailguard.predictor.staged import StagedPredictor
from tests.made_up_pool import CLASSES, pool_evidence

ROOT = Path(__file__).resolve().parents[3]
POOL = pool_evidence("cascades", 3, (120, 60), strength=3.0)


def test_doctests() -> None:
    results = doctest.testmod(measuring)
    assert results.attempted > 0
    assert results.failed == 0


def fitted(pool: PoolEvidence) -> StagedPredictor:
    return StagedPredictor().fit(pool.of(CALIBRATION, [0, 1, 2]), pool.truth(CALIBRATION))


def test_a_cascade_that_never_settles_is_the_joint_predictor() -> None:
    pool = POOL
    predictor, asked = fitted(pool), pool.of(TEST, [0, 1, 2])
    predictor.thresholds_ = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    stage, labels = replayed(predictor, asked)
    assert stage.tolist() == [3] * 60
    assert torch.equal(labels, predictor.stages_[-1].class_probability(asked).argmax(1))


def test_a_cascade_that_settles_at_once_asks_the_first_version_alone() -> None:
    pool = POOL
    predictor, asked = fitted(pool), pool.of(TEST, [0, 1, 2])
    predictor.thresholds_ = torch.ones(3, dtype=torch.float64)
    stage, labels = replayed(predictor, asked)
    assert stage.tolist() == [1] * 60
    assert torch.equal(labels, predictor.stages_[0].class_probability(asked.of_versions([0])).argmax(1))


def test_doubtful_inputs_go_on() -> None:
    pool = POOL
    predictor, asked = fitted(pool), pool.of(TEST, [0, 1, 2])
    first = 1 - predictor.stages_[0].class_probability(asked.of_versions([0])).amax(1)
    predictor.thresholds_ = torch.tensor([float(first.median()), -1.0, 1.0], dtype=torch.float64)
    stage, _ = replayed(predictor, asked)
    assert torch.equal(stage, torch.where(first <= first.median(), 1, 3))


def test_orders() -> None:
    members, accuracy, seconds = [4, 5, 6], [0.9, 0.9, 0.6], [2.0, 1.0, 0.5]
    assert in_order("best first", members, accuracy, seconds) == [5, 4, 6]
    assert in_order("cheapest first", members, accuracy, seconds) == [6, 5, 4]
    assert in_order("accuracy per cost", members, accuracy, seconds) == [6, 5, 4]
    assert in_order("cheapest first", members, accuracy, [1.0, 1.0, 1.0]) == [4, 5, 6]


def test_answers_are_kept_and_costs_are_those_of_the_run(tmp_path: Path) -> None:
    pool, ensembles = POOL, [Ensemble("sound", (0, 1, 2))]
    first = list(measure_cascades(pool, ensembles, {"family0": 1.0, "family1": 2.0, "family2": 3.0}, tmp_path, "code"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = list(measure_cascades(pool, ensembles, {"family0": 2.0, "family1": 4.0, "family2": 12.0}, tmp_path, "code"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    assert [each.order for each in first] == list(ORDERS)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.stage, other.stage)
        assert (one.versions, one.loss, one.expected) == (other.versions, other.loss, other.expected)
        assert other.judging == pytest.approx(one.judging / 3)  # in forward passes of a mean version
        assert other.costs.mean().item() == pytest.approx(1.0)
    for told, costs in ((first, [0.5, 1.0, 1.5]), (again, [1 / 3, 2 / 3, 2.0])):
        cheapest = next(each for each in told if each.order == "cheapest first")
        assert cheapest.costs.tolist() == pytest.approx(costs)
        assert cheapest.judging > 0


def test_orders_that_come_to_the_same_are_worked_out_once(tmp_path: Path) -> None:
    pool, ensembles = POOL, [Ensemble("sound", (0, 1, 2))]
    list(measure_cascades(pool, ensembles, {"family0": 1.0, "family1": 1.0, "family2": 1.0}, tmp_path, "code"))
    assert len(list(tmp_path.iterdir())) == 1  # equally costly: all three orders are the best first


def test_another_machine_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ensembles, seconds = (
        POOL,
        [Ensemble("sound", (0, 1, 2))],
        dict.fromkeys((each.family for each in POOL.members), 1.0),
    )
    list(measure_cascades(pool, ensembles, seconds, tmp_path, "code"))
    monkeypatch.setattr("platform.processor", lambda: "another processor")
    list(measure_cascades(pool, ensembles, seconds, tmp_path, "code"))
    assert len(list(tmp_path.iterdir())) == 2


def test_everything_that_answers_depend_on_is_part_of_the_code() -> None:
    named = {path for pattern in CODE for path in ROOT.glob(pattern)}
    for part in ("deepfailguard/decision/classes.py", "deepfailguard/predictor/staged.py"):
        assert ROOT / part in named
    assert {ROOT / f"benchmarks/cascades/{name}.py" for name in ("measuring", "timing")} <= named


def right(count: int) -> Tensor:
    return torch.arange(100) < count


def cascade(order: str = "best first", setting: str = "sound", late: int = 20, answers: int = 90) -> Cascade:
    """Of a hundred inputs the last ones ask two versions, the others one."""
    stage = torch.where(torch.arange(100) >= 100 - late, 2, 1)
    costs = torch.tensor([0.5, 1.5], dtype=torch.float64)
    return Cascade("digits", setting, order, 1.25, costs, 0.1, stage, right(answers), right(91), right(80))


def test_costs_are_of_the_versions_that_were_asked() -> None:
    told = cascade()
    assert told.versions == pytest.approx(1.2)
    assert told.cost == pytest.approx(0.8 * 0.5 + 0.2 * 2.0 + 0.1)
    assert told.loss == pytest.approx(0.01)


def test_rows_are_means_over_ensembles() -> None:
    row = row_of([cascade(), cascade(late=40, answers=91)], "sound")
    assert row.versions == pytest.approx(1.3)
    assert row.cascade == pytest.approx(0.905)
    assert (row.full, row.single) == (0.91, 0.8)
    assert row.loss == pytest.approx(0.005)
    assert row.worst == pytest.approx(0.01)


def test_bars_in_each_order() -> None:
    cascades = [cascade(order, setting) for order in ORDERS for setting in ("sound", "mixed")]
    bars = bars_for("digits", cascades)
    assert len(bars) == 3 * len(ORDERS) + 1
    verdicts = {bar.text.split(": ")[1]: bar.verdict for bar in bars if bar.text.startswith("best first")}
    assert list(verdicts.values()) == ["reached", "MISSED", "reached"]
    assert bars[-1].figure == 0
    assert {bar.verdict for bar in bars_for("digits", [cascade(late=60, answers=91)])} == {"MISSED", "reached"}


def test_tables_have_a_line_for_each_order_and_setting() -> None:
    cascades = [cascade(order, setting) for order in ORDERS for setting in ("sound", "mixed")]
    assert len(row_lines(cascades)) == 1 + 3 * 3
    rows = json.loads(json.dumps(as_plain("digits", cascades), allow_nan=False))["rows"]
    assert [row["setting"] for row in rows[:3]] == ["sound", "mixed", "all"]


def test_every_family_is_timed() -> None:
    told = family_seconds(torch.rand(4, 1, 16, 16), CLASSES, torch.device("cpu"))
    assert set(told) == {family.__name__ for family in FAMILIES}
    assert min(told.values()) > 0


def test_works_take_turns() -> None:
    turns: list[str] = []

    def work(name: str) -> Tensor:
        turns.append(name)
        return torch.zeros(1)

    seconds_of({"a": lambda: work("a"), "b": lambda: work("b")}, torch.device("cpu"))
    assert turns[:6] == ["a", "b", "a", "b", "b", "a"]
