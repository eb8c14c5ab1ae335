import pytest

from deepfailguard.evaluation.report.figures import decimal, percent, percents, points


@pytest.mark.parametrize(
    ("share", "digits", "shown"),
    [(0.9721, 1, "97.2 %"), (1.0, 1, "100.0 %"), (-0.0001, 1, "0.0 %"), (-0.25, 0, "−25 %"), (None, 1, "–")],
)
def test_percent(share: float | None, digits: int, shown: str) -> None:
    assert percent(share, digits) == shown


def test_percents_take_the_digits_that_tell_them_apart() -> None:
    assert percents([0.5, 0.6]) == ["50.0 %", "60.0 %"]
    assert percents([0.50001, 0.5]) == ["50.001 %", "50.000 %"]
    assert percents([0.5, 0.5]) == ["50.0 %", "50.0 %"]
    assert percents([0.5, 0.5 + 1e-9]) == ["50.0000 %", "50.0000 %"]


@pytest.mark.parametrize(
    ("difference", "shown"), [(0.0112, "+1.1"), (-0.02, "−2.0"), (0.0, "0.0"), (0.0001, "0.0"), (-0.0001, "0.0")]
)
def test_points_bear_their_sign(difference: float, shown: str) -> None:
    assert points(difference) == shown


def test_decimal() -> None:
    assert [decimal(0.12345), decimal(-1.5, 1), decimal(-1e-9), decimal(None)] == ["0.123", "−1.5", "0.000", "–"]
