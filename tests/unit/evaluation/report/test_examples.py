import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.examples import find_examples, image_png, image_values
from deepfailguard.types import Bounds


@pytest.fixture
def parted(build: Callable[..., Evaluation]) -> Evaluation:
    """Inputs 0 and 2 are rescued (2 with more certainty), 1 is harmed, 3 is decided alike."""
    truth = torch.tensor([0, 1, 2, 3])
    labels = torch.tensor([[0, 1, 1], [0, 1, 1], [2, 0, 0], [3, 3, 3]])
    probability = torch.tensor([[0.2, 0.5, 0.5], [0.3, 0.4, 0.4], [0.1, 0.6, 0.6], [0.1, 0.1, 0.1]])
    return build(labels, truth, probability, image_shape=(3, 8, 10))


def test_rescued_and_harmed_inputs_are_found_the_surest_first(parted: Evaluation) -> None:
    assert [example.position for example in find_examples(parted, "rescued", 6)] == [2, 0]
    assert [example.position for example in find_examples(parted, "rescued", 1)] == [2]
    assert [example.position for example in find_examples(parted, "harmed", 6)] == [1]


def test_an_example_tells_who_said_what(parted: Evaluation) -> None:
    (example,) = find_examples(parted, "harmed", 6)
    assert (example.truth, example.guard, example.majority) == ("bear", "apple", "bear")
    assert example.failure_probability == pytest.approx(0.3)
    assert [answer.label for answer in example.answers] == ["apple", "bear", "bear"]
    assert [answer.right for answer in example.answers] == [False, True, True]
    assert [answer.followed for answer in example.answers] == [True, False, False]
    assert [answer.failure_probability for answer in example.answers] == pytest.approx([0.3, 0.4, 0.4])


def test_a_missing_answer_is_called_so(build: Callable[..., Evaluation]) -> None:
    labels = torch.tensor([[1, -1, 0, 0]])
    found = find_examples(build(labels, torch.tensor([1]), torch.tensor([[0.1, 1.0, 0.5, 0.5]])), "rescued", 1)
    assert found[0].answers[1].label == "no answer"


def test_no_example_where_all_agree(all_right: Evaluation, all_wrong: Evaluation) -> None:
    for evaluation in (all_right, all_wrong):
        assert find_examples(evaluation, "rescued", 6) == find_examples(evaluation, "harmed", 6) == []


def test_values_are_scaled_from_their_bounds() -> None:
    image = torch.tensor([[[-1.0, 0.0, 1.0, torch.nan, 9.0]]])
    values = image_values(image, Bounds(-1.0, 1.0))
    assert values.shape == (1, 5, 3)
    assert values[0, :, 0].tolist() == [0, 128, 255, 0, 255]


def test_colours_stay_colours_and_other_channels_are_averaged() -> None:
    red = torch.zeros(3, 1, 1)
    red[0] = 1.0
    assert image_values(red, Bounds()).tolist() == [[[255, 0, 0]]]
    two = torch.tensor([[[0.0]], [[1.0]]])
    assert image_values(two, Bounds()).tolist() == [[[128, 128, 128]]]


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 8, 8), (112, 112)), ((3, 28, 56), (224, 112)), ((3, 224, 224), (224, 224))]
)
def test_small_images_are_enlarged_without_smoothing(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    shown = Image.open(io.BytesIO(image_png(image, Bounds())))
    assert shown.size == size
    factor = size[1] // shape[1]
    pixels = np.asarray(shown.convert("RGB"))[factor // 2 :: factor, factor // 2 :: factor]
    assert np.array_equal(pixels, image_values(image, Bounds()))
