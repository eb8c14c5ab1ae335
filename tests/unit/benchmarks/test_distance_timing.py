"""The parts of the distance benchmark that run models: images, interleaving, peers, memory, plot."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.distances.bars import Measured
from benchmarks.distances.compact_cnn import CompactCNN
from benchmarks.distances.figures import Quality, Range, Row
from benchmarks.distances.images import in_colour, ten_classes, two_digit_numbers
from benchmarks.distances.memory import peak_bytes
from benchmarks.distances.ours import search
from benchmarks.distances.peers import _nearest_others, foolbox_deepfool
from benchmarks.distances.plotting import draw, plot
from benchmarks.distances.subjects import Recipe, load_subject
from benchmarks.distances.timing import Method, interleave, rotated, works
from deepfailguard.errors import DataNotFoundError
from deepfailguard.types import Distances
from tests.examples import affine, bars


def crowd() -> Measured:
    """A subject whose methods cost and find nearly the same."""
    names = ["ours, fast", "ours, tight", "theirs", "a third library's attack", "a fourth one's"]
    quality = [Quality(64, 0.9 + 0.002 * place, 0.8, 1.0, 1.1, 0) for place in range(len(names))]
    fpe = [Range(100.0 + 5 * place, 99.0, 130.0) for place in range(len(names))]
    rows = {name: Row(name, fpe[place], fpe[place], quality[place]) for place, name in enumerate(names)}
    return Measured("subject", 10, 0.9, rows, {}, {})


def test_order_rotates() -> None:
    methods = [Method(name, lambda model, images: images) for name in "abc"]
    assert ["".join(each.name for each in rotated(methods, turn)) for turn in range(4)] == ["abc", "bca", "cab", "abc"]


def test_methods_take_turns_chunk_by_chunk() -> None:
    lines: list[str] = []
    methods = [Method("stays", lambda model, images: images), search("fast")]
    traces = interleave(methods, affine(), bars(12).images.split(6), lines.append)
    assert [line.rpartition(": ")[2] for line in lines] == ["stays", "ours, fast", "ours, fast", "stays"]
    assert not traces["stays"].distances.found.any()  # unchanged images flip nothing
    assert traces["ours, fast"].distances.found.all()
    assert traces["ours, fast"].fpe.shape == (2,)


def test_changed_images_count_only_inside_the_bounds() -> None:
    model = affine(classes=2)
    far = Method("far", lambda model, images: images + 100.0)
    size = interleave([far], model, [bars(4).images], lambda line: None)["far"].distances.size
    assert (size <= 8.0).all()  # the diagonal of 64 values in [0, 1]


def test_foolbox_agrees_with_its_wrapper_on_an_affine_model() -> None:
    model, images = affine().eval(), bars(6).images
    found = interleave([foolbox_deepfool(), search("tight")], model, [images], lambda line: None)
    theirs, ours = (trace.distances for trace in found.values())
    assert theirs.found.all()
    assert (ours.size <= theirs.size * 1.001).all()
    assert all(parameter.grad is None for parameter in model.parameters())  # nothing is left for who comes next


def test_a_method_that_raises_is_named_and_left_out() -> None:
    def breaks(model: nn.Module, images: Tensor) -> Distances:
        raise RuntimeError("no such kernel")

    lines: list[str] = []
    assert not works(Method("theirs", breaks), affine(), bars(4).images, lines.append)
    assert lines == ["left out: theirs: RuntimeError: no such kernel"]


def test_starting_points_are_the_nearest_of_another_answer() -> None:
    images, bank = torch.zeros(2, 1, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1)
    start, started = _nearest_others(images, torch.tensor([0, 1]), bank, torch.tensor([0, 0, 0]))
    assert started.tolist() == [False, True]
    assert start[1].item() == pytest.approx(0.1)


def test_numbers_have_43_classes_of_other_digits_in_each_part() -> None:
    splits = two_digit_numbers()
    assert splits.input_shape == (3, 32, 32)
    assert splits.test.labels.unique().tolist() == list(range(43))
    assert torch.equal(two_digit_numbers().test.images, splits.test.images)


def test_digits_are_enlarged_shifted_and_coloured(tmp_path: Path) -> None:
    splits = ten_classes("digits", tmp_path, 100)
    assert splits.input_shape == (1, 32, 32)
    assert len(splits.train) == 100
    assert in_colour(splits).input_shape == (3, 32, 32)


def test_absent_data_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="fashion_mnist"):
        ten_classes("fashion_mnist", tmp_path, 100)


def test_a_subject_is_trained_once(tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = Recipe(limit=256, epochs=1)
    cpu = torch.device("cpu")
    first, second = (load_subject("compact_resnet", recipe, cpu, tmp_path, tmp_path, lines.append) for _ in range(2))
    assert len(lines) == 1
    assert first.accuracy == second.accuracy
    assert not second.model.training


def test_compact_cnn_has_its_size() -> None:
    model = CompactCNN(1, 10)
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert 200_000 < sum(parameter.numel() for parameter in model.parameters()) < 240_000


def test_peak_memory_sees_what_is_freed_again() -> None:
    size = 64 * 2**20
    grown = peak_bytes(torch.device("cpu"), lambda: torch.ones(size // 4).sum())
    assert grown is None or 0.9 * size < grown < 2 * size


def test_labels_of_points_side_by_side_do_not_overlap() -> None:
    axis = draw([crowd()]).axes[0]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == len(crowd().rows)
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])


def test_plot_is_a_picture(tmp_path: Path) -> None:
    plot([crowd(), crowd(), crowd()], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
