"""The figures of the distance benchmark: ratios, bars, tables."""

import doctest
import json
import math
from dataclasses import asdict
from types import ModuleType

import pytest
import torch

from benchmarks.distances import figures, tables
from benchmarks.distances.bars import Measured, bars_for, best_reference
from benchmarks.distances.figures import Quality, Range, Row, quality_of, range_of, rank_correlation, rows_of
from benchmarks.distances.peers import ALMA, FAB, FOOLBOX, FOOLBOX_DEFAULT, SUPER_DEEPFOOL
from benchmarks.distances.tables import row_lines
from benchmarks.distances.timing import Trace
from benchmarks.reporting import Bar, as_json, bar_lines
from deepfailguard.types import Distances

BALANCED, FAST, TIGHT, LEARNED = "ours, balanced", "ours, fast", "ours, tight", "LearnedDistance"


def distances(sizes: list[float]) -> Distances:
    """Distances of these sizes; NaN where none was found."""
    size = torch.tensor(sizes)
    return Distances(torch.zeros(len(sizes), dtype=torch.int64), size.nan_to_num(), ~size.isnan())


def row(name: str, fpe: float = 10.0, faster: float = 30.0, median: float = 0.9, failures: int = 0) -> Row:
    quality = Quality(64, median, median - 0.1, median + 0.1, median + 0.2, failures)
    return Row(name, Range(fpe, fpe, fpe), Range(faster, faster - 1, faster + 1), quality)


def estimate(name: str, spearman: float, fpe: float = 1.1) -> Row:
    return Row(name, Range(fpe, fpe, fpe), Range(99.0, 98.0, 100.0), None, spearman)


def measured(subject: str = "compact_cnn", classes: int = 10, **changes: object) -> Measured:
    rows = {name: row(name) for name in (FOOLBOX, BALANCED, TIGHT)}
    rows[FAST] = row(FAST, fpe=5.0, median=1.04)
    correlations = (("FirstOrderDistance", 0.9), ("LastLayerDistance", 0.8), (LEARNED, 0.985))
    rows.update({name: estimate(name, value) for name, value in correlations})
    memory = {"balanced": 200.0, "training step": 100.0}
    content: dict[str, object] = {"rows": rows, "patient": {}, "memory": memory, **changes}
    return Measured(subject, classes, 0.9, **content)  # type: ignore[arg-type]


def bar(result: Measured, start: str) -> Bar:
    (found,) = [each for each in bars_for(result) if each.text.startswith(start)]
    return found


@pytest.mark.parametrize("module", [figures, tables], ids=lambda module: module.__name__)
def test_doctests(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_quality_counts_only_what_both_found() -> None:
    reference, other = distances([1.0, 2.0, 4.0, math.nan]), distances([0.5, 4.0, math.nan, 1.0])
    quality = quality_of(other, reference)
    assert (quality.images, quality.failures, quality.worst) == (2, 1, 2.0)
    assert quality.median == pytest.approx(1.25)


def test_quality_without_a_common_image_is_not_a_number() -> None:
    quality = quality_of(distances([math.nan, math.nan]), distances([1.0, 1.0]))
    assert math.isnan(quality.median)
    assert quality.failures == 2


def test_range_has_quantiles() -> None:
    assert range_of(torch.tensor([30.0, 10.0, 20.0])) == Range(20.0, 12.0, 28.0)


def test_rank_correlation_sees_order_alone() -> None:
    searched = distances([1.0, 2.0, 3.0, math.nan])
    assert rank_correlation(distances([1.0, 8.0, 27.0, 0.0]), searched) == pytest.approx(1.0)
    assert math.isnan(rank_correlation(distances([1.0, math.nan, math.nan, 1.0]), searched))


def test_speed_is_the_median_of_the_chunks_ratios() -> None:
    sizes = distances([1.0, 2.0, 3.0])
    traces = {
        FOOLBOX: Trace(torch.tensor([10.0, 40.0, 90.0]), torch.tensor([100.0, 200.0, 300.0]), sizes),
        TIGHT: Trace(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 10.0, 11.0]), distances([0.5, 1.0, 1.5])),
        LEARNED: Trace(torch.ones(3), torch.ones(3), distances([3.0, 2.0, 1.0])),
    }
    rows = rows_of(traces, FOOLBOX, TIGHT, frozenset({LEARNED}))
    assert rows[TIGHT].faster.middle == pytest.approx(20.0)  # of 10, 20 and 30; the medians of the times give 20 too
    assert rows[TIGHT].fpe.middle == pytest.approx(10.0)
    assert rows[TIGHT].quality is not None
    assert rows[TIGHT].quality.median == pytest.approx(0.5)
    assert rows[LEARNED].quality is None
    assert rows[LEARNED].spearman == pytest.approx(-1.0)


def test_bars_are_reached_and_missed() -> None:
    assert bar(measured(), "balanced: times as fast as foolbox with its default").verdict == "reached"
    assert bar(measured("resnet18"), "balanced: median").verdict == "MISSED"  # 0.9 is enough for others only
    assert bar(measured(), "balanced: median").verdict == "reached"
    assert bar(measured(memory={"balanced": 301.0, "training step": 100.0}), "balanced: peak").verdict == "MISSED"


def test_many_classes_ask_for_more_speed_and_show_the_default_too() -> None:
    rows = dict(measured().rows)
    rows[FOOLBOX_DEFAULT] = row(FOOLBOX_DEFAULT, faster=4.0)
    result = measured("resnet18_43", 43, rows=rows)
    assert bar(result, "balanced: times as fast as foolbox with all").verdict == "MISSED"
    other = bar(result, "balanced: times as fast as foolbox with 10")
    assert other.figure == pytest.approx(30.0 / 4.0)


def test_tight_is_held_against_the_best_reference_that_works() -> None:
    patient = {
        FOOLBOX: row(FOOLBOX, median=1.0),
        TIGHT: row(TIGHT, fpe=50.0, median=0.808),
        ALMA: row(ALMA, fpe=1000.0, median=0.8),
        SUPER_DEEPFOOL: row(SUPER_DEEPFOOL, fpe=100.0, median=0.9),
        FAB: row(FAB, fpe=900.0, median=0.1, failures=65),
    }
    best = best_reference(patient)
    assert best is not None
    assert best.method == ALMA
    result = measured(patient=patient)
    assert bar(result, "tight: median").figure == pytest.approx(1.01)
    assert bar(result, "tight: cost").verdict == "reached"
    assert "Brendel-Bethge" in bar(result, "tight: cost").note  # it says who is absent


def test_what_was_not_measured_is_neither_reached_nor_hidden() -> None:
    result = measured(memory={})
    assert bar(result, "tight: cost").verdict == "not measured"
    assert bar(result, "balanced: peak").verdict == "not measured"
    assert bar_lines(bars_for(result))[-1] == "8 reached, 0 MISSED, 3 not measured"


def test_tables_name_every_method_and_line_up() -> None:
    lines = row_lines(measured().rows.values())
    assert len(lines) == 1 + len(measured().rows)
    head = lines[0].index("FPE") + 3
    assert all(line[head - 1] != " " and line[head] == " " for line in lines)


def test_json_has_null_where_nothing_was_measured() -> None:
    result = measured()
    content = as_json({"threads": 1}, {"subjects": [asdict(result)]}, bars_for(result))
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text)["subjects"][0]["rows"][BALANCED]["quality"]["median"] == 0.9
    assert None in [each["figure"] for each in content["bars"]]
