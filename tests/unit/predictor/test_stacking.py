import pytest
import torch
from sklearn.linear_model import LogisticRegression

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.predictor.stacking import StackingPredictor, choose_penalty, fit_regression
from deepfailguard.types import Evidence
from tests.unit.predictor.simulated_logits import evidence_of, simulated


def _accuracy(probability: torch.Tensor, truth: torch.Tensor) -> float:
    return float((probability.argmax(1) == truth).double().mean())


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_it_is_scikit_learns_regression_where_every_class_occurs(classes: int) -> None:
    columns = torch.randn(200, 2 * classes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(200) % classes
    strength = 1.0 if classes == 2 else 0.5  # of two classes scikit-learn has the slopes' difference alone
    model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-9).fit(columns.numpy(), truth.numpy())
    said = fit_regression(columns, truth, classes, penalty=2.0).log_probability(columns).exp()
    torch.testing.assert_close(said, torch.from_numpy(model.predict_proba(columns.numpy())), rtol=0, atol=1e-3)


def test_it_learns_who_mistakes_what_for_what() -> None:
    """A version that always takes class 1 for 2 and the reverse is as good as any once that is known."""

    def swapped(purpose: str) -> tuple[Evidence, torch.Tensor]:
        evidence, truth = simulated(2000, (3.0, 1.0), purpose=purpose)
        assert evidence.logits is not None
        logits = evidence.logits.clone()
        logits[:, 0] = logits[:, 0, [0, 2, 1, 3]]
        return evidence_of(logits), truth

    test, answer = swapped("test")
    stacked = StackingPredictor(penalty=1.0).fit(*swapped("calibration")).class_probability(test)
    voted = SoftVotePredictor().fit(*swapped("calibration")).class_probability(test)
    assert _accuracy(stacked, answer) > _accuracy(voted, answer) + 0.2


def test_cross_validation_wants_a_stronger_penalty_for_noise() -> None:
    noise = torch.randn(90, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    truth = torch.arange(90) % 5
    signal = noise.clone()
    signal[torch.arange(90), truth] += 6
    assert choose_penalty(noise, truth, 5) == 100.0
    assert choose_penalty(signal, truth, 5) < 100.0


def test_few_inputs_choose_nothing() -> None:
    evidence, truth = simulated(29, (1.0, 2.0))
    assert StackingPredictor().fit(evidence, truth).penalty_ == 10.0


def test_a_class_that_calibration_does_not_show_is_believed_where_all_are_sure_of_it() -> None:
    evidence, truth = simulated(400, (4.0, 4.0))
    known = truth < 3
    predictor = StackingPredictor(penalty=1.0).fit(evidence[known], truth[known])
    said = predictor.class_probability(evidence)
    assert _accuracy(said[known], truth[known]) > 0.95
    assert said[~known, 3].mean() > 5 * said[known, 3].mean()
    sure = evidence_of(torch.tensor([0.0, 0.0, 0.0, 40.0]).repeat(1, 2, 1))
    assert int(predictor.class_probability(sure).argmax(1)) == 3


def test_one_class_only() -> None:
    evidence, _ = simulated(40, (2.0, 2.0))
    predictor = StackingPredictor().fit(evidence, torch.full((40,), 2))
    assert (predictor.class_probability(evidence).argmax(1) == 2).all()
    alone = evidence_of(torch.randn(40, 2, 1))
    one = StackingPredictor().fit(alone, torch.zeros(40, dtype=torch.int64))
    torch.testing.assert_close(one.class_probability(alone), torch.ones(40, 1, dtype=torch.float64))


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_penalty(penalty: float) -> None:
    with pytest.raises(ConfigurationError, match="penalty must be > 0 and finite"):
        StackingPredictor(penalty)
