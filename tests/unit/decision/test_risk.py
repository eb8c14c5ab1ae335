from collections.abc import Callable

import pytest
import torch
from scipy.stats import binom, binomtest
from torch import Tensor

from deepfailguard.decision.risk import ANSWER_NOTHING, RiskBound, abstaining, bound_risk
from deepfailguard.decision.rules import highest_posterior
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.seeding import generator
from deepfailguard.types import Decision

Source = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def _right(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool)


def _line(count: int) -> Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


# --- what is promised, and how few inputs it takes


@pytest.mark.parametrize(
    ("risk", "confidence", "least"), [(0.05, 0.95, 60), (0.05, 0.9, 46), (0.02, 0.9, 115), (0.01, 0.95, 300)]
)
def test_it_takes_so_many_right_answers_and_not_one_less(risk: float, confidence: float, least: int) -> None:
    enough = bound_risk(_line(least), _right(least), risk=risk, confidence=confidence)
    assert (enough.guaranteed, enough.coverage, enough.threshold) == (True, 1.0, 1.0)
    few = bound_risk(_line(least - 1), _right(least - 1), risk=risk, confidence=confidence)
    assert (few.guaranteed, few.coverage, few.threshold) == (False, 0.0, ANSWER_NOTHING)
    assert few.least_inputs == enough.least_inputs == least
    assert few.error_rate is None
    assert f"{least - 1} calibration inputs are too few" in few.explain()
    assert f"give at least {least}, and more where some are answered wrong" in few.explain()


def test_the_words_name_threshold_coverage_and_errors() -> None:
    failure = _line(1001)
    bound = bound_risk(failure, failure > 0.5, risk=0.05, confidence=0.9)
    assert bound.guaranteed
    assert f"({bound.coverage:.1%}) are answered, {bound.errors} of them wrong" in bound.explain()
    assert "at most 0.05 of the given answers are wrong (confidence 0.9)" in bound.explain()


def test_without_any_good_answer_nothing_is_answered() -> None:
    bound = bound_risk(_line(1000), ~_right(1000), risk=0.1, confidence=0.9)
    assert (bound.guaranteed, bound.threshold, bound.error_bound) == (False, ANSWER_NOTHING, 1.0)
    assert "too many of the least doubtful of 1000 calibration inputs are wrong" in bound.explain()
    assert "(23 inputs would do if all were answered right)" in bound.explain()


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    failure = _line(100)  # so few that there is a single start: its level is the whole budget
    bound = bound_risk(failure, failure > 0.985, risk=0.05, confidence=0.95)
    exact = binomtest(bound.errors, bound.answered, alternative="less").proportion_ci(0.95).high
    assert bound.error_bound == pytest.approx(exact)
    assert 0.03 < bound.error_bound <= 0.05


def test_a_late_start_passes_where_the_surest_answers_are_wrong() -> None:
    """Ten wrong ones come first: of the starts 68, 167 and 408 only the last passes, with a third of the budget."""
    bound = bound_risk(_line(1000), torch.arange(1000) < 10, risk=0.05, confidence=0.9)
    assert (bound.answered, bound.errors) == (1000, 10)
    exact = binomtest(10, 1000, alternative="less").proportion_ci(1 - 0.1 / 3).high
    assert bound.error_bound == pytest.approx(exact)


def test_inputs_of_one_failure_probability_are_answered_together_or_not_at_all() -> None:
    """Two starts lie among the 400 ties, the last at the 155th: it passes with at most so many errors before it."""
    most = max(errors for errors in range(400) if binom.cdf(errors, 154, 0.05) <= 0.1 / 2)
    assert most > 0
    for errors, answered in ((0, 400), (most, 400), (most + 1, 0)):
        wrong = torch.arange(400) < errors
        assert bound_risk(torch.full((400,), 0.25), wrong, risk=0.05, confidence=0.9).answered == answered


# --- against the procedure written down once more, one test after the other


def _by_hand(failure: list[float], wrong: list[bool], starts: list[int], share: float, risk: float) -> tuple[int, int]:
    """Answered and wrong at the last threshold that passes; for starts in ties the wrong ones are sorted first."""
    rows = sorted(zip(failure, [not w for w in wrong], strict=True))
    best, level = (0, 0), 0.0
    for count, (value, _) in enumerate(rows, start=1):
        if count in starts:
            below = sum(not right for _, right in rows[: count - 1])
            if count > 1 and binomtest(below, count - 1, risk, alternative="less").pvalue <= share:
                level += share
        if count < len(rows) and rows[count][0] == value:
            continue
        errors = sum(not right for _, right in rows[:count])
        if level > 0 and binomtest(errors, count, risk, alternative="less").pvalue <= level:
            best = (count, errors)
        else:
            level = 0.0
    return best


@pytest.mark.parametrize("distinct", [3, 20, 10_000])
@pytest.mark.parametrize("risk", [0.05, 0.1, 0.3])
def test_it_equals_the_tests_one_by_one(distinct: int, risk: float) -> None:
    answered = []
    for repeat in range(8):
        random = generator(repeat, distinct, risk)
        failure = (torch.rand(250, generator=random, dtype=torch.float64) ** 2 * distinct).round() / distinct
        wrong = torch.rand(250, generator=random, dtype=torch.float64) < failure**2
        bound = bound_risk(failure, wrong, risk=risk, confidence=0.9)
        starts = _starts_by_hand(250, risk, 0.1)
        expected = _by_hand(failure.tolist(), wrong.tolist(), starts, 0.1 / len(starts), risk)
        assert (bound.answered, bound.errors) == expected
        answered.append(bound.answered)
    assert max(answered) > 0


def _starts_by_hand(inputs: int, risk: float, budget: float) -> list[int]:
    for count in (5, 4, 3, 2, 1):
        first = 1 + next(k for k in range(10**6) if (1 - risk) ** k <= budget / count)
        ratio = inputs / first
        if ratio >= 1 and (count == 1 or ratio ** (1 / count) >= 2):
            return [round(first * ratio ** (i / count)) for i in range(count)]
    return []


# --- the promise holds, whatever the failure probabilities are worth


def _calibrated(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    failure = torch.rand(n, generator=random, dtype=torch.float64) ** 4 / 2
    return failure, failure


def _always_slightly_too_wrong(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every threshold is too risky by a hair: any promise at all is a broken one."""
    return torch.rand(n, generator=random, dtype=torch.float64), torch.full((n,), 0.0501, dtype=torch.float64)


def _surely_wrong_at_both_ends(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Answers that look the surest are bad, those behind them good: the risk crosses the allowed one thrice."""
    failure = torch.rand(n, generator=random, dtype=torch.float64)
    return failure, torch.where(failure < 0.1, 0.2, torch.where(failure < 0.7, 0.005, 0.3))


def _three_values(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ties, the first of them too risky, the first two together just right."""
    failure = torch.randint(0, 3, (n,), generator=random).double() / 4
    return failure, torch.tensor([0.08, 0.0201, 0.06], dtype=torch.float64)[(failure * 4).long()]


@pytest.mark.parametrize("source", [_calibrated, _always_slightly_too_wrong, _surely_wrong_at_both_ends, _three_values])
@pytest.mark.parametrize("inputs", [150, 600])
def test_the_true_risk_is_as_promised(source: Source, inputs: int) -> None:
    repeats, risk, confidence = 300, 0.05, 0.9
    many, chance = source(200_000, generator(0, "truth"))
    broken = 0
    for repeat in range(repeats):
        random = generator(repeat, "calibration", inputs)
        failure, p = source(inputs, random)
        wrong = torch.rand(inputs, generator=random, dtype=torch.float64) < p
        bound = bound_risk(failure, wrong, risk=risk, confidence=confidence)
        broken += bound.guaranteed and float(chance[many <= bound.threshold].mean()) > risk
    assert broken <= binom.ppf(0.999, repeats, 1 - confidence)


def test_better_failure_probabilities_let_more_be_answered() -> None:
    random = generator(0, "coverage")
    failure = torch.rand(2000, generator=random, dtype=torch.float64) ** 4
    wrong = torch.rand(2000, generator=random, dtype=torch.float64) < failure
    good = bound_risk(failure, wrong, risk=0.05)
    useless = bound_risk(torch.rand(2000, generator=random, dtype=torch.float64), wrong, risk=0.05)
    assert good.coverage > 0.5
    assert not useless.guaranteed  # a fifth of all answers is wrong


# --- what it is given


def test_thresholds_fit_the_dtype_they_came_in() -> None:
    random = generator(0, "float32")
    failure = torch.rand(500, generator=random) ** 3
    bound = bound_risk(failure, torch.rand(500, generator=random) < failure / 2, risk=0.1)
    assert bound.guaranteed
    assert int((failure <= bound.threshold).sum()) == bound.answered


@pytest.mark.parametrize("name", ["risk", "confidence"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_shares_lie_between_zero_and_one(name: str, value: float) -> None:
    settings = {"risk": 0.05, "confidence": 0.9} | {name: value}
    with pytest.raises(ConfigurationError, match=name):
        bound_risk(_line(100), _right(100), **settings)


@pytest.mark.parametrize(
    ("failure", "wrong", "problem"),
    [
        (_line(0), _right(0), "n >= 1"),
        (_line(3), _right(4), "like wrong"),
        (torch.zeros(3, dtype=torch.int64), _right(3), "floating"),
        (_line(3), torch.zeros(3), "bool"),
        (_line(3)[None], _right(3)[None], "bool"),
        (torch.tensor([0.1, float("nan"), 0.2]), _right(3), "1 are outside or NaN"),
        (torch.tensor([0.1, 1.1, -0.2]), _right(3), "2 are outside or NaN"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(failure: Tensor, wrong: Tensor, problem: str) -> None:
    with pytest.raises(DataFormatError, match=problem):
        bound_risk(failure, wrong, risk=0.05)


@pytest.mark.parametrize("count", [1, 2])
def test_one_input_promises_little(count: int) -> None:
    assert not bound_risk(_line(count), _right(count), risk=0.05).guaranteed
    lenient = bound_risk(_line(count), _right(count), risk=0.9, confidence=0.5)
    assert lenient.guaranteed == (count == 2)


# --- from a bound to a decision


def _decision(failure: list[float]) -> Decision:
    p = torch.tensor(failure, dtype=torch.float64)[:, None]
    labels = torch.where(p == 1, -1, torch.arange(len(p))[:, None])
    return highest_posterior(labels, p)


def test_a_decision_abstains_above_the_threshold_only() -> None:
    decision = _decision([0.0, 0.1, 0.2, 1.0])
    changed = abstaining(decision, 0.1)
    assert changed.abstained.tolist() == [False, False, True, True]
    assert decision.abstained.tolist() == [False, False, False, True]
    assert torch.equal(changed.labels, decision.labels)
    assert torch.equal(changed.failure_probability, decision.failure_probability)
    assert torch.equal(changed.weights, decision.weights)


def test_a_rule_with_the_threshold_abstains_alike() -> None:
    failure = torch.rand(200, 1, generator=generator(0, "alike"), dtype=torch.float64)
    labels = torch.zeros(200, 1, dtype=torch.int64)
    threshold = float(failure[7, 0])
    direct = highest_posterior(labels, failure, abstain_above=threshold)
    assert torch.equal(abstaining(highest_posterior(labels, failure), threshold).abstained, direct.abstained)


def test_no_promise_no_answer() -> None:
    bound = RiskBound(0.05, 0.9, ANSWER_NOTHING, 10, 0, 0, 1.0)
    assert abstaining(_decision([0.0, 0.5]), bound.threshold).abstained.all()
    with pytest.raises(ConfigurationError, match="abstain_above"):
        highest_posterior(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), abstain_above=bound.threshold)


def test_what_never_answered_still_abstains_and_nan_is_above_all() -> None:
    decision = abstaining(_decision([0.5, 1.0]), 1.0)
    assert decision.abstained.tolist() == [False, True]
    broken = Decision(torch.tensor([1]), torch.tensor([float("nan")]), torch.ones(1, 1), torch.tensor([False]))
    assert abstaining(broken, 1.0).abstained.tolist() == [True]


def test_an_empty_batch_is_no_problem() -> None:
    empty = Decision(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, 2), torch.empty(0).bool())
    assert len(abstaining(empty, 0.5).abstained) == 0


@pytest.mark.parametrize("threshold", [-0.5, 1.5, float("nan"), float("inf")])
def test_other_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ConfigurationError, match="threshold must be"):
        abstaining(_decision([0.1]), threshold)
