import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.evaluation.failure_prediction import (
    area_under_generalised_risk_coverage,
    area_under_risk_coverage,
    auroc,
    brier_score,
    coverage_at_risk,
    expected_calibration_error,
    false_positive_rate,
    measure_failure_prediction,
    merged_bins,
    reliability_bins,
    risk_coverage_curve,
)
from deepfailguard.seeding import generator


def _case(levels: int, size: int = 400) -> tuple[Tensor, Tensor]:
    """Failure probabilities on some levels (so with ties) and errors that go with them."""
    random = generator(0, levels, size)
    failure = torch.randint(0, levels + 1, (size,), generator=random).double() / levels
    wrong = torch.rand(size, generator=random) < 0.15 + 0.6 * failure
    return failure, wrong


@pytest.mark.parametrize("levels", [1, 7, 10**6])
def test_against_scikit_learn(levels: int) -> None:
    failure, wrong = _case(levels)
    assert auroc(failure, wrong) == pytest.approx(roc_auc_score(wrong, failure), abs=1e-12)
    assert brier_score(failure, wrong) == pytest.approx(brier_score_loss(wrong, failure), abs=1e-12)
    fpr, tpr, _ = roc_curve(wrong, failure, drop_intermediate=False)
    for recall in (0.0, 0.5, 0.95, 1.0):
        assert false_positive_rate(failure, wrong, recall=recall) == pytest.approx(fpr[tpr >= recall][0], abs=1e-12)


def test_aurc_is_the_mean_over_all_orders_of_ties() -> None:
    failure = torch.tensor([0.2, 0.2, 0.2, 0.5, 0.9, 0.9])
    wrong = torch.tensor([True, False, False, True, False, True])
    areas = []
    for order in itertools.permutations(range(6)):
        scores = failure[list(order)]
        if bool((scores.diff() >= 0).all()):
            errors = wrong[list(order)].double().cumsum(0)
            areas.append(float((errors / torch.arange(1, 7)).mean()))
    assert len(areas) == 12
    assert area_under_risk_coverage(failure, wrong) == pytest.approx(sum(areas) / len(areas))


def test_aurc_of_a_perfect_and_of_a_useless_predictor() -> None:
    wrong = torch.tensor([False] * 6 + [True] * 2)
    perfect = torch.where(wrong, 0.9, 0.1)
    assert area_under_risk_coverage(perfect, wrong) == pytest.approx((1 / 7 + 2 / 8) / 8)
    assert area_under_risk_coverage(torch.full((8,), 0.5), wrong) == pytest.approx(2 / 8)


@pytest.mark.parametrize("levels", [1, 7, 10**6])
def test_augrc_is_the_formula_of_its_paper(levels: int) -> None:
    failure, wrong = _case(levels)
    error = float(wrong.double().mean())
    expected = (1 - roc_auc_score(wrong, failure)) * error * (1 - error) + error**2 / 2
    assert area_under_generalised_risk_coverage(failure, wrong) == pytest.approx(expected, abs=1e-12)


def test_augrc_is_the_mean_over_all_orders_of_ties() -> None:
    failure = torch.tensor([0.2, 0.2, 0.2, 0.5, 0.9, 0.9])
    wrong = torch.tensor([True, False, False, True, False, True])
    areas = []
    for order in itertools.permutations(range(6)):
        if bool((failure[list(order)].diff() >= 0).all()):
            answered_wrongly = [0, *wrong[list(order)].long().cumsum(0).tolist()]
            areas.append(np.trapezoid(np.array(answered_wrongly) / 6, dx=1 / 6))
    assert len(areas) == 12
    assert area_under_generalised_risk_coverage(failure, wrong) == pytest.approx(np.mean(areas))


def test_augrc_of_a_perfect_and_of_a_useless_predictor() -> None:
    wrong = torch.tensor([False] * 6 + [True] * 2)
    perfect = torch.where(wrong, 0.9, 0.1)
    assert area_under_generalised_risk_coverage(perfect, wrong) == pytest.approx((2 / 8) ** 2 / 2)
    assert area_under_generalised_risk_coverage(torch.full((8,), 0.5), wrong) == pytest.approx(2 / 8 / 2)


@pytest.mark.parametrize("levels", [1, 7, 10**6])
def test_coverage_at_risk_against_all_thresholds(levels: int) -> None:
    failure, wrong = _case(levels)
    for risk in (0.0, 0.05, 0.2, 0.3, 0.45, 1.0):
        expected = 0.0
        for threshold in failure.tolist():
            passed = failure <= threshold
            if int((passed & wrong).sum()) / int(passed.sum()) <= risk:
                expected = max(expected, int(passed.sum()) / len(wrong))
        assert coverage_at_risk(failure, wrong, risk=risk) == expected


def test_coverage_at_risk_counted_by_hand() -> None:
    failure = torch.tensor([0.1, 0.2, 0.2, 0.3, 0.4])
    wrong = torch.tensor([False, True, False, False, True])
    # Risks at the four thresholds: 0 of 1, 1 of 3, 1 of 4, 2 of 5. The second is passed over: risk may fall again.
    assert coverage_at_risk(failure, wrong, risk=0.0) == 1 / 5
    assert coverage_at_risk(failure, wrong, risk=0.2) == 1 / 5
    assert coverage_at_risk(failure, wrong, risk=0.25) == 4 / 5
    assert coverage_at_risk(failure, wrong, risk=0.4) == 1
    assert coverage_at_risk(failure, torch.ones(5).bool(), risk=0.9) == 0


def test_the_order_of_inputs_does_not_matter() -> None:
    failure, wrong = _case(7)
    order = torch.randperm(len(wrong), generator=generator(0, "order"))
    for risk in (0.1, 0.3):
        again = coverage_at_risk(failure[order], wrong[order], risk=risk)
        assert again == coverage_at_risk(failure, wrong, risk=risk)
    again = area_under_generalised_risk_coverage(failure[order], wrong[order])
    assert again == area_under_generalised_risk_coverage(failure, wrong)


def test_a_risk_that_is_met_exactly_counts() -> None:
    for errors in range(1, 101):
        wrong = torch.arange(100) >= 100 - errors
        assert coverage_at_risk(torch.full((100,), 0.5), wrong, risk=errors / 100) == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, 95.0, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    failure, wrong = _case(7)
    with pytest.raises(ConfigurationError, match=r"risk must be in \[0, 1\]"):
        coverage_at_risk(failure, wrong, risk=share)
    with pytest.raises(ConfigurationError, match=r"recall must be in \[0, 1\]"):
        false_positive_rate(failure, wrong, recall=share)


def test_searching_for_right_answers_is_the_other_rate() -> None:
    failure, wrong = _case(10**6)
    fpr, tpr, _ = roc_curve(~wrong, -failure, drop_intermediate=False)
    assert false_positive_rate(1 - failure, ~wrong) == pytest.approx(fpr[tpr >= 0.95][0], abs=1e-12)
    assert false_positive_rate(1 - failure, ~wrong) != false_positive_rate(failure, wrong)


def test_risk_at_full_coverage_is_the_error_rate() -> None:
    failure, wrong = _case(7)
    curve = risk_coverage_curve(failure, wrong)
    assert float(curve.coverage[0]) == 1 / 400
    assert float(curve.coverage[-1]) == 1
    assert float(curve.risk[-1]) == pytest.approx(float(wrong.double().mean()))
    assert len(curve.risk) == 400


def test_calibration_error_bin_by_bin() -> None:
    failure, wrong = _case(10**6)
    p, y = failure.numpy(), wrong.numpy().astype(float)
    expected = 0.0
    for low in range(15):
        inside = (p >= low / 15) & ((p < (low + 1) / 15) | (low == 14))
        if inside.any():
            expected += inside.mean() * abs(p[inside].mean() - y[inside].mean())
    assert expected_calibration_error(failure, wrong) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.01


def test_bins_leave_out_the_empty_and_hold_both_ends() -> None:
    failure = torch.tensor([0.0, 0.05, 0.5, 1.0, 1.0])
    bins = reliability_bins(failure, torch.tensor([False, True, True, True, False]), bins=10)
    np.testing.assert_allclose(bins.low.numpy(), [0.0, 0.5, 0.9])
    assert bins.count.tolist() == [2, 1, 2]
    np.testing.assert_allclose(bins.predicted.numpy(), [0.025, 0.5, 1.0], atol=1e-8)
    assert bins.observed.tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize("wrong", [True, False])
def test_one_class_only(wrong: bool) -> None:
    measures = measure_failure_prediction(torch.tensor([0.25, 0.5, 0.75]), torch.full((3,), wrong))
    assert measures.auroc is None
    assert measures.fpr_at_95_tpr is None
    assert measures.error_rate == measures.aurc == float(wrong)
    assert measures.ece == pytest.approx(0.5)
    assert area_under_generalised_risk_coverage(torch.tensor([0.25, 0.5]), torch.full((2,), wrong)) == wrong / 2
    assert coverage_at_risk(torch.tensor([0.25, 0.5]), torch.full((2,), wrong), risk=0.5) == float(not wrong)
    assert json.loads(json.dumps(measures.as_dict(), allow_nan=False))["auroc"] is None


def test_all_measures_are_those_of_the_functions() -> None:
    failure, wrong = _case(50)
    measures = measure_failure_prediction(failure, wrong)
    assert measures.inputs == 400
    assert measures.auroc == auroc(failure, wrong)
    assert measures.aurc == area_under_risk_coverage(failure, wrong)
    assert measures.fpr_at_95_tpr == false_positive_rate(failure, wrong, recall=0.95)
    assert measures.ece == expected_calibration_error(failure, wrong, bins=15)
    assert measures.brier == brier_score(failure, wrong)


@pytest.mark.parametrize(
    ("failure", "wrong", "message"),
    [
        (torch.zeros(0), torch.zeros(0, dtype=torch.bool), "B >= 1"),
        (torch.zeros(2), torch.zeros(2), "wrong must be bool"),
        (torch.zeros(3), torch.zeros(2, dtype=torch.bool), r"must be \(2,\) like wrong, got \(3,\)"),
        (torch.tensor([0.5, torch.nan]), torch.zeros(2, dtype=torch.bool), r"in \[0, 1\], got nan and 0 more"),
        (torch.tensor([1.5, -1.0]), torch.zeros(2, dtype=torch.bool), r"in \[0, 1\], got 1.5 and 1 more"),
    ],
)
def test_wrong_input(failure: Tensor, wrong: Tensor, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        measure_failure_prediction(failure, wrong)
    with pytest.raises(DataFormatError, match=message):
        auroc(failure, wrong)
    with pytest.raises(DataFormatError, match=message):
        area_under_generalised_risk_coverage(failure, wrong)
    with pytest.raises(DataFormatError, match=message):
        coverage_at_risk(failure, wrong, risk=0.5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([30, 5, 6, 9, 25], [30, 20, 25]),
        ([30, 5, 6], [41]),  # what is left joins the last one
        ([5, 30, 20, 3], [35, 23]),
        ([4, 3], [7]),
        ([20], [20]),
    ],
    ids=str,
)
def test_merged_bins_hold_enough_and_lose_nothing(counts: list[int], expected: list[int]) -> None:
    random = generator(0, "merged bins", str(counts))
    probability = torch.cat(
        [(i + torch.rand(n, generator=random, dtype=torch.float64)) / 15 for i, n in enumerate(counts)]
    )
    wrong = torch.rand(len(probability), generator=random) < probability
    bins = merged_bins(reliability_bins(probability, wrong), least=20)
    assert bins.count.tolist() == expected
    ends = bins.count.cumsum(0).tolist()
    for start, end, predicted, observed in zip([0, *ends], ends, bins.predicted, bins.observed, strict=False):
        assert float(predicted) == pytest.approx(float(probability[start:end].mean()))
        assert float(observed) == pytest.approx(float(wrong[start:end].double().mean()))
    assert float(bins.low[0]) == 0.0
