import csv
import io
from dataclasses import replace

import pytest
import torch

from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.summary import summarise
from deepfailguard.evaluation.report.tables import (
    Table,
    answers_table,
    csv_text,
    ensemble_table,
    markdown,
    readable,
    table_of,
    versions_table,
)


def parsed(table: Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO(csv_text(table))))


def test_answers_read_back_as_they_were(evaluation: Evaluation) -> None:
    head, *rows = parsed(answers_table(evaluation))
    assert head[:5] == ["position", "truth", "guard", "failure_probability", "abstained"]
    assert head[5:8] == ["version0-s0: label", "version0-s0: distance", "version0-s0: failure_probability"]
    assert [int(row[0]) for row in rows] == list(range(len(evaluation.truth)))
    assert [int(row[1]) for row in rows] == evaluation.truth.tolist()
    assert [int(row[2]) for row in rows] == evaluation.decision.labels.tolist()
    assert [float(row[3]) for row in rows] == evaluation.decision.failure_probability.tolist()
    for i in range(3):
        assert [int(row[5 + 3 * i]) for row in rows] == evaluation.evidence.labels[:, i].tolist()
        assert [float(row[7 + 3 * i]) for row in rows] == evaluation.failure_probability[:, i].tolist()
        found = evaluation.evidence.found[:, i].tolist()
        assert [row[6 + 3 * i] != "" for row in rows] == found
        distances = torch.tensor([float(row[6 + 3 * i]) for row in rows if row[6 + 3 * i]], dtype=torch.float32)
        assert torch.equal(distances, evaluation.evidence.distance[torch.tensor(found), i])


def test_versions_of_equal_names_keep_their_columns(evaluation: Evaluation) -> None:
    head, *rows = parsed(answers_table(replace(evaluation, names=("same", "same", "same"))))
    assert len(head) == 14
    assert {len(row) for row in rows} == {14}


def test_versions_and_ensemble_equal_the_summary(evaluation: Evaluation) -> None:
    summary = summarise(evaluation)
    head, *rows = parsed(versions_table(summary))
    assert [row[head.index("name")] for row in rows] == list(evaluation.names)
    assert [float(row[head.index("accuracy")]) for row in rows] == [v.accuracy for v in summary.versions]
    measures = dict(parsed(ensemble_table(summary))[1:])
    assert float(measures["guard"]) == summary.measures.guard
    assert float(measures["guard_minus_majority_low"]) == summary.over_majority.low
    assert float(measures["guard_brier"]) == summary.guard_failure.brier


def test_columns_come_from_all_rows_in_order() -> None:
    table = table_of([{"a": 1, "b": None}, {"c": "x", "a": 2}])
    assert table == Table(("a", "b", "c"), ((1, None, None), (2, None, "x")))


def test_markdown_keeps_its_columns_whatever_the_names() -> None:
    text = markdown(table_of([{"rule": "a|b\nc", "rescue_share": 0.125}, {"rule": "d", "rescue_share": None}]))
    assert text.splitlines() == [
        "| rule | rescue share |",
        "| --- | ---: |",
        "| a\\|b c | 12.5 % |",
        "| d | – |",
    ]


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("guard", 0.5, "50.0 %"),
        ("brier", 0.5, "0.500"),
        ("size", 3, "3"),
        ("rule", "kde", "kde"),
        ("oracle", None, "–"),
    ],
)
def test_readable(column: str, value: object, shown: str) -> None:
    assert readable(column, value) == shown
