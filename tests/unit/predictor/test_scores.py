from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.answer_scores import SCORES
from deepfailguard.predictor.score_calibration import Calibration
from deepfailguard.predictor.score_model import Regression
from deepfailguard.predictor.scores import ScoresPredictor
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence
from tests.unit.predictor.simulated_logits import simulated

STRENGTHS = (1.5, 2.0, 3.0)


def _with_distances(evidence: Evidence, truth: Tensor) -> Evidence:
    """Distances whose square roots are normal, and larger and more often found of right answers; stability likewise."""
    random = torch.Generator().manual_seed(len(truth))
    right = evidence.labels == truth[:, None]
    size = (torch.randn(right.shape, generator=random) + torch.where(right, 5.0, 4.0)).square()
    found = torch.rand(right.shape, generator=random) < torch.where(right, 0.95, 0.7)
    stable = (torch.randn(right.shape, generator=random) + torch.where(right, 1.0, 0.0)).sigmoid()
    return replace(evidence, distance=size, found=found, stability=stable)


@pytest.mark.parametrize(
    ("evidence", "model"),
    [
        (("confidence",), "logistic"),
        (("confidence", "margin", "entropy", "energy"), "logistic"),
        (SCORES, "logistic"),
        (("confidence", "distance"), "boosting"),
    ],
)
@pytest.mark.parametrize("calibration", get_args(Calibration))
def test_it_is_calibrated(evidence: tuple[str, ...], model: Regression, calibration: Calibration) -> None:
    (known, truth), (test, answer) = simulated(4000, STRENGTHS), simulated(20_000, STRENGTHS, purpose="test")
    if model == "boosting":  # takes longer to learn
        known, test = known.of_versions([1]), test.of_versions([1])
    predictor = ScoresPredictor(evidence, model, calibration)  # type: ignore[arg-type]
    predictor.fit(_with_distances(known, truth), truth)
    failure = predictor.failure_probability(_with_distances(test, answer))
    wrong = test.labels != answer[:, None]
    for column in range(test.versions):
        assert _calibration_error(failure[:, column], wrong[:, column]) < 0.02


def _calibration_error(failure: Tensor, wrong: Tensor) -> float:
    """Mean distance of predicted from observed failures over 15 bins of equal width, weighted by their counts."""
    index = (failure * 15).long().clamp_max(14)
    gaps = torch.bincount(index, failure - wrong.double(), minlength=15)
    return float(gaps.abs().sum() / len(failure))


def test_it_comes_to_the_true_posterior() -> None:
    calibration, truth = simulated(6000, STRENGTHS)
    test, _ = simulated(500, STRENGTHS, purpose="test")
    assert test.logits is not None
    failure = ScoresPredictor(("confidence",)).fit(calibration, truth).failure_probability(test)
    exact = 1 - test.logits.double().softmax(2).amax(2)
    assert float((failure - exact).abs().mean()) < 0.02


def test_boosting_sees_what_scores_say_together() -> None:
    """A version that is wrong where it is sure of a near input, or unsure of a far one."""

    def crossed(inputs: int, purpose: str) -> tuple[Evidence, Tensor]:
        random = generator(0, "crossed", purpose)
        sure, far = (torch.rand(inputs, 1, generator=random) < 0.5 for _ in range(2))
        logits = torch.cat([torch.where(sure, 4.0, 1.0), torch.zeros(inputs, 1)], 1)
        logits += torch.rand(inputs, 2, generator=random)
        wrong = torch.rand(inputs, 1, generator=random) < torch.where(sure != far, 0.4, 0.1)
        found = torch.ones_like(far)
        evidence = Evidence(logits.argmax(1)[:, None], torch.where(far, 9.0, 1.0), found, logits[:, None])
        return evidence, torch.where(wrong, 1 - evidence.labels, evidence.labels).squeeze(1)

    test, answer = crossed(2000, "test")
    right = test.labels.squeeze(1) == answer

    def told_apart(model: Regression) -> float:
        predictor = ScoresPredictor(("confidence", "distance"), model).fit(*crossed(1500, "calibration"))
        failure = predictor.failure_probability(test).squeeze(1)
        apart = failure[~right][:, None] - failure[right]
        return float((apart > 0).double().mean() + (apart == 0).double().mean() / 2)

    assert told_apart("boosting") > 0.66  # 0.70 is the most
    assert told_apart("logistic") < 0.6


def test_features_help_a_version_whose_last_layer_is_spoilt() -> None:
    """Its logits are noise, its features are as good as ever."""

    def spoilt(inputs: int, purpose: str) -> tuple[Evidence, Tensor]:
        evidence, truth = simulated(inputs, (2.0,), purpose=purpose)
        assert evidence.logits is not None
        logits = torch.randn(evidence.logits.shape, generator=torch.Generator().manual_seed(inputs))
        return replace(evidence, logits=logits, labels=logits.argmax(2)), truth

    test, answer = spoilt(1000, "test")
    right = (test.labels == answer[:, None]).squeeze(1)

    def told_apart(predictor: ScoresPredictor) -> float:
        failure = predictor.fit(*spoilt(1500, "calibration")).failure_probability(test).squeeze(1)
        return float((failure[~right][:, None] > failure[right]).double().mean())

    assert told_apart(ScoresPredictor(("confidence", "second_opinion"))) > 0.85
    assert told_apart(ScoresPredictor(("confidence",))) < 0.6


def test_typicality_is_learned_from_heads_that_did_not_see_the_input() -> None:
    """With as many features as inputs, a head finds its own inputs close to their class means and no others."""
    random = torch.Generator().manual_seed(0)
    evidence, truth = simulated(120, (2.0,))
    test, _ = simulated(2000, (2.0,), purpose="test")
    wide = replace(evidence, features=(torch.randn(120, 100, generator=random),))
    other = replace(test, features=(torch.randn(2000, 100, generator=random),))
    predictor = ScoresPredictor(("second_opinion",)).fit(wide, truth)
    failure = predictor.failure_probability(other)
    error = float((evidence.labels != truth[:, None]).double().mean())
    assert abs(float(failure.mean()) - error) < 0.05  # the features say nothing, and it knows


def test_needs() -> None:
    assert ScoresPredictor(("gap",)).needs == {"logits"}
    assert ScoresPredictor(("gap", "distance")).needs == {"logits", "distances"}
    assert ScoresPredictor(("typicality", "gap")).needs == {"logits", "features"}
    assert ScoresPredictor(("confidence", "stability")).needs == {"logits", "stability"}


def test_never_wrong_and_never_answered() -> None:
    evidence, truth = simulated(60, (2.0, 2.0))
    evidence.labels[:, 0] = truth
    evidence.labels[:, 1] = -1
    predictor = ScoresPredictor().fit(evidence, truth)
    test, _ = simulated(20, (2.0, 2.0), purpose="test")
    expected = torch.tensor([1 / 62, 0.5], dtype=torch.float64).expand(20, 2)
    torch.testing.assert_close(predictor.failure_probability(test), expected)


def test_logits_that_are_not_finite_count_as_missing() -> None:
    evidence, truth = simulated(200, (2.0,))
    predictor = ScoresPredictor().fit(evidence, truth)
    assert evidence.logits is not None
    evidence.logits[3, 0, 1] = torch.nan
    assert 0 < float(predictor.failure_probability(evidence)[3]) < 1
    without = ScoresPredictor(("confidence", "energy")).fit(*simulated(200, (2.0,)))
    nothing_known = without.models_[0](torch.full((1, 2), torch.nan, dtype=torch.float64))
    assert_close(without.failure_probability(evidence)[3], nothing_known)


@pytest.mark.parametrize(
    "lost", ["sharpness", "model0.linear.slope", "model0.plain.answers", "voice0.factors", "voice1.head.mean"]
)
def test_a_damaged_state_is_refused_and_changes_nothing(lost: str) -> None:
    evidence, truth = simulated(80, (2.0, 2.0))
    predictor = ScoresPredictor().fit(evidence, truth)
    expected = predictor.failure_probability(evidence)
    other = ScoresPredictor().fit(*simulated(90, (1.0, 1.0), purpose="other")).state()
    assert lost in other
    with pytest.raises(ConfigurationError, match="expects the state"):
        predictor.with_state({name: tensor for name, tensor in other.items() if name != lost})
    assert torch.equal(predictor.failure_probability(evidence), expected)


@pytest.mark.parametrize("evidence", [(), ("luck",), ("gap", "gap")])
def test_wrong_evidence(evidence: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"evidence must be some of confidence, margin, .* each once, got"):
        ScoresPredictor(evidence)  # type: ignore[arg-type]


def test_wrong_settings() -> None:
    with pytest.raises(ConfigurationError, match="model must be one of logistic, boosting, got 'forest'"):
        ScoresPredictor(model="forest")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="calibration must be one of none, isotonic, venn_abers, got 'luck'"):
        ScoresPredictor(calibration="luck")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="penalty must be > 0 and finite, got 0"):
        ScoresPredictor(penalty=0)
