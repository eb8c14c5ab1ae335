"""The parts of the search, each for itself on cases that can be worked out by hand."""

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.search.closing import Closing
from deepfailguard.boundary.search.effort import EFFORTS
from deepfailguard.boundary.search.norms import reach, size_of
from deepfailguard.boundary.search.slopes import Slope, View, class_distances
from deepfailguard.boundary.search.trails import Best, Trails
from deepfailguard.types import Bounds

WIDE = Bounds(-100.0, 100.0)
ROOM = (torch.full((1, 2), -100.0), torch.full((1, 2), 100.0))
AHEAD = torch.tensor([[1.0, 0.0]])


def slope(margin: float, normal: Tensor) -> Slope:
    rows = len(normal)
    nothing = torch.zeros(rows, dtype=torch.int64)
    return Slope(torch.zeros(rows, 2), nothing, torch.full((rows,), margin), normal, torch.full((rows,), margin < 0))


def wall_at(place: float, asked: list[float]) -> object:
    """A model whose answer flips where the first value reaches `place`; the margin is the way that is left."""

    def ask(rows: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        asked.extend(delta[:, 0].tolist())
        return place - delta[:, 0], delta[:, 0] >= place, delta

    return ask


def best_at(size: float, margin: float, fall: float) -> Best:
    one = torch.ones(1)
    return Best(size * one, size * AHEAD, margin * one, fall * one)


def test_a_plan_is_stretched_by_what_the_last_prediction_was_short() -> None:
    trails = Trails.begin(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2), slope(4.0, AHEAD))
    assert trails.planned(WIDE, "l2", 1.0).tolist() == [[4.0, 0.0]]
    # Predicted: the margin falls by 4. Seen: by 2. So trust goes half the way from 1 to 0.5.
    moved = trails.moved(torch.tensor([[4.0, 0.0]]), slope(2.0, AHEAD), EFFORTS["balanced"])
    assert moved.trust.tolist() == [0.75]
    assert moved.planned(WIDE, "l2", 1.0)[0, 0].item() == pytest.approx(4.0 + 2.0 / 0.75)


def test_the_direction_is_the_mean_of_the_unit_normals() -> None:
    trails = Trails.begin(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2), slope(1.0, 5 * AHEAD))
    moved = trails.moved(AHEAD, slope(1.0, torch.tensor([[0.0, 0.1]])), EFFORTS["balanced"])
    torch.testing.assert_close(moved.direction, torch.full((1, 2), 0.5**0.5))


def test_a_trail_ends_when_its_plan_promises_too_little() -> None:
    trails = Trails.begin(torch.tensor([0, 1]), torch.zeros(2, 2), slope(1.0, AHEAD.repeat(2, 1)))
    best = Best(torch.tensor([1.0, 2.0]), torch.zeros(2, 2), torch.zeros(2), torch.zeros(2))
    going, counted = trails.worthwhile(torch.tensor([0.95, 1.0]), best, EFFORTS["balanced"])
    assert going.tolist() == [False, True]
    assert counted.stale.tolist() == [1, 0]


def test_closing_draws_a_crossing_back_to_the_wall() -> None:
    asked: list[float] = []
    closing = Closing(ROOM, torch.tensor([3.0]), wall_at(3.0, asked), "l2")
    found = closing.run(best_at(4.0, -1.0, 4.0), Best.none_of(torch.zeros(1, 2)), passes=1)
    assert found.size.item() == pytest.approx(3.0, rel=2e-3)
    assert len(asked) == 1


def test_closing_falls_back_on_what_was_seen_to_flip() -> None:
    asked: list[float] = []
    closing = Closing(ROOM, torch.tensor([3.0]), wall_at(3.99, asked), "l2")
    found = closing.run(best_at(4.0, -1.0, 4.0), Best.none_of(torch.zeros(1, 2)), passes=1)  # the margin misleads
    assert found.size.tolist() == [4.0]
    assert asked == pytest.approx([3.0, 4.0], rel=2e-3)


def test_closing_goes_on_along_a_plan_until_the_answer_flips() -> None:
    asked: list[float] = []
    planned = best_at(2.0, 0.0, 2.0)
    found = Closing(ROOM, torch.tensor([7.0]), wall_at(7.0, asked), "l2").run(
        Best.none_of(torch.zeros(1, 2)), planned, passes=1
    )
    assert asked[0] == 2.0
    assert found.size.item() == pytest.approx(7.0, rel=0.04)
    unreachable = Closing(ROOM, torch.tensor([7.0]), wall_at(1e3, asked), "l2")
    assert unreachable.run(Best.none_of(torch.zeros(1, 2)), planned, passes=1).size.isinf().all()


@pytest.mark.parametrize(("norm", "expected"), [("l2", [[0.5, 0.75]]), ("linf", [[0.5, 0.75]]), ("l1", [[0.5, 0.75]])])
def test_reach_goes_on_in_the_free_values_when_others_are_at_their_bounds(
    norm: str, expected: list[list[float]]
) -> None:
    normal, room = torch.tensor([[2.0, 1.0]]), (torch.full((1, 2), -1.0), torch.tensor([[0.5, 2.0]]))
    delta = reach(room, normal, normal, torch.tensor([1.75]), norm)
    torch.testing.assert_close(delta, torch.tensor(expected))
    assert size_of(delta, norm).item() == pytest.approx({"l2": 0.8125**0.5, "linf": 0.75, "l1": 1.25}[norm])


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_rows_of_reach_do_not_depend_on_each_other(norm: str) -> None:
    torch.manual_seed(0)
    image, normal = torch.rand(50, 9), torch.randn(50, 9)
    direction, rise, room = normal + 0.5 * torch.randn(50, 9), torch.rand(50), (-image, 1 - image)
    together = reach(room, direction, normal, rise, norm)
    alone = [reach((room[0][i : i + 1], room[1][i : i + 1]), direction[i : i + 1], normal[i : i + 1], rise[i : i + 1], norm) for i in range(50)]  # fmt: skip  # noqa: E501
    torch.testing.assert_close(together, torch.cat(alone), rtol=0.0, atol=0.0)


def test_further_slopes_are_those_that_single_passes_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    points, view = torch.rand(7, 6), View(model, torch.Size([6]), rows=3)
    answers = model(points).argmax(1)
    rivals = torch.tensor([[(answer + 1) % 5, (answer + 2) % 5] for answer in answers.tolist()])
    rivals[3:, 1] = -1
    rivals[5:, 0] = -1
    rows, got = view.further_slopes(points, answers, rivals)
    assert sorted(zip(rows.tolist(), got.rival.tolist(), strict=True)) == sorted(
        (row, rival) for row, pair in enumerate(rivals.tolist()) for rival in pair if rival >= 0
    )
    for row, rival, margin, normal in zip(rows, got.rival, got.margin, got.normal, strict=True):
        x = points[row : row + 1].clone().requires_grad_(True)
        logits = model(x)[0]
        lead = logits[answers[row]] - logits[rival]
        torch.testing.assert_close(margin, lead.detach())
        torch.testing.assert_close(-normal, torch.autograd.grad(lead, x)[0][0])


def test_classes_whose_weights_differ_much_seem_near() -> None:
    logits, answers = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0])
    weights = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 4.0]])
    assert class_distances(logits, answers, weights).tolist() == [[torch.inf, 2.0, 0.5]]
    assert class_distances(logits, answers, None).tolist() == [[torch.inf, 1.0, 2.0]]
    assert class_distances(logits, answers, weights[:2]).tolist() == [[torch.inf, 1.0, 2.0]]
