"""Oracle: the exact boundary distance of affine classifiers."""

import logging

import foolbox
import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.errors import ConfigurationError, WrongOutputError
from deepfailguard.identity import describe, rebuild
from deepfailguard.seeding import generator
from deepfailguard.types import NO_ANSWER, Bounds, Distances

SHAPE = (1, 3, 4)


def affine(classes: int, seed: int) -> nn.Sequential:
    draw = generator(seed, "affine")
    layer = nn.Linear(12, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, 12, generator=draw))
        layer.bias.copy_(torch.randn(classes, generator=draw))
    return nn.Sequential(nn.Flatten(), layer)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=generator(seed, "images"))


def exact_distance(model: nn.Sequential, x: Tensor) -> Tensor:
    weight, logits = model[1].weight.double(), model.double()(x.double()).detach()
    model.float()
    top = logits.argmax(1)
    gap = logits.gather(1, top[:, None]) - logits
    slope = (weight[top][:, None] - weight[None]).norm(dim=2)
    return torch.where(slope > 0, gap / slope, torch.inf).amin(1).detach()


@pytest.mark.parametrize("classes", [2, 3, 10, 17])
@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_size_is_the_closed_form_on_affine_classifiers(classes: int, overshoot: float) -> None:
    model, x = affine(classes, seed=classes), images(40)
    estimator = FoolboxDeepFool(candidates=classes, overshoot=overshoot, low=-100.0, high=100.0)
    got = estimator(model, x)
    assert got.found.all()
    assert torch.equal(got.labels, model(x).argmax(1))
    expected = (exact_distance(model, x) + 1e-4) * (1 + overshoot)
    torch.testing.assert_close(got.size.double(), expected, rtol=1e-3, atol=0.0)


def test_size_is_the_closed_form_wherever_the_nearest_point_lies_inside_tight_bounds() -> None:
    model, x = affine(4, seed=5), images(60) * 0.6 + 0.2
    got = FoolboxDeepFool()(model, x)
    expected = (exact_distance(model, x) + 1e-4) * 1.02
    inside = expected < 0.19  # nearer than any bound, so no step is clipped
    assert inside.sum() >= 5
    torch.testing.assert_close(got.size[inside].double(), expected[inside], rtol=1e-3, atol=0.0)


def test_result_is_that_of_foolbox_called_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)).eval()
    x = images(20)
    attack = foolbox.attacks.L2DeepFoolAttack(steps=30, candidates=4)
    logging.disable(logging.INFO)
    try:
        oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        moved, _, success = attack(oracle, x, model(x).argmax(1), epsilons=None)
    finally:
        logging.disable(logging.NOTSET)
    got = FoolboxDeepFool(steps=30, candidates=4)(model, x)
    assert torch.equal(got.found, success)
    torch.testing.assert_close(got.size, (moved - x).flatten(1).norm(dim=1))


def test_not_found_is_told_where_the_bounds_or_the_steps_do_not_let_the_search_cross() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.ones(12), torch.zeros(12)]))
        model[1].bias.copy_(torch.tensor([0.0, -1.0]))  # class 0 everywhere in [0, 1]
    assert not FoolboxDeepFool()(model, images(6)).found.any()
    assert FoolboxDeepFool(low=-10.0, high=10.0)(model, images(6)).found.all()


def test_success_of_the_last_step_is_seen() -> None:
    got = FoolboxDeepFool(steps=1, candidates=3, low=-100.0, high=100.0)(affine(3, 1), images(10))
    assert got.found.all()


def test_one_class_gives_no_distance() -> None:
    got = FoolboxDeepFool()(affine(1, 0), images(3))
    assert_records(got, [0, 0, 0], [0.0, 0.0, 0.0], [False, False, False])


class NanForDark(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        dark = x.flatten(1).mean(1, keepdim=True) < 0.1
        return torch.where(dark, torch.nan, 1.0) * self.inner(x)


def test_nan_logits_of_one_image_touch_no_other() -> None:
    inner, x = affine(3, 2), images(4)
    x[1] = 0.0
    got = FoolboxDeepFool(low=-9.0, high=9.0)(NanForDark(inner), x)
    assert got.labels[1] == NO_ANSWER
    assert got.found.tolist() == [True, False, True, True]
    assert got.size[1] == 0
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(got.size[others], FoolboxDeepFool(low=-9.0, high=9.0)(inner, x[others]).size)


def test_constant_model_has_no_boundary_to_find() -> None:
    model = affine(3, 0)
    nn.init.zeros_(model[1].weight)
    got = FoolboxDeepFool()(model, images(3))
    assert not got.found.any()
    assert got.size.isfinite().all()


def test_bounds_are_those_of_the_inputs_dtype() -> None:
    x = torch.full((2, *SHAPE), 0.1)  # as float32 above 0.1: foolbox alone would stop at an assertion
    assert len(FoolboxDeepFool(low=-0.1, high=0.1)(affine(3, 0), x)) == 2


def test_double_precision_models_and_empty_batches_work() -> None:
    model = affine(3, 3).double()
    got = FoolboxDeepFool(low=-9.0, high=9.0)(model, images(4).double())
    assert got.size.dtype == torch.float32
    assert got.found.all()
    assert len(FoolboxDeepFool()(affine(3, 3), torch.empty(0, *SHAPE))) == 0


def test_foolbox_leaves_the_root_logger_alone(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    handlers, filters = list(root.handlers), list(root.filters)
    with caplog.at_level(logging.INFO):
        FoolboxDeepFool()(affine(3, 0), images(2))
    assert caplog.records == []
    assert root.handlers == handlers
    assert root.filters == filters


def test_with_bounds_keeps_the_rest_and_the_description_rebuilds() -> None:
    estimator = FoolboxDeepFool(steps=7).with_bounds(Bounds(-2.0, 2.0))
    assert (estimator.steps, estimator.bounds) == (7, Bounds(-2.0, 2.0))
    assert rebuild(describe(estimator), trusted=["deepfailguard"]) == estimator


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"candidates": 1}, "candidates must be at least 2"),
        ({"overshoot": -0.1}, "overshoot must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"low": 1.0}, "bounds need low < high"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FoolboxDeepFool(**settings)


def test_a_model_that_returns_no_logits_is_named() -> None:
    with pytest.raises(WrongOutputError, match=r"shape \(2, 1, 3, 4\), expected logits \(2, classes\)"):
        FoolboxDeepFool()(nn.Identity(), images(2))


def assert_records(got: Distances, labels: list[int], size: list[float], found: list[bool]) -> None:
    assert (got.labels.tolist(), got.size.tolist(), got.found.tolist()) == (labels, size, found)
