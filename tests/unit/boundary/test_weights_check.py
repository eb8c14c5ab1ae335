import copy
import gc
from pathlib import Path

import pytest
import torch
from torch import nn

from deepfailguard.boundary import weights_check
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.estimates.distilling import Teaching
from deepfailguard.boundary.estimates.learned import LearnedDistance
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.boundary.weights_check import WeightsCheck
from deepfailguard.errors import ConfigurationError, NotFittedError
from deepfailguard.identity import weights_fingerprint


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    calls: list[nn.Module] = []

    def counting(model: nn.Module) -> str:
        calls.append(model)
        return weights_fingerprint(model)

    monkeypatch.setattr(weights_check, "weights_fingerprint", counting)
    return calls


def test_a_model_is_hashed_once(model: nn.Module, hashed: list[nn.Module]) -> None:
    check = WeightsCheck(weights_fingerprint(model))
    for _ in range(3):
        check.check(model)
    assert len(hashed) == 1
    check.check(copy.deepcopy(model))
    assert len(hashed) == 2


def exchange_a_module(model: nn.Sequential) -> None:
    model[2] = nn.Tanh()


def flip_a_bit(model: nn.Sequential) -> None:
    model[0].weight.detach().view(torch.int32)[0, 0] ^= 1


def load_other_weights(model: nn.Sequential) -> None:
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})


def exchange_a_parameter(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.zeros(3, 3))


def exchange_the_data(model: nn.Sequential) -> None:
    model[0].weight.data = torch.zeros(3, 3)


def forget_a_running_mean(model: nn.Sequential) -> None:
    model[1].running_mean.add_(1.0)


@pytest.mark.parametrize(
    "change",
    [
        flip_a_bit,
        load_other_weights,
        exchange_a_parameter,
        exchange_the_data,
        forget_a_running_mean,
        exchange_a_module,
    ],
)
def test_a_change_after_the_check_is_noticed(model: nn.Sequential, change: object) -> None:
    check = WeightsCheck(weights_fingerprint(model))
    check.check(model)
    change(model)
    with pytest.raises(ConfigurationError, match="or use the fingerprint of this model"):
        check.check(model)


def test_another_model_in_the_place_of_a_dead_one_is_hashed(hashed: list[nn.Module]) -> None:
    fingerprint = weights_fingerprint(nn.Identity())
    check = WeightsCheck(fingerprint)
    for _ in range(3):
        check.check(nn.Identity())  # no tensors to tell them apart
        hashed_before = len(hashed)
        hashed.clear()
        gc.collect()
        assert hashed_before == 1


def test_inference_tensors_are_hashed_every_time(hashed: list[nn.Module]) -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    check = WeightsCheck(weights_fingerprint(model))
    check.check(model)
    check.check(model)
    assert len(hashed) == 2


def test_no_distance_is_told_after_a_module_without_weights_was_exchanged(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    teacher = BoundarySearch("fast")
    learned = LearnedDistance(teacher, Teaching(width=4, epochs=1)).fit(model, x)
    learned(model, x)
    with CachedDistance(teacher, tmp_path, weights_fingerprint(model)) as cached:
        cached(model, x)
        model[2] = nn.Tanh()
        with pytest.raises(ConfigurationError, match="the model's weights are"):
            cached(model, x)
    with pytest.raises(NotFittedError):
        learned(model, x)
