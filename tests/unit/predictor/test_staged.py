import pytest
import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.staged import StagedPredictor, choose_thresholds
from deepfailguard.seeding import generator
from tests.unit.predictor.simulated_logits import simulated

CLASSES = 4


def _told(inputs: int, purpose: object, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Class probabilities of three stages, each of which knows one version more, and the truth.

    At sharpness 1 they are the true posteriors of all that was seen; below 1 they are too unsure.
    """
    random = generator(0, "stages", purpose)
    strength = torch.tensor([2.8, 2.0, 2.0], dtype=torch.float64)[:, None]
    truth = torch.randint(CLASSES, (inputs,), generator=random)
    seen = torch.randn(inputs, 3, CLASSES, generator=random, dtype=torch.float64)
    seen += strength * torch.nn.functional.one_hot(truth, CLASSES)[:, None]
    return (sharpness * (seen * strength).cumsum(1)).softmax(2), truth


def _asked_and_lost(told: Tensor, truth: Tensor, thresholds: Tensor) -> tuple[float, float]:
    """Versions asked on average, and accuracy of all versions less that of the cascade."""
    stage = (1 - told.amax(2) <= thresholds).int().argmax(1, keepdim=True)
    right = (told.argmax(2) == truth[:, None]).double()
    return float(stage.double().mean()) + 1, float((right[:, -1:] - right.gather(1, stage)).mean())


def test_the_fewest_versions_are_asked_at_the_wanted_accuracy() -> None:
    told, truth = _told(20_000, "many")
    asked_before = 3.0
    for tolerance in (0.001, 0.01, 0.03):
        thresholds, expected = choose_thresholds(told, truth, tolerance)
        asked, lost = _asked_and_lost(told, truth, thresholds)
        assert asked == pytest.approx(expected)
        assert lost <= tolerance
        assert asked < asked_before
        asked_before = asked
    assert asked_before < 1.25


@pytest.mark.parametrize(("inputs", "sharpness"), [(200, 0.8), (400, 1.0), (2000, 1.0), (2000, 0.8)])
def test_fresh_inputs_lose_no_more_than_the_tolerance(inputs: int, sharpness: float) -> None:
    """The thresholds are the best ones for the calibration inputs, which must not make them too bold elsewhere."""
    fresh, truth = _told(20_000, "fresh", sharpness)
    draws = [choose_thresholds(*_told(inputs, draw, sharpness), 0.005)[0] for draw in range(12)]
    came = torch.tensor([_asked_and_lost(fresh, truth, thresholds) for thresholds in draws])
    asked, lost = came.mean(0).tolist()
    assert lost <= 0.005
    assert asked < 1.5


def test_a_fitted_cascade_loses_no_more_than_the_tolerance_on_fresh_inputs() -> None:
    strengths = (2.5, 2.0, 2.0)
    fresh, truth = simulated(10_000, strengths, purpose="fresh")
    lost, asked = [], []
    for draw in range(5):
        calibration = simulated(1500, strengths, purpose=f"calibration {draw}")
        predictor = StagedPredictor(tolerance=0.005, rehearse=0).fit(*calibration)
        assert predictor.thresholds_ is not None
        stages = enumerate(predictor.stages_, 1)
        told = [stage.class_probability(fresh.of_versions(list(range(count)))) for count, stage in stages]
        came = _asked_and_lost(torch.stack(told, 1), truth, predictor.thresholds_)
        asked.append(came[0])
        lost.append(came[1])
    assert sum(lost) / len(lost) <= 0.005
    assert max(asked) < 2


def test_a_stage_that_adds_nothing_is_never_waited_for() -> None:
    told, truth = _told(5000, "many")
    assert choose_thresholds(told[:, :1].repeat(1, 3, 1), truth, 0.0)[1] == 1.0


def test_what_came_counts_as_well_as_what_was_expected() -> None:
    """The stages are equally sure of different answers: none is expected to lose, but only the last one is right."""
    told = torch.tensor([[[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]], dtype=torch.float64).repeat(200, 1, 1)
    told = (told + told.new_tensor([1e-9, 0])) / (1 + 1e-9)
    assert choose_thresholds(told, torch.ones(200, dtype=torch.int64), 0.0)[1] == 3.0


def test_where_only_the_last_stage_is_sure_all_are_asked() -> None:
    told = torch.tensor([[[0.4, 0.6], [0.4, 0.6], [0.9, 0.1]]], dtype=torch.float64).repeat(200, 1, 1)
    assert choose_thresholds(told, torch.zeros(200, dtype=torch.int64), 0.0)[1] == 3.0


@pytest.mark.parametrize("inputs", [0, 1, 60])
def test_with_too_few_inputs_to_try_out_all_are_asked(inputs: int) -> None:
    thresholds, asked = choose_thresholds(*_told(inputs, "few"), 0.01)
    assert thresholds.tolist() == [-1.0, -1.0, 1.0]
    assert asked == 3.0


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="tolerance must be in"):
        StagedPredictor(tolerance=1.0)
    with pytest.raises(ConfigurationError, match="expects the state thresholds"):
        StagedPredictor().with_state({"surprise": torch.zeros(1)})


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    evidence, truth = simulated(120, (2.0, 2.0))
    predictor = StagedPredictor(rehearse=0).fit(evidence, truth)
    expected = predictor.failure_probability(evidence)
    other = StagedPredictor(rehearse=0).fit(*simulated(130, (1.0, 1.0), purpose="other")).state()
    with pytest.raises(ConfigurationError, match="expects the state"):
        predictor.with_state({name: tensor for name, tensor in other.items() if name != "stage1.familiar.bias"})
    assert torch.equal(predictor.failure_probability(evidence), expected)
