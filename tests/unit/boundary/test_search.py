"""Oracle: affine classifiers, whose distance is known in every norm. And the corner cases of the search."""

import logging

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.boundary.search import estimator
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.boundary.search.slopes import View
from deepfailguard.errors import ConfigurationError, WrongOutputError
from deepfailguard.identity import describe, rebuild, weights_fingerprint
from deepfailguard.seeding import generator
from deepfailguard.types import NO_ANSWER, Bounds

EFFORTS = ("fast", "balanced", "tight")
NORMS = {"l2": 2.0, "linf": 1.0, "l1": float("inf")}  # and the dual that divides the margin


def affine(classes: int, seed: int, values: int = 12) -> nn.Sequential:
    draw = generator(seed, "affine")
    layer = nn.Linear(values, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, values, generator=draw))
        layer.bias.copy_(torch.randn(classes, generator=draw))
    return nn.Sequential(nn.Flatten(), layer)


def network(seed: int = 0, classes: int = 5) -> nn.Sequential:
    """Kinks, normalisation and pooling, with weights large enough for crooked boundaries."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model.eval()


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *(shape or (2, 8, 8)), generator=generator(seed, "images"))


def exact_distance(model: nn.Sequential, x: Tensor, dual: float) -> Tensor:
    weight = model[1].weight.detach().double()
    logits = (x.flatten(1).double() @ weight.T) + model[1].bias.detach().double()
    top = logits.argmax(1)
    gap = logits.gather(1, top[:, None]) - logits
    slope = torch.linalg.vector_norm(weight[top][:, None] - weight[None], ord=dual, dim=2)
    return torch.where(slope > 0, gap / slope, torch.inf).amin(1)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_size_is_the_closed_form_on_affine_classifiers(classes: int, norm: str, effort: str) -> None:
    model, x = affine(classes, seed=classes), images(40, 1, 3, 4)
    got = BoundarySearch(effort, norm, low=-100.0, high=100.0)(model, x)
    assert got.found.all()
    assert torch.equal(got.labels, model(x).argmax(1))
    expected = exact_distance(model, x, NORMS[norm])
    assert (got.size >= expected * (1 - 1e-5)).all()  # a change that flips is never smaller
    exact = got.size.double() <= expected * (1 + 2e-3)
    # `fast` tries one rival only, which need not be the nearest.
    assert exact.float().mean() >= (0.6 if effort == "fast" else 0.97 if norm == "l2" else 0.8)
    if effort == "tight" and norm == "l2":
        torch.testing.assert_close(got.size.double(), expected, rtol=1.1e-3, atol=0.0)


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_are_kept_and_the_size_is_that_of_the_nearest_point_in_them(norm: str) -> None:
    # Two classes: the nearest point in a box is a linear (or quadratic) programme, solved here by a fine search.
    model, x = affine(2, seed=3), images(30, 1, 3, 4)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().flatten(1)))
    got = BoundarySearch("tight", norm)(model, x)
    model._forward_pre_hooks.clear()
    points = torch.cat(seen)
    assert points.min() >= 0.0
    assert points.max() <= 1.0
    weight = (model[1].weight[0] - model[1].weight[1]).detach().double()
    for image, size, found in zip(x.flatten(1).double(), got.size.tolist(), got.found.tolist(), strict=True):
        gap = float(image @ weight + (model[1].bias[0] - model[1].bias[1]).detach().double())
        best = nearest_in_box(image, -weight * (1 if gap > 0 else -1), abs(gap), norm)
        assert found == (best is not None)
        if best is not None:
            assert size == pytest.approx(best, rel=5e-3)


def nearest_in_box(image: Tensor, normal: Tensor, gap: float, norm: str) -> float | None:
    """The smallest norm of a change with <normal, change> = gap, by its optimality conditions."""
    room = torch.where(normal > 0, 1 - image, image)
    gain = normal.abs() * room
    if gain.sum() <= gap * (1 + 1e-6):
        return None
    if norm == "l1":
        order = normal.abs().argsort(descending=True)
        before = torch.cat([torch.zeros(1), gain[order].cumsum(0)[:-1]])
        part = ((gap - before) / gain[order]).clamp(0, 1)
        return float((part * room[order]).sum())
    pull = normal.abs() if norm == "l2" else torch.ones_like(normal)
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        reached = float((normal.abs() * torch.minimum(middle * pull, room)).sum())
        low, high = (middle, high) if reached < gap else (low, middle)
    change = torch.minimum(high * pull, room)
    return float(change.norm() if norm == "l2" else change.max())


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_found_was_seen_to_flip_at_exactly_that_distance(norm: str, effort: str) -> None:
    model, x = network(), images(20)
    answers, seen = model(x).argmax(1), []

    def record(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append((inputs[0].detach().clone(), output.detach().argmax(1)))

    handle = model.register_forward_hook(record)
    got = BoundarySearch(effort, norm)(model, x)
    handle.remove()
    points = torch.cat([inputs for inputs, _ in seen]).flatten(1)
    labels = torch.cat([labels for _, labels in seen])
    order = {"l2": 2.0, "linf": float("inf"), "l1": 1.0}[norm]
    assert got.found.all()
    for image, answer, size in zip(x.flatten(1), answers, got.size, strict=True):
        far = torch.linalg.vector_norm(points - image, ord=order, dim=1)
        reached = (far - size).abs() <= 1e-5 * size + 1e-6
        assert (labels[reached] != answer).any()


def test_more_effort_gives_smaller_distances_and_all_beat_deepfool_where_boundaries_are_crooked() -> None:
    model, x = network(), images(60)
    deepfool = FoolboxDeepFool()(model, x)
    fast, balanced, tight = (BoundarySearch(effort)(model, x) for effort in EFFORTS)
    for got in (fast, balanced, tight):
        assert (got.found >= deepfool.found).all()
    both = deepfool.found
    ratios = [(got.size / deepfool.size)[both].median() for got in (fast, balanced, tight)]
    assert ratios[2] <= ratios[1] <= ratios[0] * 1.001
    assert ratios[1] < 0.99


def test_a_model_without_gradients_is_searched_by_its_decisions(caplog: pytest.LogCaptureFixture) -> None:
    class Quantised(nn.Module):
        """Rounds its input to 64 levels: no gradient gets through."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = affine(3, seed=1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.inner((x * 63).round() / 63)

    x = images(6, 1, 3, 4)
    quantised = Quantised()
    random_state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, logger="deepfailguard"):
        got = BoundarySearch("balanced")(quantised, x)
    assert "by its decisions alone" in caplog.text
    assert torch.equal(random_state, torch.get_rng_state())
    assert got.found.float().mean() > 0.6
    smooth = BoundarySearch("tight")(affine(3, seed=1), x)
    both = got.found & smooth.found
    # The rounding moves the boundary by half a level per value at most.
    assert (got.size[both] / smooth.size[both]).median() < 1.3
    assert (got.size[both] > smooth.size[both] - 12**0.5 / 126 - 1e-3).all()


def test_a_gradient_of_zero_everywhere_finds_nothing_and_says_so() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * 0.0 + torch.tensor([3.0, 1.0, 0.0])

    got = BoundarySearch()(Flat(), images(5))
    assert got.labels.tolist() == [0] * 5
    assert not got.found.any()
    assert got.size.tolist() == [0.0] * 5


def test_one_class_has_no_boundary() -> None:
    got = BoundarySearch()(affine(1, seed=0), images(4, 1, 3, 4))
    assert got.labels.tolist() == [0] * 4
    assert not got.found.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_no_answer_and_harm_no_other_image(bad: float) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = affine(4, seed=2)

        def forward(self, x: Tensor) -> Tensor:
            broken = x.flatten(1)[:, :1] > 0.9
            return torch.where(broken, bad, self.inner(x))

    x = images(30, 1, 3, 4) * 0.5
    expected = BoundarySearch()(Breaks(), x)
    x = torch.cat([x, x[:2]])
    x[30:, 0, 0, 0] = 0.95
    got = BoundarySearch()(Breaks(), x)
    assert got.labels[30:].tolist() == [NO_ANSWER] * 2
    assert not got.found[30:].any()
    assert torch.equal(got.labels[:30], expected.labels)
    torch.testing.assert_close(got.size[:30], expected.size, rtol=1e-4, atol=1e-6)


def test_an_untrained_model_has_distances_like_any_other() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))
    x = images(50)
    deepfool, got = FoolboxDeepFool()(model, x), BoundarySearch()(model, x)
    assert (got.found >= deepfool.found).all()
    assert (got.size / deepfool.size)[deepfool.found].quantile(0.9) < 1.02


def test_memory_that_runs_out_halves_the_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = network(), images(24)
    expected = BoundarySearch()(model, x)
    start = View.start

    def small_device(view: View, points: Tensor, weights: Tensor | None = None) -> object:
        if len(points) > 7:
            raise torch.OutOfMemoryError("out of memory")
        return start(view, points, weights)

    monkeypatch.setattr(View, "start", small_device)
    with caplog.at_level(logging.WARNING, logger="deepfailguard"):
        got = BoundarySearch()(model, x)
    assert "out of memory with 24 images at once" in caplog.text
    assert torch.equal(got.labels, expected.labels)
    torch.testing.assert_close(got.size, expected.size, rtol=1e-2, atol=1e-4)
    monkeypatch.setattr(View, "start", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError, match="none at all"):
        BoundarySearch()(model, x)


def test_the_model_is_untouched_even_by_a_search_that_fails() -> None:
    model, x = network().train(), images(4)
    before = weights_fingerprint(model)
    model.register_forward_hook(lambda *_: "no logits")
    with pytest.raises(WrongOutputError, match="returned a str, expected logits"):
        BoundarySearch()(model, x)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert weights_fingerprint(model) == before


def test_a_last_layer_of_another_width_does_not_mislead() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = affine(4, seed=2)
            self.unused = nn.Linear(3, 9)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.inner(x)
            return output

    x = images(20, 1, 3, 4)
    assert estimator.class_weights(Extra()).shape == (9, 3)
    got = BoundarySearch("tight", low=-100.0, high=100.0)(Extra(), x)
    torch.testing.assert_close(got.size.double(), exact_distance(affine(4, seed=2), x, 2.0), rtol=1.1e-3, atol=0.0)


def test_settings_are_checked_described_and_adapted_to_bounds() -> None:
    with pytest.raises(ConfigurationError, match=r"effort must be one of .*'balanced'.* got 'best'"):
        BoundarySearch("best")
    with pytest.raises(ConfigurationError, match="norm must be one of"):
        BoundarySearch(norm="l0")
    with pytest.raises(ConfigurationError, match="batch_size must be at least 1"):
        BoundarySearch(batch_size=0)
    with pytest.raises(ConfigurationError, match="low < high"):
        BoundarySearch(low=1.0)
    search = BoundarySearch("tight", "linf").with_bounds(Bounds(-1.0, 3.0))
    assert search.bounds == Bounds(-1.0, 3.0)
    assert rebuild(describe(search), ["deepfailguard"]) == search


def test_mixed_precision_changes_the_way_and_not_what_is_verified() -> None:
    model, x = network(), images(40)
    seen: list[torch.dtype] = []
    model[4].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    full, mixed = BoundarySearch()(model, x), BoundarySearch(mixed_precision=True)(model, x)
    assert {torch.float32, torch.bfloat16} == set(seen)
    assert torch.equal(mixed.labels, full.labels)
    assert torch.equal(mixed.found, full.found)
    assert (mixed.size / full.size)[full.found].median() == pytest.approx(1.0, abs=0.05)


@pytest.mark.filterwarnings("ignore")
def test_a_dynamically_quantised_model_is_searched_though_its_answers_depend_on_their_company() -> None:
    model = torch.ao.quantization.quantize_dynamic(affine(3, seed=1), {nn.Linear})
    x = images(6, 1, 3, 4)
    got, exact = BoundarySearch("fast")(model, x), exact_distance(affine(3, seed=1), x, 2.0)
    assert got.found.any()
    assert (got.size[got.found] > 0.5 * exact[got.found]).all()


class InPlace(nn.Module):
    """Doubles its input where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = affine(3, seed=1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x.mul_(2.0))
        return output


def test_a_model_that_works_in_place_harms_nothing() -> None:
    x = images(10, 1, 3, 4)
    before = x.clone()
    got = BoundarySearch("tight", low=-100.0, high=100.0)(InPlace(), x)
    assert torch.equal(x, before)
    torch.testing.assert_close(got.size.double() * 2, exact_distance(affine(3, seed=1), 2 * x, 2.0), rtol=2e-3, atol=0)


def test_a_model_that_answers_in_another_dtype_and_one_slope_that_is_infinite_do_no_harm() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = affine(3, seed=1).double()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.inner(x.clamp_min(0).sqrt().double())
            return output

    x = images(6, 1, 3, 4)
    x[:, 0, 0, 0] = 0.0  # here the root's slope is infinite
    got = BoundarySearch("tight")(Root(), x)
    assert got.found.all()
    assert (got.size > 0).all()


def test_gradients_that_vanish_on_the_way_lead_to_the_search_by_decisions(caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = affine(2, seed=3)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            logits: Tensor = self.inner(x)
            return logits if self.calls == 1 else logits.detach()

    with caplog.at_level(logging.INFO, logger="deepfailguard"):
        got = BoundarySearch("tight")(Breaks(), images(8, 1, 3, 4))
    assert "by its decisions alone" in caplog.text
    assert got.found.any()
