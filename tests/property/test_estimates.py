"""Calibration keeps the order; estimates do not depend on company, and scale as distances do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.boundary.estimates.distilling import Teaching
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.boundary.estimates.last_layer import LastLayerDistance
from deepfailguard.boundary.estimates.learned import LearnedDistance
from deepfailguard.boundary.estimates.monotone import Curve, fit_curve
from deepfailguard.boundary.estimates.regressor import Parameters, read_inputs
from deepfailguard.identity import describe, rebuild
from deepfailguard.seeding import generator

SEEDS = st.integers(0, 2**16)
ESTIMATES = [FirstOrderDistance(batch_size=3), FirstOrderDistance("soft"), LastLayerDistance(batch_size=4)]
quick = settings(max_examples=15, deadline=None, derandomize=True)


def network(seed: int) -> nn.Sequential:
    draw = generator(seed, "network")
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return model


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 2, 2, 2, generator=generator(seed, "images"))


@quick
@given(seed=SEEDS, count=st.integers(8, 60), knots=st.integers(1, 20), noise=st.floats(0, 3))
def test_a_fitted_curve_rises_strictly_and_never_below_zero(seed: int, count: int, knots: int, noise: float) -> None:
    draw = generator(seed, "curve")
    x = torch.randn(count, generator=draw).exp()
    curve = fit_curve(x, (x.log() + noise * torch.randn(count, generator=draw)).exp(), knots)
    assert len(curve.x) <= max(knots, 1)
    asked = torch.cat([torch.zeros(1), torch.logspace(-4, 4, 400, dtype=torch.float64)])
    told = curve(asked)
    assert told[0] == 0
    assert (told.diff() > 0).all()
    assert isinstance(rebuild(describe(curve), ("deepfailguard",)), Curve)


@quick
@given(seed=SEEDS, order=st.permutations(range(7)), count=st.integers(1, 7))
@pytest.mark.parametrize("estimate", ESTIMATES, ids=repr)
def test_order_and_company_change_rounding_only(
    estimate: DistanceEstimator, seed: int, order: list[int], count: int
) -> None:
    model, x, index = network(seed), images(7, seed), torch.tensor(order)[:count]
    got, whole = estimate(model, x[index]), estimate(model, x)[index]
    assert torch.equal(got.labels, whole.labels)
    torch.testing.assert_close(got.size, whole.size, rtol=1e-4, atol=1e-6)


@quick
@given(seed=SEEDS, factor=st.sampled_from([0.125, 0.5, 4.0, 16.0]))
def test_scaled_inputs_have_scaled_first_order_distances(seed: int, factor: float) -> None:
    model, scaled, x = network(seed), network(seed), images(6, seed)
    with torch.no_grad():
        scaled[1].weight.div_(factor)
    one = FirstOrderDistance()(model, x)
    other = FirstOrderDistance(low=0.0, high=factor)(scaled, x * factor)
    torch.testing.assert_close(other.size / factor, one.size, rtol=1e-3, atol=1e-6)


@quick
@given(seed=SEEDS, classes=st.integers(2, 30), features=st.integers(0, 5), scale=st.floats(-30, 30))
def test_what_the_regressor_sees_is_finite_whatever_the_logits(
    seed: int, classes: int, features: int, scale: float
) -> None:
    draw = generator(seed, "logits")
    logits = torch.randn(5, classes, generator=draw) * 10.0**scale
    inputs = read_inputs(logits, torch.randn(5, features, generator=draw) * 10.0**scale)
    assert inputs.rows.isfinite().all()
    assert inputs.log_leads.isfinite().all()


@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_learned_parameters_keep_every_bit_as_text(seed: int) -> None:
    model, x = network(seed), images(40, seed)
    teacher = FoolboxDeepFool(steps=20, low=-20.0, high=20.0)
    learned = LearnedDistance(teacher, Teaching(width=4, epochs=1), low=-20.0, high=20.0).fit(model, x)
    (state,) = learned.versions.values()
    parameters = Parameters.from_text(state.parameters)
    assert parameters.to_text() == state.parameters
    assert learned(model, x).found.all()
