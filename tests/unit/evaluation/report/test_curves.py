from pathlib import Path

from deepfailguard.evaluation.report.curves import curves_picture, write_curves
from deepfailguard.evaluation.report.drawing import LIGHT

CURVES = {"loss": [2.0, 1.0, 0.5], "accuracy": [0.2, 0.6, 0.9], "validation_loss": [2.1, 1.2, 0.8]}


def test_losses_and_accuracies_stand_apart() -> None:
    left, right = curves_picture(CURVES, LIGHT).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert drawn == {"loss": CURVES["loss"], "validation loss": CURVES["validation_loss"]}
    assert [list(line.get_ydata()) for line in right.lines] == [CURVES["accuracy"]]


def test_the_file_is_a_png(tmp_path: Path) -> None:
    write_curves(CURVES, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
