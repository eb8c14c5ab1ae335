import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from sklearn.calibration import calibration_curve

from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.densities import density_picture
from deepfailguard.evaluation.report.drawing import DARK, LIGHT, png
from deepfailguard.evaluation.report.plots import accuracy_picture, reliability_picture, risk_picture
from deepfailguard.evaluation.report.summary import summarise
from deepfailguard.types import Evidence


def is_picture(data: bytes) -> bool:
    """Whether there is something to see: an image of several colours."""
    return len(np.unique(np.asarray(Image.open(io.BytesIO(data)).convert("L")))) > 8


@pytest.mark.parametrize("versions", [1, 2, 7, 20])
def test_any_number_of_versions_can_be_drawn(versions: int, random: Callable[..., Evaluation]) -> None:
    evaluation = random(versions=versions, inputs=30, names=[f"a_name_of_some_length_{i}" for i in range(versions)])
    assert is_picture(png(accuracy_picture(summarise(evaluation), LIGHT)))
    assert is_picture(png(reliability_picture(evaluation, DARK)))
    assert is_picture(png(risk_picture(evaluation, LIGHT)))
    figure = density_picture(evaluation, LIGHT)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titles) == versions


def test_versions_that_are_always_right_or_wrong_can_be_drawn(all_right: Evaluation, all_wrong: Evaluation) -> None:
    for evaluation in (all_right, all_wrong):
        for picture in (reliability_picture, risk_picture, density_picture):
            assert is_picture(png(picture(evaluation, LIGHT)))
        assert is_picture(png(accuracy_picture(summarise(evaluation), LIGHT)))


def test_accuracies_stand_where_they_are(evaluation: Evaluation) -> None:
    summary = summarise(evaluation)
    axes = accuracy_picture(summary, LIGHT).axes[0]
    drawn = {
        label.get_text(): float(line.get_xdata()[0])
        for label, line in zip(axes.get_yticklabels(), axes.get_lines(), strict=False)
    }
    measures = summary.measures
    assert drawn["guard"] == measures.guard
    assert drawn["majority vote"] == measures.majority
    assert drawn["oracle: any version is right"] == measures.oracle
    assert drawn["best version by calibration"] == measures.best_single
    assert all(drawn[version.name] == version.accuracy for version in summary.versions)
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert [band.x0, band.x1] == pytest.approx([measures.majority, measures.oracle])


def guard_line(figure: Figure) -> Line2D:
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "guard"]
    return line


def test_reliability_equals_scikit_learn_where_bins_are_full(random: Callable[..., Evaluation]) -> None:
    evaluation = random(inputs=2000, versions=1)
    wrong = (evaluation.decision.labels != evaluation.truth).numpy()
    probability = evaluation.decision.failure_probability.clamp(0, 0.79).numpy()
    decision = replace(evaluation.decision, failure_probability=torch.from_numpy(probability))
    assert np.histogram(probability, bins=15, range=(0, 1))[0][:12].min() >= 20
    line = guard_line(reliability_picture(replace(evaluation, decision=decision), LIGHT))
    observed, predicted = calibration_curve(wrong, probability, n_bins=15)
    assert line.get_xdata() == pytest.approx(predicted)
    assert line.get_ydata() == pytest.approx(observed)


def test_sparse_bins_are_joined_so_that_no_point_stands_for_a_few_answers(random: Callable[..., Evaluation]) -> None:
    evaluation = random(inputs=500, versions=1)
    probability = evaluation.decision.failure_probability**4  # most near 0, a few everywhere else
    decision = replace(evaluation.decision, failure_probability=probability)
    figure = reliability_picture(replace(evaluation, decision=decision), LIGHT)
    sparse = np.histogram(probability.numpy(), bins=15, range=(0, 1))[0]
    assert 0 < sparse[sparse > 0].min() < 20
    points = len(np.asarray(guard_line(figure).get_xdata()))
    assert 2 <= points <= 500 // 20
    assert points < (sparse > 0).sum()
    bars = figure.axes[0].collections[-2].get_segments()  # beneath the guard's dots
    assert len(bars) == points
    for (x, low), (_, high) in bars:
        assert 0 <= low <= high <= 1
        assert high - low < 0.5  # of 20 answers and more
        assert x in guard_line(figure).get_xdata()


def test_risk_at_full_coverage_is_the_error_rate(evaluation: Evaluation) -> None:
    summary = summarise(evaluation)
    lines = {line.get_label(): line for line in risk_picture(evaluation, LIGHT).axes[0].get_lines()}
    assert lines["guard"].get_ydata()[-1] == pytest.approx(1 - summary.measures.guard)
    for version in summary.versions:
        assert lines[version.name].get_ydata()[-1] == pytest.approx(1 - version.accuracy)


def test_many_versions_share_one_entry_of_the_legend(random: Callable[..., Evaluation]) -> None:
    figure = risk_picture(random(versions=9, inputs=20), LIGHT)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the 9 versions", "guard"]


def panel_counts(evaluation: Evaluation) -> list[str]:
    return [axes.texts[0].get_text() for axes in density_picture(evaluation, LIGHT).axes if axes.texts]


def test_densities_have_area_one_and_count_their_answers(evaluation: Evaluation) -> None:
    known = replace(evaluation.evidence, found=torch.ones_like(evaluation.evidence.found))
    figure = density_picture(replace(evaluation, calibration=known), LIGHT)
    axes = figure.axes[0]
    right = int((known.labels[:, 0] == evaluation.truth).sum())
    assert axes.texts[0].get_text() == f"{right} right, {len(evaluation.truth) - right} wrong"
    for line in axes.get_lines()[:2]:
        area = np.trapezoid(np.asarray(line.get_ydata()), np.asarray(line.get_xdata()))
        assert area == pytest.approx(1.0, abs=0.15)  # the tails beyond the axis are cut


def test_without_calibration_evidence_the_test_inputs_are_drawn(evaluation: Evaluation) -> None:
    shifted = replace(evaluation, calibration=evaluation.calibration and evaluation.calibration[:40])
    shifted = replace(shifted, calibration_truth=evaluation.truth[:40])
    assert sum(int(n) for n in panel_counts(shifted)[0].split() if n.isdigit()) == 40
    without = replace(evaluation, calibration=None, calibration_truth=None)
    assert sum(int(n) for n in panel_counts(without)[0].split() if n.isdigit()) == len(evaluation.truth)


@pytest.mark.parametrize("distance", [0.0, 0.7, torch.inf])
def test_constant_and_missing_distances_can_be_drawn(distance: float, evaluation: Evaluation) -> None:
    labels = evaluation.evidence.labels
    constant = Evidence(labels, torch.full(labels.shape, distance), torch.ones_like(labels, dtype=torch.bool))
    nothing = replace(constant, found=torch.zeros_like(constant.found))
    assert is_picture(png(density_picture(replace(evaluation, calibration=constant), LIGHT)))
    assert panel_counts(replace(evaluation, calibration=nothing))[0] == "0 right, 0 wrong, 80 without distance"


def test_a_lone_wrong_answer_is_a_mark(evaluation: Evaluation) -> None:
    labels = evaluation.truth[:, None].clone()
    labels[0] = (labels[0] + 1) % 4
    distance = torch.linspace(0.1, 1.0, len(labels))[:, None]
    one = Evidence(labels, distance, torch.ones_like(labels, dtype=torch.bool))
    axes = density_picture(replace(evaluation, names=("one",), calibration=one), LIGHT).axes[0]
    assert axes.texts[0].get_text() == "79 right, 1 wrong"
    assert list(axes.get_lines()[1].get_xdata()) == pytest.approx([0.1, 0.1])
