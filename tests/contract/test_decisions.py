"""Every rule, on answers as they should be and as they should not."""

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepfailguard.decision.rules import highest_posterior, majority_vote, single_version, weighted_vote
from deepfailguard.errors import ConfigurationError
from deepfailguard.identity import describe, rebuild
from deepfailguard.seeding import generator
from deepfailguard.types import Decision

Rule = Callable[..., Decision]

RULES: dict[str, Rule] = {
    "highest_posterior": highest_posterior,
    "majority_vote": majority_vote,
    "majority_by_probability": functools.partial(majority_vote, ties="lowest_failure_probability"),
    "weighted_vote": weighted_vote,
    "single_version": functools.partial(single_version, version=0),
}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]


def _answers(inputs: int, versions: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = generator(0, inputs, versions)
    labels = torch.randint(-1, 3, (inputs, versions), generator=random)
    failure = torch.rand(inputs, versions, generator=random, dtype=dtype)
    return labels, torch.where(labels == -1, 1.0, failure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("versions", [1, 2, 3, 20])
def test_a_decision_is_well_formed(rule: Rule, versions: int, dtype: torch.dtype) -> None:
    labels, failure = _answers(200, versions, dtype)
    decision = rule(labels, failure)
    silent = decision.labels == -1
    assert decision.labels.dtype == torch.int64
    assert decision.failure_probability.dtype == decision.weights.dtype == dtype
    assert ((decision.failure_probability >= 0) & (decision.failure_probability <= 1)).all()
    assert (decision.weights >= 0).all()
    torch.testing.assert_close(decision.weights.sum(1), (~silent).to(dtype))
    assert torch.equal(decision.abstained, silent)
    given = (labels == decision.labels[:, None]).any(1)
    assert given.all()
    mean = (decision.weights * failure).sum(1)
    torch.testing.assert_close(decision.failure_probability[~silent], mean[~silent])


def test_only_those_who_gave_the_answer_have_weight(rule: Rule) -> None:
    labels, failure = _answers(200, 5)
    decision = rule(labels, failure)
    assert (decision.weights[labels != decision.labels[:, None]] == 0).all()


def test_a_version_without_an_answer_has_no_say(rule: Rule) -> None:
    labels, failure = _answers(200, 3)
    labels, failure = labels.roll(1, 1), failure.roll(1, 1)
    silent = torch.cat([labels, torch.full((200, 1), -1)], 1)
    for claimed in (0.0, 1.0):
        decision = rule(silent, torch.cat([failure, torch.full((200, 1), claimed, dtype=torch.float64)], 1))
        expected = rule(labels, failure)
        assert torch.equal(decision.labels, expected.labels)
        assert torch.equal(decision.weights[:, :3], expected.weights)
        assert (decision.weights[:, 3] == 0).all()


def test_where_nobody_answers_it_abstains(rule: Rule) -> None:
    decision = rule(torch.full((2, 3), -1), torch.zeros(2, 3))
    assert decision.labels.tolist() == [-1, -1]
    assert decision.failure_probability.tolist() == [1.0, 1.0]
    assert decision.weights.tolist() == [[0.0] * 3] * 2
    assert decision.abstained.tolist() == [True, True]


def test_failure_probabilities_out_of_range_count_as_the_nearest_sound_ones(rule: Rule) -> None:
    labels = torch.tensor([[1, 2, 2, 3], [1, 2, 3, 4]])
    odd = torch.tensor([[torch.nan, -0.5, 0.4, 1.5], [torch.nan, torch.nan, 0.4, torch.inf]])
    sound = torch.tensor([[1.0, 0.0, 0.4, 1.0], [1.0, 1.0, 0.4, 1.0]])
    decision, expected = rule(labels, odd), rule(labels, sound)
    assert torch.equal(decision.labels, expected.labels)
    assert torch.equal(decision.failure_probability, expected.failure_probability)
    assert torch.equal(decision.weights, expected.weights)


def test_it_abstains_above_the_limit_and_keeps_its_answer(rule: Rule) -> None:
    labels, failure = _answers(200, 3)
    sure, careful = rule(labels, failure), rule(labels, failure, abstain_above=0.4)
    assert torch.equal(careful.labels, sure.labels)
    assert torch.equal(careful.weights, sure.weights)
    assert torch.equal(careful.abstained, (sure.failure_probability > 0.4) | (sure.labels == -1))
    assert 0 < int(careful.abstained.sum()) < 200


def test_no_inputs(rule: Rule) -> None:
    decision = rule(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))
    assert decision.labels.shape == decision.failure_probability.shape == decision.abstained.shape == (0,)
    assert decision.weights.shape == (0, 3)


def test_it_leaves_its_input_alone(rule: Rule) -> None:
    labels, failure = _answers(50, 3)
    failure[0, 0] = torch.nan
    before = labels.clone(), failure.clone()
    rule(labels, failure)
    assert torch.equal(labels, before[0])
    assert torch.equal(failure.nan_to_num(-1), before[1].nan_to_num(-1))


def test_it_can_be_described_and_rebuilt(rule: Rule) -> None:
    labels, failure = _answers(50, 3)
    again = rebuild(json.loads(json.dumps(describe(rule))), ("deepfailguard",))
    assert torch.equal(again(labels, failure).labels, rule(labels, failure).labels)


@pytest.mark.parametrize(
    ("labels", "failure", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3), r"int64 \(B, N\)"),
        (torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 0), "N >= 1"),
        (torch.zeros(3, 2), torch.zeros(3, 2), "got torch.float32"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 3), r"floating \(3, 2\) like the labels"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64), "got torch.int64"),
    ],
)
def test_wrong_input(rule: Rule, labels: Tensor, failure: Tensor, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        rule(labels, failure)


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_wrong_limit(rule: Rule, limit: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"abstain_above must be in \[0, 1\] or None"):
        rule(*_answers(3, 2), abstain_above=limit)
