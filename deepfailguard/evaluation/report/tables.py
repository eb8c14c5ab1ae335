"""The report's plain tables: CSV for programs, Markdown for pages of text."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.figures import UNDEFINED, decimal, percent
from deepfailguard.evaluation.report.summary import Summary

__all__ = [
    "SHARES",
    "Table",
    "answers_table",
    "csv_text",
    "ensemble_table",
    "markdown",
    "readable",
    "table_of",
    "versions_table",
]

SHARES: Final = frozenset(
    (
        *("accuracy", "guard", "majority", "oracle", "best_single", "rescue_share", "absolute_improvement"),
        *("headroom", "lower_limit", "coverage", "answered_accuracy", "worse_than_majority", "calibration_accuracy"),
    )
)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells.

    Attributes:
        columns: names, possibly equal ones.
        rows: each with one cell per column; None for what is undefined.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of all columns of the rows in the order in which they first occur."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(columns, tuple(tuple(row.get(name) for name in columns) for row in rows))


def versions_table(summary: Summary) -> Table:
    """One row per version."""
    return table_of([version.as_dict() for version in summary.versions])


def ensemble_table(summary: Summary) -> Table:
    """One row per measure of the ensemble and of the guard's own failure probability."""
    measures = summary.measures.as_dict()
    measures |= {f"guard_{name}": value for name, value in summary.guard_failure.as_dict().items() if name != "inputs"}
    gaps = {"guard_minus_majority": summary.over_majority, "guard_minus_best_single": summary.over_best_single}
    for name, gap in gaps.items():
        measures |= {name: gap.estimate, f"{name}_low": gap.low, f"{name}_high": gap.high}
    return Table(("measure", "value"), tuple(measures.items()))


def answers_table(evaluation: Evaluation) -> Table:
    """One row per input; labels are positions in the classes, -1 for no answer, no distance where none was found."""
    evidence, decision = evaluation.evidence, evaluation.decision
    fields: list[tuple[str, Iterable[Any]]] = [
        ("position", range(len(evaluation.truth))),
        ("truth", evaluation.truth.tolist()),
        ("guard", decision.labels.tolist()),
        ("failure_probability", decision.failure_probability.tolist()),
        ("abstained", decision.abstained.int().tolist()),
    ]
    for i, name in enumerate(evaluation.names):
        usable = evidence.found[:, i] & evidence.answered[:, i]
        pairs = zip(evidence.distance[:, i].tolist(), usable.tolist(), strict=True)
        fields += [
            (f"{name}: label", evidence.labels[:, i].tolist()),
            (f"{name}: distance", [distance if found else None for distance, found in pairs]),
            (f"{name}: failure_probability", evaluation.failure_probability[:, i].tolist()),
        ]
    return Table(tuple(name for name, _ in fields), tuple(zip(*(cells for _, cells in fields), strict=True)))


def csv_text(table: Table) -> str:
    """The table as CSV; numbers in full, empty cells for what is undefined."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return buffer.getvalue()


def markdown(table: Table) -> str:
    """The table as Markdown, figures as people read them."""
    numeric = [all(not isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
    lines = [
        _line(name.replace("_", " ") for name in table.columns),
        _line("---:" if right else "---" for right in numeric),
        *(_line(readable(*cell) for cell in zip(table.columns, row, strict=True)) for row in table.rows),
    ]
    return "\n".join(lines) + "\n"


def readable(column: str, value: Any) -> str:
    """A cell as people read it: shares in per cent, a dash for what is undefined.

    >>> readable("majority", 0.5), readable("size", 3), readable("rescue_share", None)
    ('50.0 %', '3', '–')
    """
    if value is None:
        return UNDEFINED
    if isinstance(value, float):
        return percent(value) if column in SHARES else decimal(value)
    return str(value)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
