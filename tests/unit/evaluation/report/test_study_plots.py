from typing import Any

import pytest

from deepfailguard.evaluation.report.drawing import DARK, LIGHT, png
from deepfailguard.evaluation.report.study_plots import can_draw_study, study_picture


def row(setting: str, size: int, rule: str, share: float | None) -> dict[str, Any]:
    return {"setting": setting, "size": size, "rule": rule, "rescue_share": share, "ensembles": 7}


ROWS = [
    row("sound", 2, "kde", 0.5),
    row("sound", 3, "kde", 0.25),
    row("sound", 2, "prior", None),
    row("sound", 3, "prior", -4.0),
    row("one_faulty", 2, "kde", 0.75),
]


def test_there_is_one_panel_per_setting_and_one_line_per_rule() -> None:
    figure = study_picture(ROWS, LIGHT)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["sound", "one faulty"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines["kde"].get_ydata()) == [0.5, 0.25]
    assert list(lines["prior"].get_xdata()) == [1]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2\n(7)", "3\n(7)"]


def test_shares_far_below_stand_at_the_edge_with_their_figure() -> None:
    axes = study_picture(ROWS, LIGHT).axes[0]
    prior = next(line for line in axes.get_lines() if line.get_label() == "prior")
    assert list(prior.get_ydata()) == [-1.0]
    assert [text.get_text() for text in axes.texts] == ["−400 % ↓"]


@pytest.mark.parametrize("rules", [1, 12])
def test_any_number_of_rules_can_be_drawn_without_settings(rules: int) -> None:
    rows = [{"size": n, "rule": f"rule_{i}", "rescue_share": 0.1 * i} for n in (2, 5) for i in range(rules)]
    figure = study_picture(rows, DARK)
    assert len(figure.legends[0].get_texts()) == rules
    assert png(figure).startswith(b"\x89PNG")


def test_a_study_can_be_drawn_only_if_it_tells_what_to_draw() -> None:
    assert can_draw_study(ROWS)
    assert not can_draw_study([row("sound", 2, "kde", None)])
    assert not can_draw_study([{"rule": "kde", "rescue_share": 0.5}])
