import pytest

from deepfailguard.evaluation.report.drawing import LIGHT, elide, new_figure, outside_legend, png, safe_label, tidy


@pytest.mark.parametrize("longest", [1, 2, 7, 8])
def test_elided_names_have_the_length_asked_for(longest: int) -> None:
    assert len(elide("a_long_name", longest)) == longest
    assert elide("short", 5) == "short"


def test_labels_cannot_be_formulas_nor_lines_nor_boxes_of_unknown_glyphs() -> None:
    assert safe_label("a\nb\tc") == "a b c"
    assert safe_label("日x") == "□x"
    assert safe_label("$x$") == r"\$x\$"
    assert not safe_label("_hidden").startswith("_")


@pytest.mark.parametrize("name", ["$\\frac{a}$", "_private", "日本語", "<b>", "a" * 200, "", "a\x00b"])
def test_any_name_can_be_drawn(name: str) -> None:
    figure = new_figure(LIGHT, 3, 2)
    axes = figure.subplots()
    tidy(axes, LIGHT)
    axes.plot([0, 1], [0, 1], label=safe_label(name))
    axes.plot([0, 1], [1, 0], label="other")
    outside_legend(figure, axes, LIGHT, columns=1)
    assert png(figure).startswith(b"\x89PNG")
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == (2 if name else 1)


def test_the_same_picture_has_the_same_bytes() -> None:
    def picture() -> bytes:
        figure = new_figure(LIGHT, 2, 2)
        figure.subplots().plot([0, 1, 0])
        return png(figure)

    assert picture() == picture()
