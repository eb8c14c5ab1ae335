"""What every distance estimator must do, run over each of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.errors import DataFormatError
from deepfailguard.identity import describe, digest, weights_fingerprint
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds

CLASSES = 4
Make = Callable[[nn.Module], DistanceEstimator]


SEARCHES = {"deepfool": FoolboxDeepFool(batch_size=4), "deepfool_fast": FoolboxDeepFool(batch_size=4, candidates=3)} | {
    f"{effort}_{norm}": BoundarySearch(effort, norm, batch_size=4)
    for effort in ("fast", "balanced", "tight")
    for norm in ("l2", "linf", "l1")
}


@pytest.fixture(params=[*SEARCHES, "cached", "cached_compacted"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Build the estimator for a model."""
    plain = SEARCHES.get(request.param, BoundarySearch(batch_size=4))

    def build(model: nn.Module) -> DistanceEstimator:
        if not request.param.startswith("cached"):
            return plain
        cached = CachedDistance(plain, tmp_path, weights_fingerprint(model), flush_every=1)
        if request.param == "cached_compacted":
            cached(model, images())
            cached.compact()
            cached = CachedDistance(plain, tmp_path, weights_fingerprint(model))
        return cached

    return build


@pytest.fixture
def model() -> nn.Module:
    """A network with everything that evaluation mode changes."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, CLASSES)
    )


def images(count: int = 10) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=generator(0, "contract"))


def test_records_have_the_promised_shapes_dtypes_and_ranges(make: Make, model: nn.Module) -> None:
    got = make(model)(model, images())
    for field, dtype in ((got.labels, torch.int64), (got.size, torch.float32), (got.found, torch.bool)):
        assert (field.shape, field.dtype, field.device.type) == ((10,), dtype, "cpu")
        assert not field.requires_grad
    assert (got.size >= 0).all()
    assert got.size.isfinite().all()


def test_labels_are_the_models_answers_in_evaluation_mode(make: Make, model: nn.Module) -> None:
    got = make(model)(model, images())
    assert torch.equal(got.labels, model.eval()(images()).argmax(1))


@pytest.mark.parametrize("grad", [True, False])
def test_the_model_is_left_as_it_was(make: Make, model: nn.Module, grad: bool) -> None:
    estimate = make(model)
    model[1].eval()
    model[5].bias.requires_grad_(False)
    before = [
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        weights_fingerprint(model),
    ]
    x = images()
    random_state = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        estimate(model, x)
    after = [
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        weights_fingerprint(model),
    ]
    assert before == after
    assert all(parameter.grad is None for parameter in model.parameters())
    assert x.grad is None
    assert torch.equal(x, images())
    assert torch.equal(random_state, torch.get_rng_state())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_it_works_in_inference_mode_and_with_inputs_that_want_gradients(make: Make, model: nn.Module) -> None:
    expected = make(model)(model, images())
    with torch.inference_mode():
        inferred = make(model)(model, images())
    wanting = make(model)(model, images().requires_grad_())
    assert torch.equal(inferred.size, expected.size)
    assert torch.equal(wanting.size, expected.size)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), -0.5, 1.5])
def test_inputs_that_are_not_finite_or_out_of_bounds_are_refused(make: Make, model: nn.Module, bad: float) -> None:
    x = images()
    x[6, 0, 2, 2] = bad
    with pytest.raises(DataFormatError, match=r"1 of 10 images \(the first is number 6.* outside the bounds \[0, 1\]"):
        make(model)(model, x)


def test_found_is_a_fact_in_both_directions(make: Make, model: nn.Module) -> None:
    # The last layer decides: with a huge bias no change inside the bounds can flip the answer.
    assert make(model)(model, images()).found.any()
    with torch.no_grad():
        model[5].bias[0] += 1e6
    got = make(model)(model, images())
    assert not got.found.any()
    assert (got.labels == 0).all()


def test_results_repeat_bit_for_bit(make: Make, model: nn.Module) -> None:
    estimate = make(model)
    first, second = estimate(model, images()), estimate(model, images())
    assert torch.equal(first.size, second.size)
    assert torch.equal(first.found, second.found)


def test_an_empty_batch_gives_empty_records(make: Make, model: nn.Module) -> None:
    got = make(model)(model, images(0))
    assert (got.labels.dtype, got.size.dtype, got.found.dtype) == (torch.int64, torch.float32, torch.bool)
    assert len(got) == 0


def test_settings_are_described_for_the_caches_key(make: Make, model: nn.Module) -> None:
    estimate = make(model)
    assert digest(describe(estimate)) == digest(describe(make(model)))
    assert digest(describe(estimate)) != digest(describe(FoolboxDeepFool(batch_size=5)))
    assert isinstance(estimate.bounds, Bounds)
    assert estimate.batch_size == 4
