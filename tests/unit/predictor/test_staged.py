import pytest
import torch

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.staged import StagedPredictor, choose_thresholds
from deepfailguard.seeding import generator


def _stages(inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three stages whose failure probabilities are true: the second and third know more of the doubtful inputs."""
    random = generator(0, "stages", inputs)
    first = torch.rand(inputs, generator=random, dtype=torch.float64) ** 4
    failure = torch.stack([first, first * 0.5, first * 0.4], 1)
    draw = torch.rand(inputs, 1, generator=random, dtype=torch.float64)
    return failure, draw > failure


def test_the_fewest_versions_are_asked_at_the_wanted_accuracy() -> None:
    failure, right = _stages(20_000)
    full = float(right[:, -1].double().mean())
    asked_before = 3.0
    for tolerance in (0.0, 0.01, 0.03):
        thresholds, asked = choose_thresholds(failure, right, tolerance)
        stage = (failure <= thresholds).int().argmax(1)
        assert float(stage.double().mean()) + 1 == pytest.approx(asked)
        assert float(right.gather(1, stage[:, None]).double().mean()) >= full - tolerance
        assert asked < asked_before
        asked_before = asked
    assert asked_before < 1.5


def test_a_stage_that_adds_nothing_is_never_waited_for() -> None:
    failure, right = _stages(5000)
    failure[:, 1], right[:, 1] = failure[:, 0], right[:, 0]
    failure[:, 2], right[:, 2] = failure[:, 0], right[:, 0]
    assert choose_thresholds(failure, right, 0.0)[1] == 1.0


def test_where_only_the_last_stage_is_ever_right_all_are_asked() -> None:
    failure = torch.tensor([[0.9, 0.9, 0.1]], dtype=torch.float64).repeat(50, 1)
    right = torch.tensor([[False, False, True]]).repeat(50, 1)
    assert choose_thresholds(failure, right, 0.0)[1] == 3.0


def test_without_inputs_to_try_out_all_are_asked() -> None:
    thresholds, asked = choose_thresholds(torch.ones(0, 2), torch.zeros(0, 2, dtype=torch.bool), 0.0)
    assert thresholds.tolist() == [-1.0, 1.0]
    assert asked == 2.0


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="tolerance must be in"):
        StagedPredictor(tolerance=1.0)
    with pytest.raises(ConfigurationError, match="expects the state thresholds"):
        StagedPredictor().with_state({"surprise": torch.zeros(1)})
