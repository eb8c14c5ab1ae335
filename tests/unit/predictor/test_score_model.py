from typing import get_args

import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from deepfailguard.predictor.score_calibration import Calibration, Plain, Steps, calibrator_from, fit_calibrator
from deepfailguard.predictor.score_model import Linear, Regression, ScoreModel, fit_score_model
from deepfailguard.predictor.trees import Trees
from deepfailguard.predictor.venn_abers import VennAbers

CALIBRATIONS = get_args(Calibration)


def _scores(answers: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(answers, 2, dtype=torch.float64, generator=random) * torch.tensor([1.0, 50.0])
    wrong = torch.rand(answers, generator=random) < torch.sigmoid(scores[:, 0] - scores[:, 1] / 50 - 1)
    return scores, wrong


def test_it_is_scikit_learns_regression_smoothed() -> None:
    scores, wrong = _scores()
    standard = ((scores - scores.mean(0)) / scores.std(0, correction=0)).numpy()
    expected = LogisticRegression(C=0.5).fit(standard, wrong.numpy()).predict_proba(standard)[:, 1]
    said = fit_score_model(scores, wrong, "logistic", "none", penalty=2.0)(scores)
    torch.testing.assert_close(said, (400 * torch.from_numpy(expected) + 1) / 402, rtol=0, atol=1e-4)


def test_isotonic_is_scikit_learns() -> None:
    scores, wrong = _scores()
    odds = scores[:, 0]
    oracle = IsotonicRegression(out_of_bounds="clip").fit(odds.numpy(), wrong.double().numpy())
    asked = torch.linspace(float(odds.min()) - 1, float(odds.max()) + 1, 77, dtype=torch.float64)
    expected = torch.from_numpy(oracle.predict(asked.numpy()))
    torch.testing.assert_close(fit_calibrator("isotonic", odds, wrong)(asked), (400 * expected + 1) / 402)


@pytest.mark.parametrize("model", get_args(Regression))
def test_a_calibration_learns_from_answers_that_the_model_did_not_see(model: Regression) -> None:
    """Scores that say nothing, but so many that a regression can tell the answers that it saw apart."""
    random = torch.Generator().manual_seed(0)
    scores, wrong = torch.randn(120, 40, generator=random).double(), torch.rand(120, generator=random) < 0.5
    asked = torch.randn(1000, 40, generator=random).double()

    def sureness(calibration: Calibration) -> float:
        said = fit_score_model(scores, wrong, model, calibration, penalty=1e-3)(asked)
        return float((said - 0.5).abs().mean())

    assert model == "boosting" or sureness("none") > 0.3
    assert sureness("isotonic") < 0.15
    assert sureness("venn_abers") < 0.15


@pytest.mark.parametrize("model", get_args(Regression))
@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_state(model: Regression, calibration: Calibration) -> None:
    scores, wrong = _scores()
    fitted = fit_score_model(scores, wrong, model, calibration, penalty=1.0)
    assert isinstance(fitted.regression, {"logistic": Linear, "boosting": Trees}[model])
    assert isinstance(fitted.calibrator, {"none": Plain, "isotonic": Steps, "venn_abers": VennAbers}[calibration])
    state = fitted.state()
    assert torch.equal(ScoreModel.from_state(state)(scores), fitted(scores))
    for lost in state:
        with pytest.raises(KeyError):
            ScoreModel.from_state({name: tensor for name, tensor in state.items() if name != lost})
    with pytest.raises(KeyError, match="plain or isotonic or venn_abers"):
        calibrator_from({})


@pytest.mark.parametrize("model", get_args(Regression))
@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("answers", [2, 3, 12, 200])
@pytest.mark.parametrize("odd", [1, 2, 4])
def test_few_answers_of_one_kind(model: Regression, calibration: Calibration, answers: int, odd: int) -> None:
    """Fewer than folds: hardly anything can be held out, or nothing at all."""
    scores, _ = _scores(answers)
    scores[::3, 0] = torch.nan
    for wrong in (torch.arange(answers) < odd, torch.arange(answers) >= odd):
        fitted = fit_score_model(scores, wrong, model, calibration, penalty=1.0)
        said = fitted(torch.cat([scores, torch.full((1, 2), torch.nan, dtype=torch.float64)]))
        low = 1 / (answers + 2)
        assert ((said >= low - 1e-12) & (said <= 1 - low + 1e-12)).all()
        if min(int(wrong.sum()), int((~wrong).sum())) == 1:
            assert isinstance(fitted.calibrator, Plain)
            assert len(said.unique()) == 1 or model == "logistic"


@pytest.mark.parametrize("model", get_args(Regression))
@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_without_any_score_it_is_about_the_share_of_wrong_answers(model: Regression, calibration: Calibration) -> None:
    scores = torch.full((300, 2), torch.nan, dtype=torch.float64)
    said = fit_score_model(scores, torch.arange(300) % 5 == 0, model, calibration, penalty=1.0)(scores[:7])
    torch.testing.assert_close(said, torch.full((7,), 0.2, dtype=torch.float64), rtol=0, atol=0.02)


def test_outside_the_range_of_calibration_counts_as_its_end() -> None:
    scores, wrong = _scores()
    model = fit_score_model(scores, wrong, "logistic", "none", penalty=1.0)
    ends = torch.stack([scores.amin(0), scores.amax(0)])
    torch.testing.assert_close(model(ends), model(torch.stack([scores.amin(0) - 100, scores.amax(0) + 1e9])))


def test_that_a_score_is_missing_counts() -> None:
    scores, wrong = _scores(1000)
    scores[:, 1] = torch.nan
    scores[:, 0] = torch.where(wrong & (torch.arange(1000) % 2 == 0), torch.nan, 0.0)  # never missing of right answers
    model = fit_score_model(scores, wrong, "logistic", "none", penalty=1.0)
    said = model(torch.tensor([[torch.nan, torch.nan], [0.0, torch.nan]], dtype=torch.float64))
    assert float(said[0]) > 0.9
    assert float(said[1]) < float(wrong.double().mean())


def test_a_score_that_calibration_never_had_says_nothing() -> None:
    scores, wrong = _scores()
    scores[:, 1] = torch.nan
    model = fit_score_model(scores, wrong, "logistic", "none", penalty=1.0)
    asked = torch.tensor([[0.3, torch.nan], [0.3, 5.0], [0.3, -1e6]], dtype=torch.float64)
    assert len(model(asked).unique()) <= 2  # known or not; what it is does not matter
    torch.testing.assert_close(model(asked)[1], model(asked)[2])


@pytest.mark.parametrize("model", get_args(Regression))
@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("answers", [0, 1, 25])
def test_without_wrong_or_right_answers_it_is_the_smoothed_error(
    model: Regression, calibration: Calibration, answers: int
) -> None:
    scores, _ = _scores(answers)
    for wrong in (False, True):
        fitted = fit_score_model(scores, torch.full((answers,), wrong), model, calibration, penalty=1.0)
        expected = torch.full((3,), (answers * wrong + 1) / (answers + 2), dtype=torch.float64)
        torch.testing.assert_close(fitted(torch.tensor([[0.0, 1.0], [9.0, 9.0], [torch.nan] * 2]).double()), expected)


@pytest.mark.parametrize("model", get_args(Regression))
@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_constant_scores(model: Regression, calibration: Calibration) -> None:
    wrong = torch.arange(100) < 20
    fitted = fit_score_model(torch.ones(100, 1, dtype=torch.float64), wrong, model, calibration, penalty=1.0)
    said = fitted(torch.tensor([[1.0], [7.0], [torch.nan]], dtype=torch.float64))
    torch.testing.assert_close(said, torch.full((3,), 21 / 102, dtype=torch.float64), rtol=0, atol=0.011)
