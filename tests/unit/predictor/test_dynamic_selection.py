from dataclasses import replace

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.dynamic_selection import (
    Bank,
    DynamicSelectionPredictor,
    SelectionMethod,
    selection_votes,
)
from deepfailguard.types import Evidence
from tests.unit.predictor.simulated_logits import evidence_of, simulated

# Of three versions, right (1) or not on five neighbours, the nearest first.
RIGHT = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 0, 1]]).bool()[None]
EVERYBODY = torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("method", "votes"),
    [("ola", [1, 0, 0]), ("knora_u", [4, 3, 4]), ("knora_e", [0, 1, 0]), ("des_p", [1, 1, 1])],
)
def test_votes_by_hand(method: SelectionMethod, votes: list[float]) -> None:
    assert selection_votes(method, RIGHT, EVERYBODY, classes=3).tolist() == [votes]


def test_des_p_asks_for_more_than_chance() -> None:
    right = torch.tensor([[[1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]]]).bool()
    assert selection_votes("des_p", right, EVERYBODY, classes=4).tolist() == [[0, 1, 1]]  # 1/4 is chance, not more


@pytest.mark.parametrize("method", ["ola", "knora_u", "knora_e", "des_p"])
def test_where_nobody_was_right(method: SelectionMethod) -> None:
    votes = selection_votes(method, torch.zeros_like(RIGHT), EVERYBODY, classes=3)
    assert votes.tolist() == ([[1, 0, 0]] if method == "ola" else [[1, 1, 1]])


@pytest.mark.parametrize("method", ["ola", "knora_u", "knora_e", "des_p"])
def test_who_has_no_say_has_no_vote(method: SelectionMethod) -> None:
    for has_say in ([False, True, True], [False, True, False], [False, False, False]):
        votes = selection_votes(method, RIGHT, torch.tensor([has_say]), classes=3)[0]
        assert (votes[~torch.tensor(has_say)] == 0).all()
        assert (votes.sum() > 0) == any(has_say)


def _knora_e_by_the_paper(right: Tensor) -> Tensor:
    """Leave out the furthest neighbour until somebody is right on all that are left; if nobody ever is, take all."""
    for kept in range(len(right), 0, -1):
        competent = right[:kept].all(0)
        if competent.any():
            return competent
    return torch.ones(right.shape[1], dtype=torch.bool)


def test_knora_e_is_what_the_paper_says() -> None:
    right = torch.rand(500, 6, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    votes = selection_votes("knora_e", right, torch.ones(500, 4, dtype=torch.bool), classes=3)
    for row, expected in zip(votes, right, strict=True):
        assert torch.equal(row.bool(), _knora_e_by_the_paper(expected))


def test_neighbours_are_those_of_scikit_learn() -> None:
    random = torch.Generator().manual_seed(0)
    points, asked = torch.rand(300, 8, generator=random), torch.rand(700, 8, generator=random)
    right = torch.rand(300, 3, generator=random) < 0.5
    nearest = NearestNeighbors(n_neighbors=7).fit(points.double().numpy()).kneighbors(asked.double().numpy())[1]
    assert torch.equal(Bank(points, right).right_nearby(asked, 7), right[torch.from_numpy(nearest)])


def test_of_equally_near_inputs_the_earlier_counts_and_an_input_can_be_left_out() -> None:
    right = torch.tensor([[True], [False], [False], [True]])
    bank = Bank(torch.zeros(4, 2), right)
    asked = torch.zeros(4, 2)
    assert bank.right_nearby(asked, 2).squeeze(2).tolist() == [[True, False]] * 4
    without = bank.right_nearby(asked, 3, leave_out=torch.arange(4)).squeeze(2)
    assert without.tolist() == [[False, False, True], [True, False, True], [True, False, True], [True, False, False]]


def test_fewer_inputs_than_neighbours() -> None:
    evidence, truth = simulated(3, (2.0, 2.0))
    predictor = DynamicSelectionPredictor(neighbours=7).fit(evidence, truth)
    probability = predictor.class_probability(evidence)
    torch.testing.assert_close(probability.sum(1), torch.ones(3, dtype=torch.float64))


def _two_experts(purpose: str) -> tuple[Evidence, Tensor]:
    """Of four classes the first version knows only 0 and 1, the second only 2 and 3; elsewhere they guess, unsure."""
    evidence, truth = simulated(1500, (4.0, 4.0), purpose=purpose)
    assert evidence.logits is not None
    ignorant = torch.stack([truth >= 2, truth < 2], 1)[:, :, None]
    noise = torch.rand(evidence.logits.shape, generator=torch.Generator().manual_seed(len(purpose)))
    return evidence_of(torch.where(ignorant, 2 * noise, evidence.logits)), truth


@pytest.mark.parametrize("method", ["ola", "knora_u", "knora_e", "des_p"])
def test_it_finds_the_expert(method: SelectionMethod) -> None:
    test, answer = _two_experts("test")
    predictor = DynamicSelectionPredictor(method).fit(*_two_experts("calibration"))
    right = (predictor.class_probability(test).argmax(1) == answer).double().mean()
    alone = (test.labels == answer[:, None]).double().mean(0)
    assert right > float(alone.max()) + (0.05 if method == "des_p" else 0.2)


def test_failure_probabilities_are_calibrated() -> None:
    strengths = (1.0, 1.5, 2.0, 2.5, 1.5)
    predictor = DynamicSelectionPredictor("knora_u").fit(*simulated(1500, strengths))
    test, truth = simulated(3000, strengths, purpose="test")
    surest = predictor.class_probability(test).max(1)
    wrong = (surest.indices != truth).double()
    assert abs(float((1 - surest.values).mean() - wrong.mean())) < 0.02


def test_calibration_inputs_without_an_answer_are_no_right_ones() -> None:
    evidence, truth = simulated(50, (2.0, 2.0))
    silent = replace(evidence, labels=torch.full_like(evidence.labels, -1))
    bank = DynamicSelectionPredictor().fit(silent, truth).bank_
    assert bank is not None
    assert not bank.right.any()


def test_wrong_settings() -> None:
    with pytest.raises(ConfigurationError, match="method must be one of ola, knora_u, knora_e, des_p, got 'meta'"):
        DynamicSelectionPredictor("meta")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="neighbours must be >= 1, got 0"):
        DynamicSelectionPredictor(neighbours=0)
