from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepfailguard.decision.rules import highest_posterior, majority_vote, single_version, weighted_vote
from deepfailguard.evaluation.failure_prediction import area_under_risk_coverage, auroc
from deepfailguard.types import Decision

Rule = Callable[[Tensor, Tensor], Decision]


def _by_probability(labels: Tensor, failure: Tensor) -> Decision:
    return majority_vote(labels, failure, ties="lowest_failure_probability")


def _first(labels: Tensor, failure: Tensor) -> Decision:
    return single_version(labels, failure, version=0)


SYMMETRIC: tuple[Rule, ...] = (highest_posterior, majority_vote, _by_probability, weighted_vote)


@st.composite
def answers(draw: st.DrawFn, distinct: bool = False) -> tuple[Tensor, Tensor]:
    """Labels and failure probabilities; distinct ones lie on a grid, so that no two sums come near each other."""
    inputs, versions = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    size = inputs * versions
    labels = draw(st.lists(st.integers(-1, 3), min_size=size, max_size=size))
    grid = st.integers(0, 10_000)
    failure = [draw(st.lists(grid, min_size=versions, max_size=versions, unique=distinct)) for _ in range(inputs)]
    probabilities = torch.tensor(failure, dtype=torch.float64) / 10_000
    return torch.tensor(labels).reshape(inputs, versions), probabilities


def _same(one: Decision, other: Decision) -> bool:
    pairs = (
        (one.labels, other.labels),
        (one.failure_probability, other.failure_probability),
        (one.weights, other.weights),
        (one.abstained, other.abstained),
    )
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("rule", [highest_posterior, majority_vote, _by_probability])
@given(case=answers(distinct=True), data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_the_order_of_versions_does_not_matter(rule: Rule, case: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    labels, failure = case
    order = data.draw(st.permutations(range(labels.shape[1])))
    decision, permuted = rule(labels, failure), rule(labels[:, order], failure[:, order])
    assert torch.equal(permuted.labels, decision.labels)
    torch.testing.assert_close(permuted.weights, decision.weights[:, order])
    torch.testing.assert_close(permuted.failure_probability, decision.failure_probability)


@given(case=answers(distinct=True), data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_the_order_of_versions_does_not_matter_to_a_weighted_vote(
    case: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    labels, failure = case
    order = data.draw(st.permutations(range(labels.shape[1])))
    decision, permuted = weighted_vote(labels, failure), weighted_vote(labels[:, order], failure[:, order])
    votes = (torch.special.logit(failure.clamp(1e-3, 1 - 1e-12)).neg()).clamp_min(0) * (labels != -1)
    totals = torch.stack([(votes * (labels == k)).sum(1) for k in range(4)], 1)
    best = totals.topk(2, 1).values
    clear = best[:, 0] - best[:, 1] > 1e-9  # sums in another order may differ in the last bits
    assert torch.equal(permuted.labels[clear], decision.labels[clear])
    torch.testing.assert_close(permuted.weights[clear], decision.weights[clear][:, order])


@pytest.mark.parametrize("rule", [*SYMMETRIC, _first])
@given(case=answers(), data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_inputs_are_decided_one_by_one(rule: Rule, case: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    labels, failure = case
    order = data.draw(st.permutations(range(len(labels))))
    whole = rule(labels, failure)
    expected = Decision(
        whole.labels[order], whole.failure_probability[order], whole.weights[order], whole.abstained[order]
    )
    assert _same(rule(labels[order], failure[order]), expected)
    one = Decision(whole.labels[:1], whole.failure_probability[:1], whole.weights[:1], whole.abstained[:1])
    assert _same(rule(labels[:1], failure[:1]), one)


@given(case=answers(), other=st.floats(0, 1))
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_a_majority_without_a_tie_ignores_probabilities(case: tuple[Tensor, Tensor], other: float) -> None:
    labels, failure = case
    counts = torch.stack([(labels == k).sum(1) for k in range(4)], 1).topk(2, 1).values
    clear = counts[:, 0] > counts[:, 1]
    changed = torch.full_like(failure, other)
    for rule in (majority_vote, _by_probability):
        assert torch.equal(rule(labels, failure).labels[clear], rule(labels, changed).labels[clear])
    assert torch.equal(majority_vote(labels, failure).labels, majority_vote(labels, changed).labels)
    assert torch.equal(majority_vote(labels, failure).labels[clear], _by_probability(labels, failure).labels[clear])


@pytest.mark.parametrize("rule", SYMMETRIC)
@given(case=answers())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_unanimous_answers_stand(rule: Rule, case: tuple[Tensor, Tensor]) -> None:
    _, failure = case
    labels = torch.arange(len(failure))[:, None].expand_as(failure).contiguous()
    assert torch.equal(rule(labels, failure).labels, torch.arange(len(failure)))


@given(data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_measures_of_failure_prediction_ignore_the_order_of_inputs(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    scores = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    wrong = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    order = data.draw(st.permutations(range(size)))
    failure = torch.tensor(scores, dtype=torch.float64) / 4
    assert auroc(failure[order], wrong[order]) == auroc(failure, wrong)
    again = area_under_risk_coverage(failure[order], wrong[order])
    assert again == area_under_risk_coverage(failure, wrong)
