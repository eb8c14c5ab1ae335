import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deepfailguard.decision.prediction_sets import (
    PredictionSets,
    SetScore,
    adaptive_score,
    calibrate_sets,
    least_ambiguous_score,
)
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.seeding import generator

SCORES: dict[str, SetScore] = {
    "least ambiguous": least_ambiguous_score,
    "adaptive": adaptive_score,
    "adaptive with penalty": functools.partial(adaptive_score, penalty=0.05, free=2),
}


@pytest.fixture(params=SCORES)
def score(request: pytest.FixtureRequest) -> SetScore:
    return SCORES[request.param]


def _inputs(count: int, purpose: object, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Overconfident class probabilities, and truths drawn from milder ones; the last class is rare and hard."""
    random = generator(0, purpose)
    logits = 2 * torch.randn(count, classes, generator=random, dtype=torch.float64)
    logits[:, -1] -= 1
    truth = torch.multinomial((logits / 2).softmax(1), 1, generator=random)[:, 0]
    return logits.softmax(1), truth


# --- against the definitions


@pytest.mark.parametrize("count", [1, 8, 9, 10, 99, 100, 250])
@pytest.mark.parametrize("miss_rate", [0.05, 0.1, 0.29, 0.5, 0.9])
def test_the_cutoff_is_the_quantile_of_split_conformal_prediction(count: int, miss_rate: float) -> None:
    probabilities, truth = _inputs(count, "quantile")
    cutoff = calibrate_sets(probabilities, truth, miss_rate).cutoff
    scores = 1 - probabilities[torch.arange(count), truth].numpy()
    level = math.ceil(round((count + 1) * (1 - miss_rate), 9)) / count
    expected = np.quantile(scores, level, method="inverted_cdf") if level <= 1 else math.inf
    assert cutoff.tolist() == [expected] * 5


@pytest.mark.parametrize(("penalty", "free"), [(0.0, 1), (0.1, 1), (0.1, 3)])
def test_the_adaptive_score_sums_what_is_more_probable(penalty: float, free: int) -> None:
    probabilities = _inputs(50, "adaptive")[0]
    probabilities[:10] = (probabilities[:10] * 8).round() / 8  # with ties, not summing to 1
    scores = adaptive_score(probabilities, penalty=penalty, free=free)
    for row, given in zip(probabilities.tolist(), scores.tolist(), strict=True):
        for p, value in zip(row, given, strict=True):
            before = [q for q in row if q > p]
            assert value == pytest.approx(sum(before) + penalty * max(0, len(before) + 1 - free))


def test_no_class_is_more_strange_than_a_less_probable_one(score: SetScore) -> None:
    probabilities = _inputs(200, "order")[0]
    by_probability = score(probabilities).gather(1, probabilities.argsort(1, descending=True))
    assert (by_probability.diff(dim=1) >= 0).all()
    assert (score(probabilities) >= 0).all()


# --- the promise holds


def _missed(sets: PredictionSets, repeat: int) -> Tensor:
    """Truths of new inputs, and for each whether its set lacks it: (1000, 2)."""
    probabilities, truth = _inputs(1000, ("new", repeat))
    return torch.stack([truth, (~sets(probabilities)[torch.arange(1000), truth]).long()], 1)


@pytest.mark.parametrize("count", [30, 200])
def test_the_truth_is_missed_no_more_often_than_allowed(score: SetScore, count: int) -> None:
    missed = [_missed(calibrate_sets(*_inputs(count, r), 0.1, score=score), r)[:, 1] for r in range(200)]
    assert torch.cat(missed).double().mean() <= 0.1 + 0.012  # 3 standard errors of 200 small calibrations


def test_with_empty_sets_allowed_it_is_missed_hardly_less_often() -> None:
    missed = [_missed(calibrate_sets(*_inputs(199, r), 0.1, allow_empty=True), r)[:, 1] for r in range(200)]
    # Exact for scores without ties and n + 1 = 200.
    assert float(torch.cat(missed).double().mean()) == pytest.approx(0.1, abs=0.006)


def test_by_class_it_holds_for_each_class(score: SetScore) -> None:
    rates = {}
    for by_class in (True, False):
        rows = [_missed(calibrate_sets(*_inputs(1000, r), 0.1, score=score, by_class=by_class), r) for r in range(60)]
        truth, missed = torch.cat(rows).T
        rates[by_class] = torch.stack([missed[truth == k].double().mean() for k in range(5)])
    assert (rates[True] <= 0.115).all()
    assert rates[False][-1] > 0.13  # without it the rare class pays for the others


def test_useless_probabilities_make_large_sets_and_no_false_promise(score: SetScore) -> None:
    probabilities, _ = _inputs(5000, "useless")
    truth = torch.randint(5, (5000,), generator=generator(0, "any"))
    sets = calibrate_sets(probabilities[:2500], truth[:2500], 0.1, score=score)(probabilities[2500:])
    assert sets[torch.arange(2500), truth[2500:]].double().mean() > 0.88
    assert sets.double().sum(1).mean() > 3.5


# --- corner cases


def test_a_class_never_seen_belongs_to_every_set_of_its_own_promise(score: SetScore) -> None:
    probabilities, truth = _inputs(500, "unseen")
    seen = truth != 2
    sets = calibrate_sets(probabilities[seen], truth[seen], 0.1, score=score, by_class=True)
    assert sets.cutoff.isinf().tolist() == [False, False, True, False, False]
    assert sets(probabilities)[:, 2].all()
    common = calibrate_sets(probabilities[seen], truth[seen], 0.1, score=score)
    assert len(set(common.cutoff.tolist())) == 1
    assert common.cutoff.isfinite().all()


def test_too_few_inputs_rule_nothing_out(score: SetScore) -> None:
    probabilities, truth = _inputs(8, "few")
    assert calibrate_sets(probabilities, truth, 0.1, score=score)(probabilities).all()
    probabilities, truth = _inputs(9, "just enough")
    assert calibrate_sets(probabilities, truth, 0.1, score=score).cutoff.isfinite().all()


def test_no_set_is_empty_unless_asked(score: SetScore) -> None:
    sure = torch.tensor([[0.9, 0.05, 0.05]] * 50, dtype=torch.float64)
    truth = torch.zeros(50, dtype=torch.int64)
    doubtful = torch.tensor([[0.4, 0.35, 0.25], [0.4, 0.4, 0.2]])
    sets = calibrate_sets(sure, truth, 0.1, score=score)
    assert sets(doubtful).tolist() == [[True, False, False], [True, True, False]]


def test_empty_sets_when_asked() -> None:
    sure = torch.tensor([[0.9, 0.05, 0.05]] * 50)
    sets = calibrate_sets(sure, torch.zeros(50, dtype=torch.int64), 0.1, allow_empty=True)
    assert sets(torch.tensor([[0.4, 0.35, 0.25], [0.9, 0.1, 0.0]])).sum(1).tolist() == [0, 1]


@pytest.mark.parametrize("allow_empty", [False, True])
def test_an_input_that_nobody_answered_has_every_class(score: SetScore, allow_empty: bool) -> None:
    probabilities, truth = _inputs(100, "silent")
    probabilities[:30] = 0  # they teach nothing and must not widen the other sets
    sets = calibrate_sets(probabilities, truth, 0.4, score=score, allow_empty=allow_empty)
    broken = torch.tensor([[0.0] * 5, [0.9, float("nan"), 0.0, 0.0, 0.0], [0.96, 0.01, 0.01, 0.01, 0.01]])
    assert sets(broken).sum(1).tolist()[:2] == [5, 5]
    assert int(sets(broken)[2].sum()) < 5


def test_one_class_is_always_meant(score: SetScore) -> None:
    sets = calibrate_sets(torch.ones(20, 1), torch.zeros(20, dtype=torch.int64), 0.1, score=score, by_class=True)
    assert sets(torch.ones(3, 1)).tolist() == [[True]] * 3


def test_an_empty_batch_has_no_sets(score: SetScore) -> None:
    sets = calibrate_sets(*_inputs(50, "empty"), 0.1, score=score)
    assert sets(torch.empty(0, 5)).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_inputs_are_judged_one_by_one_in_any_dtype(score: SetScore, dtype: torch.dtype) -> None:
    probabilities, truth = _inputs(100, "dtype")
    sets = calibrate_sets(probabilities, truth, 0.2, score=score)
    whole = sets(probabilities.to(dtype))
    assert whole.dtype == torch.bool
    assert torch.equal(torch.cat([sets(row) for row in probabilities.to(dtype).split(1)]), whole)


@pytest.mark.parametrize("miss_rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_miss_rate_lies_between_zero_and_one(miss_rate: float) -> None:
    with pytest.raises(ConfigurationError, match="miss_rate"):
        calibrate_sets(*_inputs(10, "rate"), miss_rate)


@pytest.mark.parametrize(("penalty", "free"), [(-0.1, 1), (0.1, 0)])
def test_penalties_that_make_no_sense_are_refused(penalty: float, free: int) -> None:
    with pytest.raises(ConfigurationError, match="penalty >= 0 and free >= 1"):
        adaptive_score(torch.ones(1, 1), penalty=penalty, free=free)


@pytest.mark.parametrize(
    ("probabilities", "truth", "problem"),
    [
        (torch.empty(0, 3), torch.empty(0, dtype=torch.int64), "n >= 1"),
        (torch.empty(2, 0), torch.zeros(2, dtype=torch.int64), "K >= 1"),
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), "n >= 1"),
        (torch.ones(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "floating"),
        (torch.ones(2, 1), torch.zeros(3, dtype=torch.int64), "truth must be int64"),
        (torch.ones(2, 1), torch.zeros(2), "truth must be int64"),
        (torch.ones(2, 1), torch.tensor([0, 1]), "truth spans 0..1"),
        (torch.ones(2, 1), torch.tensor([-1, 0]), "truth spans -1..0"),
        (torch.tensor([[1.0, 0.0], [3.0, -2.0]]), torch.tensor([0, 0]), "1 rows .* number 1"),
        (torch.tensor([[0.5, 0.4]]), torch.tensor([0]), "do not sum to 1"),
        (torch.tensor([[0.5, float("nan")]]), torch.tensor([0]), "do not sum to 1"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(probabilities: Tensor, truth: Tensor, problem: str) -> None:
    with pytest.raises(DataFormatError, match=problem):
        calibrate_sets(probabilities, truth, 0.1)


@pytest.mark.parametrize("probabilities", [torch.ones(3, 4), torch.ones(5), torch.ones(3, 5, dtype=torch.int64)])
def test_other_classes_than_in_calibration_are_refused(probabilities: Tensor) -> None:
    sets: PredictionSets = calibrate_sets(*_inputs(50, "classes"), 0.1)
    with pytest.raises(DataFormatError, match=r"\(B, 5\)"):
        sets(probabilities)
