import pytest

from deepfailguard.evaluation.intervals import Interval
from deepfailguard.evaluation.measures import EnsembleMeasures, ErrorClass
from deepfailguard.evaluation.report.wording import (
    headline,
    remark_on_abstentions,
    remark_on_best_single,
    remark_on_chance,
    remark_on_changes,
)


def measured(
    guard: float,
    majority: float,
    oracle: float,
    *,
    versions: int = 3,
    coverage: float = 1.0,
    answered: float | None = 0.99,
) -> EnsembleMeasures:
    return EnsembleMeasures(
        inputs=1000,
        version_accuracy=(0.9,) * versions,
        guard=guard,
        majority=majority,
        oracle=oracle,
        best_single=0.95,
        lower_limit=0.5,
        coverage=coverage,
        answered_accuracy=answered,
        error_classes=(ErrorClass(1, 9, 5, 4, 3, revised=2, broken=1), ErrorClass(2, 9, 5, 4, 3, revised=3, broken=0)),
    )


def test_the_headline_of_a_guard_that_helps() -> None:
    assert headline(measured(0.972, 0.961, 0.9878)) == (
        "The guard answers 97.2 % right, majority vote 96.1 %; it recovers 41 % of what a perfect choice among "
        "these versions could add."
    )


@pytest.mark.parametrize(
    ("measures", "says"),
    [
        (measured(0.95, 0.961, 0.98), "majority vote 96.1 %: on these inputs the guard does harm"),
        (measured(0.95, 0.961, 0.961), "does harm"),
        (measured(0.961, 0.961, 0.98), "neither more nor less than majority vote: it adds nothing here"),
        (measured(0.961, 0.961, 0.961), "no choice among these versions does better"),
        (measured(0.9, 0.9, 0.9, versions=1), "With a single version there is nothing to choose: it answers 90.0 %"),
        (measured(0.96104, 0.961, 0.98), "answers 96.104 % right, majority vote 96.100 %"),
    ],
)
def test_the_headline_does_not_flatter(measures: EnsembleMeasures, says: str) -> None:
    assert says in headline(measures)


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        (Interval(0.011, 0.003, 0.019, 0.95), "+1.1 points (95 % interval +0.3 to +1.9); that is hardly chance"),
        (Interval(0.002, -0.006, 0.01, 0.95), "+0.2 points (95 % interval −0.6 to +1.0); that may be chance"),
        (Interval(0.0, -0.006, 0.006, 0.95), "right equally often (95 % interval −0.6 to +0.6)"),
    ],
)
def test_chance(interval: Interval, says: str) -> None:
    assert says in remark_on_chance(interval)


def test_changes_add_up_over_the_error_classes() -> None:
    assert remark_on_changes(measured(0.9, 0.9, 0.9)) == (
        "Of 1000 inputs, the guard corrects the vote on 5 and spoils it on 1."
    )


@pytest.mark.parametrize(
    ("guard", "interval", "says"),
    [
        (0.96, Interval(0.01, 0.002, 0.02, 0.95), "95.0 % right, the guard 96.0 % (+1.0 points, 95 % interval"),
        (0.96, Interval(0.01, -0.002, 0.02, 0.95), "which may be chance."),
        (0.94, Interval(-0.01, -0.02, -0.002, 0.95), "running this version alone would have been better"),
        (0.95, Interval(0.0, 0.0, 0.0, 0.95), "just as many as the guard"),
    ],
)
def test_best_single(guard: float, interval: Interval, says: str) -> None:
    assert says in remark_on_best_single("v", measured(guard, 0.9, 0.99), interval)


def test_abstentions() -> None:
    assert remark_on_abstentions(measured(0.9, 0.9, 0.9)) == ""
    assert "abstains on 25.0 % of the inputs" in remark_on_abstentions(measured(0.9, 0.9, 0.9, coverage=0.75))
    assert "98.0 % are right" in remark_on_abstentions(measured(0.9, 0.9, 0.9, coverage=0.75, answered=0.98))
    assert "on every input" in remark_on_abstentions(measured(0.9, 0.9, 0.9, coverage=0.0, answered=None))
