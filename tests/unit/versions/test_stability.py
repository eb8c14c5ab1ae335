"""Does a model keep its answer on slightly changed images?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.errors import WrongOutputError
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds
from deepfailguard.versions.stability import CHANGES, stability
from tests.examples import CLASSES, affine, bars

UNIT = Bounds()
EACH = pytest.mark.parametrize("name", list(CHANGES))


def pictures(count: int, side: int, bounds: Bounds = UNIT) -> Tensor:
    random = generator(0, "pictures", side)
    return bounds.low + bounds.width * torch.rand(count, 3, side, side, generator=random)


@EACH
@pytest.mark.parametrize("side", [1, 2, 8, 40])
@pytest.mark.parametrize("bounds", [UNIT, Bounds(-2.0, 0.5)])
def test_a_change_keeps_shape_bounds_and_its_input(name: str, side: int, bounds: Bounds) -> None:
    images = pictures(4, side, bounds)
    images[0], images[1] = bounds.low, bounds.high
    before = images.clone()
    changed = CHANGES[name](images, bounds)
    assert changed.shape == images.shape
    assert not bounds.outside(changed).any()
    assert torch.equal(images, before)
    same = side == 1 and name != "brighter"
    assert torch.allclose(changed[2:], images[2:], atol=1e-6) == same
    torch.testing.assert_close(changed[1], images[1])  # nothing is brighter than white


@EACH
def test_no_image_depends_on_another(name: str) -> None:
    images = pictures(5, 8)
    alone = torch.cat([CHANGES[name](image[None], UNIT) for image in images])
    assert torch.equal(alone, CHANGES[name](images, UNIT))


@pytest.mark.parametrize(("side", "share"), [(8, 0.25), (32, 1.0), (40, 1.0)])
def test_small_images_are_changed_less(side: int, share: float) -> None:
    images = pictures(2, side)
    right = (CHANGES["right"](images, UNIT) - images)[..., 1:]
    down = (CHANGES["down"](images, UNIT) - images)[..., 1:, :]
    torch.testing.assert_close(right, share * (images[..., :-1] - images[..., 1:]), rtol=0, atol=1e-6)
    torch.testing.assert_close(down, share * (images[..., :-1, :] - images[..., 1:, :]), rtol=0, atol=1e-6)
    middle = images[..., :3, :3].mean((2, 3))
    softer = (CHANGES["softer"](images, UNIT) - images)[..., 1, 1]
    torch.testing.assert_close(softer, share * (middle - images[..., 1, 1]), rtol=0, atol=1e-6)


def test_it_is_the_mean_probability_of_the_answer() -> None:
    model, images = affine(seed=1), bars(30).images
    labels = torch.arange(30) % CLASSES
    told = stability(model, images, labels, UNIT)
    expected = sum(model(change(images, UNIT)).softmax(1)[torch.arange(30), labels] for change in CHANGES.values())
    torch.testing.assert_close(told, expected / 4)  # type: ignore[operator]
    assert told.dtype == torch.float32
    assert not told.requires_grad
    torch.testing.assert_close(
        torch.cat([stability(model, images[i : i + 1], labels[i : i + 1], UNIT) for i in range(30)]), told
    )


def test_an_answer_near_the_boundary_is_less_stable() -> None:
    """Between two classes whose logits differ by the mean of the left half less that of the right."""
    weight = torch.zeros(2, 4, 4)
    weight[0, :, :2], weight[1, :, 2:] = 5.0, 5.0
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(weight.flatten(1))
    clear, close = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5)
    clear[..., :2], close[..., :2] = 1.0, 0.51
    told = stability(model, torch.cat([clear, close]), torch.tensor([0, 0]), UNIT)
    assert float(told[0]) > 0.99 > float(told[1])


class Doing(nn.Module):
    """Any function of images as a model; dropout tells whether it is in evaluation mode."""

    def __init__(self, what: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.what = what
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> object:
        return self.what(self.dropout(x))


def test_a_copy_whose_logits_are_not_finite_counts_as_zero() -> None:
    def logits(x: Tensor) -> Tensor:
        told = torch.tensor([[30.0, 0.0]]).repeat(len(x), 1)
        told[x.amax((1, 2, 3)) > 0.5] = torch.nan
        return told

    images = torch.stack([torch.full((1, 4, 4), value) for value in (0.2, 0.5, 0.9)])
    told = stability(Doing(logits), images, torch.tensor([0, 0, 0]), UNIT)  # the second only if it is brighter
    torch.testing.assert_close(told, torch.tensor([1.0, 0.75, 0.0]))


def test_who_did_not_answer_has_none() -> None:
    told = stability(affine(), bars(3).images, torch.tensor([-1, 0, -1]), UNIT)
    assert told[[0, 2]].tolist() == [0.0, 0.0]
    assert float(told[1]) > 0


def test_no_image_is_asked_about_nothing() -> None:
    def fails(x: Tensor) -> object:
        raise RuntimeError("asked")

    assert stability(Doing(fails), torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64), UNIT).shape == (0,)


def test_a_single_class_is_certain() -> None:
    told = stability(Doing(lambda x: x.sum((1, 2, 3))[:, None]), pictures(2, 4), torch.tensor([0, 0]), UNIT)
    assert told.tolist() == [1.0, 1.0]


def test_model_and_images_stay_as_they_were() -> None:
    def in_place(x: Tensor) -> Tensor:
        x.zero_()
        return torch.eye(2)[torch.zeros(len(x), dtype=torch.int64)]

    model, images = Doing(in_place).train(), pictures(3, 1)
    before = images.clone()
    stability(model, images, torch.zeros(3, dtype=torch.int64), UNIT)
    assert torch.equal(images, before)
    assert model.training
    assert model.dropout.training


def test_a_model_with_dropout_is_asked_in_evaluation_mode() -> None:
    model, images, labels = Doing(lambda x: x.flatten(1)[:, :3]).train(), pictures(6, 4), torch.zeros(6).long()
    assert torch.equal(stability(model, images, labels, UNIT), stability(model, images, labels, UNIT))


@pytest.mark.parametrize("output", ["text", torch.zeros(3), torch.zeros(2, 4)])
def test_other_outputs_than_logits_are_refused(output: object) -> None:
    with pytest.raises(WrongOutputError, match=r"expected logits \(3, classes\)"):
        stability(Doing(lambda x: output), pictures(3, 4), torch.zeros(3).long(), UNIT)
