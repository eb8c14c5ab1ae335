from dataclasses import replace

import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from deepfailguard.predictor.score_model import Calibrator, fit_score_model


def _scores(answers: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(answers, 2, dtype=torch.float64, generator=random) * torch.tensor([1.0, 50.0])
    wrong = torch.rand(answers, generator=random) < torch.sigmoid(scores[:, 0] - scores[:, 1] / 50 - 1)
    return scores, wrong


def test_it_is_scikit_learns_regression_smoothed() -> None:
    scores, wrong = _scores()
    standard = ((scores - scores.mean(0)) / scores.std(0, correction=0)).numpy()
    expected = LogisticRegression(C=0.5).fit(standard, wrong.numpy()).predict_proba(standard)[:, 1]
    said = fit_score_model(scores, wrong, "logistic", penalty=2.0)(scores)
    torch.testing.assert_close(said, (400 * torch.from_numpy(expected) + 1) / 402, rtol=0, atol=1e-4)


def test_isotonic_is_scikit_learns() -> None:
    scores, wrong = _scores()
    model = fit_score_model(scores, wrong, "isotonic", penalty=1.0)
    odds = model.log_odds(scores)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(odds.numpy(), wrong.double().numpy())
    asked = torch.linspace(float(odds.min()) - 1, float(odds.max()) + 1, 77, dtype=torch.float64)
    line = replace(model, **_identity())
    expected = torch.from_numpy(oracle.predict(asked.numpy()))
    torch.testing.assert_close(line(asked[:, None]), (400 * expected + 1) / 402)


def _identity() -> dict[str, torch.Tensor]:
    """Settings with which the log odds are the one score."""
    one, far = torch.ones(1, dtype=torch.float64), torch.tensor([1e9], dtype=torch.float64)
    flat = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return {"low": -far, "high": far, "mean": 0 * one, "scale": one, "slope": flat, "offset": 0 * one[0]}


def test_outside_the_range_of_calibration_counts_as_its_end() -> None:
    scores, wrong = _scores()
    model = fit_score_model(scores, wrong, "logistic", penalty=1.0)
    ends = torch.stack([scores.amin(0), scores.amax(0)])
    torch.testing.assert_close(model(ends), model(torch.stack([scores.amin(0) - 100, scores.amax(0) + 1e9])))


def test_that_a_score_is_missing_counts() -> None:
    scores, wrong = _scores(1000)
    scores[:, 1] = torch.nan
    scores[:, 0] = torch.where(wrong & (torch.arange(1000) % 2 == 0), torch.nan, 0.0)  # never missing of right answers
    model = fit_score_model(scores, wrong, "logistic", penalty=1.0)
    said = model(torch.tensor([[torch.nan, torch.nan], [0.0, torch.nan]], dtype=torch.float64))
    assert float(said[0]) > 0.9
    assert float(said[1]) < float(wrong.double().mean())


def test_a_score_that_calibration_never_had_says_nothing() -> None:
    scores, wrong = _scores()
    scores[:, 1] = torch.nan
    model = fit_score_model(scores, wrong, "logistic", penalty=1.0)
    asked = torch.tensor([[0.3, torch.nan], [0.3, 5.0], [0.3, -1e6]], dtype=torch.float64)
    assert len(model(asked).unique()) <= 2  # known or not; what it is does not matter
    torch.testing.assert_close(model(asked)[1], model(asked)[2])


@pytest.mark.parametrize("kind", ["logistic", "isotonic"])
@pytest.mark.parametrize("answers", [0, 1, 25])
def test_without_wrong_or_right_answers_it_is_the_smoothed_error(kind: Calibrator, answers: int) -> None:
    scores, _ = _scores(answers)
    for wrong in (False, True):
        model = fit_score_model(scores, torch.full((answers,), wrong), kind, penalty=1.0)
        expected = torch.full((3,), (answers * wrong + 1) / (answers + 2), dtype=torch.float64)
        torch.testing.assert_close(model(torch.tensor([[0.0, 1.0], [9.0, 9.0], [torch.nan] * 2]).double()), expected)


def test_constant_scores() -> None:
    wrong = torch.arange(100) < 20
    for kind in ("logistic", "isotonic"):
        model = fit_score_model(torch.ones(100, 1, dtype=torch.float64), wrong, kind, penalty=1.0)  # type: ignore[arg-type]
        said = model(torch.tensor([[1.0], [7.0], [torch.nan]], dtype=torch.float64))
        torch.testing.assert_close(said, torch.full((3,), 21 / 102, dtype=torch.float64), rtol=0, atol=1e-3)
