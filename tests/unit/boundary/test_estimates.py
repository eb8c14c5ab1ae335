import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.boundary.estimates.last_layer import LastLayerDistance
from deepfailguard.boundary.estimates.quality import compare
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.errors import ConfigurationError, WrongOutputError
from deepfailguard.identity import describe, rebuild
from deepfailguard.seeding import generator
from deepfailguard.types import NO_ANSWER, Bounds, Distances
from deepfailguard.versions.tapping import tapped
from tests.examples import affine, bars, template_model
from tests.trained import trained_on_bars

BOTH = [FirstOrderDistance(), FirstOrderDistance("soft"), LastLayerDistance()]
GRADIENTS = BOTH[:2]


def linear(classes: int = 4, inputs: int = 9) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
    twin = affine(seed=3, classes=classes, inputs=inputs)
    with torch.no_grad():
        model[1].weight.copy_(twin.weight)
        model[1].bias.copy_(twin.bias)
    return model


def images(count: int = 20) -> Tensor:
    return torch.rand(count, 1, 3, 3, generator=generator(1, "estimates"))


def exact(model: nn.Sequential, x: Tensor) -> Tensor:
    """Distances to all boundaries of an affine model, one at a time."""
    weight, rows = model[1].weight.detach().double(), []
    for logits in model(x).detach().double():
        own = int(logits.argmax())
        others = [j for j in range(len(logits)) if j != own]
        rows.append(min(float((logits[own] - logits[j]) / (weight[own] - weight[j]).norm()) for j in others))
    return torch.tensor(rows)


def test_the_last_layer_tells_affine_distances_exactly() -> None:
    torch.testing.assert_close(LastLayerDistance()(linear(), images()).size, exact(linear(), images()).float())


@pytest.mark.parametrize("estimate", GRADIENTS)
def test_the_first_order_is_exact_for_two_affine_classes(estimate: FirstOrderDistance) -> None:
    model = linear(classes=2)
    torch.testing.assert_close(estimate(model, images()).size, exact(model, images()).float())


def test_the_hard_margin_is_the_distance_to_the_second_likeliest_class() -> None:
    model, x = linear(), images()
    two = model(x).detach().topk(2)
    weight = model[1].weight.detach()
    apart = (weight[two.indices[:, 0]] - weight[two.indices[:, 1]]).norm(dim=1)
    expected = (two.values[:, 0] - two.values[:, 1]) / apart
    torch.testing.assert_close(FirstOrderDistance()(model, x).size, expected)
    assert (expected >= exact(model, x) - 1e-5).all()


def test_the_soft_margin_s_slope_weighs_the_rivals_by_their_probability() -> None:
    model, x = linear(), images(6)
    got = FirstOrderDistance("soft")(model, x).size
    for i, logits in enumerate(model(x).detach()):
        own, weight = int(logits.argmax()), model[1].weight.detach()
        rivals = logits.clone()
        rivals[own] = -math.inf
        slope = weight[own] - rivals.softmax(0) @ weight
        assert float(got[i]) == pytest.approx(float((logits[own] - rivals.max()) / slope.norm()), rel=1e-4)


@pytest.mark.parametrize("estimate", BOTH)
def test_answers_that_are_not_finite_are_no_answers(estimate: DistanceEstimator) -> None:
    model = linear()
    x = images(4)
    with torch.no_grad():
        model[1].bias[2] = math.nan
    got = estimate(model, x)
    assert got.labels.tolist() == [NO_ANSWER] * 4
    assert not got.found.any()
    assert (got.size == 0).all()


@pytest.mark.parametrize("estimate", BOTH)
def test_one_class_has_no_boundary(estimate: DistanceEstimator) -> None:
    got = estimate(linear(classes=1), images(3))
    assert got.labels.tolist() == [0, 0, 0]
    assert not got.found.any()


@pytest.mark.parametrize("estimate", BOTH)
def test_a_model_without_slope_has_no_estimate(estimate: DistanceEstimator) -> None:
    model = linear()
    with torch.no_grad():
        model[1].weight.zero_()
    got = estimate(model, images(3))
    assert not got.found.any()
    assert (got.labels == model(images(3)).argmax(1)).all()


@pytest.mark.parametrize("factor", [1e-25, 1e25])
@pytest.mark.parametrize("estimate", BOTH)
def test_the_scale_of_the_logits_does_not_matter(estimate: DistanceEstimator, factor: float) -> None:
    # The squares of such slopes underflow or overflow, and softmax is saturated.
    model = linear(classes=2)
    expected = estimate(model, images())
    with torch.no_grad():
        model[1].weight.mul_(factor)
        model[1].bias.mul_(factor)
    got = estimate(model, images())
    if isinstance(estimate, FirstOrderDistance):
        assert got.found.all()
        torch.testing.assert_close(got.size, expected.size)
    else:
        assert got.size.isfinite().all()


def test_half_precision_models_are_estimated() -> None:
    model = linear().to(torch.bfloat16)
    for estimate in BOTH:
        got = estimate(model, images().to(torch.bfloat16))
        torch.testing.assert_close(got.size, estimate(linear(), images()).size, rtol=0.1, atol=0.05)


def test_logits_in_another_precision_than_their_layer_are_known_again() -> None:
    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear().to(torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(torch.bfloat16)).float()

    assert tapped(Widening(), images()).weight is not None


class Head(nn.Module):
    """A network whose logits come from a layer of the given kind."""

    def __init__(self, *head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_the_mean_of_a_pointwise_convolution_is_a_last_layer() -> None:
    model, x = Head(nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images()
    tap = tapped(model, x)
    assert tap.weight is not None
    torch.testing.assert_close(tap.features @ tap.weight.T + model.head[0].bias, tap.logits)
    assert LastLayerDistance()(model, x).found.all()


@pytest.mark.parametrize(
    "head",
    [
        (nn.Conv2d(5, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (nn.Conv2d(5, 4, 3), nn.Flatten()),
        (nn.Flatten(), nn.Linear(45, 4), nn.Softmax(1)),
    ],
)
def test_a_model_without_a_linear_end_is_told_the_alternatives(head: tuple[nn.Module, ...]) -> None:
    with pytest.raises(ConfigurationError, match="in this Head; take FirstOrderDistance or LearnedDistance"):
        LastLayerDistance()(Head(*head), images())
    assert FirstOrderDistance()(Head(*head), images()).labels.shape == (20,)


def test_the_layer_whose_output_is_the_logits_is_found_among_others() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other, self.answer = nn.Linear(9, 4), nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            answer = self.answer(x.flatten(1))
            self.other(x.flatten(1))
            return answer

    model = TwoHeads()
    assert tapped(model, images()).weight is model.answer.weight


class Changed(nn.Module):
    """A linear layer whose output is changed before it is returned."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer, self.change = linear(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.answer(x))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits.mul_(0.1),
        lambda logits: logits.relu(),
        lambda logits: logits.clamp(max=20.0),
        lambda logits: logits - logits.mean(1, keepdim=True),
    ],
)
def test_a_changed_output_is_not_taken_for_the_logits_whatever_the_images(
    change: Callable[[Tensor], Tensor], inference: bool
) -> None:
    model = Changed(change)
    for bias in (10.0, 0.0, -10.0):  # all outputs above zero, some, none
        model.answer[1].bias.data.fill_(bias)
        with torch.inference_mode(inference):
            assert tapped(model, images()).weight is None


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("change", [lambda logits: logits, lambda logits: logits[:], lambda logits: logits.double()])
def test_an_unchanged_output_is_known_again(change: Callable[[Tensor], Tensor], inference: bool) -> None:
    model = Changed(change)
    with torch.inference_mode(inference):
        assert tapped(model, images()).weight is model.answer[1].weight


def test_a_pooled_convolution_is_known_whatever_the_images() -> None:
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for bias in (10.0, -10.0):
        plain, cut = Head(nn.Conv2d(5, 4, 1), *pool), Head(nn.Conv2d(5, 4, 1), nn.ReLU(), *pool)
        for model in (plain, cut, most := Head(nn.Conv2d(5, 4, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten())):
            model.head[0].bias.data.fill_(bias)
        assert tapped(plain, images()).weight is not None
        assert tapped(cut, images()).weight is None
        assert tapped(most, images()).weight is None


@pytest.mark.parametrize(("asked", "told"), [(0, 0), (1, 5), (2, 6), (9, 6)])
def test_the_mean_inputs_of_some_convolutions_are_told(asked: int, told: int) -> None:
    model = Head(nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    means = tapped(model, images(2), asked).means
    assert means.shape == (2, told)
    if asked:
        torch.testing.assert_close(means[:, -5:], model.body(images(2)).mean((2, 3)))


def test_hooks_are_removed_when_the_model_fails() -> None:
    class Failing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), Failing(2, 3)).train()
    with pytest.raises(RuntimeError, match="broken"):
        tapped(model, images(), convolutions=2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_model_without_gradients_is_told_the_alternatives() -> None:
    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return linear()(x)

    with pytest.raises(ConfigurationError, match=r"no gradient.*take LastLayerDistance or LearnedDistance"):
        FirstOrderDistance()(Rounding(), images())


@pytest.mark.parametrize("estimate", BOTH)
def test_other_outputs_than_logits_are_refused(estimate: DistanceEstimator) -> None:
    with pytest.raises(WrongOutputError, match=r"the model returned shape .*, expected logits \(2, classes\)"):
        estimate(nn.Identity(), images(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FirstOrderDistance("medium"),  # type: ignore[arg-type]
        lambda: FirstOrderDistance(batch_size=0),
        lambda: LastLayerDistance(batch_size=0),
        lambda: LastLayerDistance(batch_size=2.5),  # type: ignore[arg-type]
        lambda: LastLayerDistance(low=1.0, high=0.0),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        make()


@pytest.mark.parametrize("estimate", BOTH)
def test_they_can_be_described_and_rebuilt(estimate: FirstOrderDistance | LastLayerDistance) -> None:
    shifted = estimate.with_bounds(Bounds(-1.0, 2.0))
    assert rebuild(describe(shifted), ("deepfailguard",)) == shifted
    assert shifted.bounds == Bounds(-1.0, 2.0)


def test_gradients_tell_more_than_the_largest_softmax_output() -> None:
    trained, x = trained_on_bars(), bars(150, seed=9).images
    searched = BoundarySearch("balanced")(trained, x)
    told = {repr(e): compare(e(trained, x), searched).spearman for e in BOTH}
    confidence = trained(x).detach().softmax(1).amax(1)
    baseline = compare(Distances(searched.labels, confidence, searched.found), searched).spearman
    assert told[repr(BOTH[0])] > max(baseline, 0.9)
    assert min(told.values()) > 0.6


def test_a_template_is_no_linear_layer() -> None:
    assert tapped(template_model(), bars(3).images).features.shape == (3, 0)
