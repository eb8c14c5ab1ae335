"""Write a report or a study into a folder: a page that stands alone, pictures and plain files.

The page is written last: where it stands, everything else stands too.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.densities import density_picture
from deepfailguard.evaluation.report.examples import Example, find_examples
from deepfailguard.evaluation.report.page import Picture, draw, render
from deepfailguard.evaluation.report.plots import accuracy_picture, reliability_picture, risk_picture
from deepfailguard.evaluation.report.study_plots import can_draw_study, study_picture
from deepfailguard.evaluation.report.summary import Summary, summarise
from deepfailguard.evaluation.report.tables import (
    answers_table,
    csv_text,
    ensemble_table,
    markdown,
    table_of,
    versions_table,
)
from deepfailguard.store import atomic_path, save_text

__all__ = ["write_report", "write_study"]

_MOST_EXAMPLES: Final = 6
_PICTURES = "pictures"
_REPORT_PICTURES: Final = ("accuracy", "reliability", "risk", "densities", "rescued-*", "harmed-*")
_STUDY_PICTURES: Final = ("rescue",)


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write report.html, summary.json, versions.csv, ensemble.csv, answers.csv and the pictures.

    The same evaluation gives the same files.

    Args:
        evaluation: what to report.
        folder: where to; made if it does not exist, files of an earlier report are replaced.

    Returns:
        The page.

    Raises:
        DataFormatError: the evaluation has no inputs, or its parts do not fit together.
    """
    summary = summarise(evaluation)
    pictures = _pictures(evaluation, summary)
    examples = {
        "rescued": find_examples(evaluation, "rescued", _MOST_EXAMPLES),
        "harmed": find_examples(evaluation, "harmed", _MOST_EXAMPLES),
    }
    _save_pictures(folder / _PICTURES, pictures, examples, _REPORT_PICTURES)
    _save_json(folder / "summary.json", summary.as_dict())
    save_text(folder / "versions.csv", csv_text(versions_table(summary)))
    save_text(folder / "ensemble.csv", csv_text(ensemble_table(summary)))
    save_text(folder / "answers.csv", csv_text(answers_table(evaluation)))
    known = evaluation.calibration is not None and evaluation.calibration_truth is not None
    content = {
        "summary": summary,
        "pictures": {picture.name: picture for picture in pictures},
        "examples": examples,
        "densities_of": "calibration" if known else "test",
    }
    return _save_page(folder / "report.html", "report.html", content)


def write_study(
    rows: Sequence[Mapping[str, Any]], summary_rows: Sequence[Mapping[str, Any]], title: str, folder: Path
) -> Path:
    """Write study.html, study.md, study.csv, study.json and, if it can be drawn, the picture of rescue shares.

    Args:
        rows: one per ensemble and rule, with the caller's columns; values are JSON.
        summary_rows: the small table that people read; the picture needs its columns ``size``, ``rule`` and
            ``rescue_share``, and draws a panel for each ``setting``.
        title: what was studied.
        folder: where to; files of an earlier study are replaced.

    Returns:
        The page.
    """
    if not rows or not summary_rows:
        raise ConfigurationError(
            f"a study needs at least one row and one summary row, got {len(rows)} and {len(summary_rows)}; "
            "choose sizes for which the pool has enough versions"
        )
    rows, summary_rows = _defined(rows), _defined(summary_rows)
    pictures = []
    if can_draw_study(summary_rows):
        pictures.append(draw("rescue", partial(study_picture, summary_rows)))
    table = table_of(summary_rows)
    _save_pictures(folder / _PICTURES, pictures, {}, _STUDY_PICTURES)
    _save_json(folder / "study.json", {"title": title, "summary": summary_rows, "rows": rows})
    save_text(folder / "study.csv", csv_text(table_of(rows)))
    save_text(folder / "study.md", f"# {' '.join(title.split())}\n\n{markdown(table)}")
    numeric = [not any(isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
    content = {"title": title, "count": len(rows), "table": table, "numeric": numeric, "pictures": pictures}
    return _save_page(folder / "study.html", "study.html", content)


def _pictures(evaluation: Evaluation, summary: Summary) -> list[Picture]:
    pictures = [
        draw("accuracy", partial(accuracy_picture, summary)),
        draw("reliability", partial(reliability_picture, evaluation)),
        draw("risk", partial(risk_picture, evaluation)),
    ]
    if bool(evaluation.evidence.found.any()):  # else nobody asked for distances
        pictures.append(draw("densities", partial(density_picture, evaluation)))
    return pictures


def _defined(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with None for numbers that are not finite: JSON has no other word for them."""
    return [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in rows
    ]


def _save_pictures(
    folder: Path, pictures: Sequence[Picture], examples: Mapping[str, Sequence[Example]], kinds: Sequence[str]
) -> None:
    """Write pictures and examples, in place of all that an earlier page of the same kind had."""
    images = {f"{picture.name}.png": picture.light for picture in pictures}
    for kind, found in examples.items():
        images |= {f"{kind}-{i}.png": example.image for i, example in enumerate(found, start=1)}
    for name, data in images.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(data)
    # An earlier page may have had more of them; beside the new page they would be wrong.
    for path in [path for kind in kinds for path in folder.glob(f"{kind}.png")]:
        if path.name not in images:
            path.unlink()


def _save_json(path: Path, content: Any) -> None:
    save_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _save_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    save_text(path, render(template, **content))
    return path
