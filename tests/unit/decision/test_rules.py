import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy.stats import mode
from torch import Tensor

from deepfailguard.decision.rules import highest_posterior, majority_vote, single_version, weighted_vote
from deepfailguard.errors import ConfigurationError
from deepfailguard.seeding import generator


def _case(versions: int, purpose: str, missing: bool = True) -> tuple[Tensor, Tensor]:
    random = generator(0, purpose)
    labels = torch.randint(-1 if missing else 0, 3, (500, versions), generator=random)
    failure = torch.rand(500, versions, generator=random, dtype=torch.float64)
    return labels, torch.where(labels == -1, 1.0, failure)


def _votes(labels: list[int], failure: list[float]) -> dict[int, list[float]]:
    """Failure probabilities of the versions that answered, by their label."""
    votes: dict[int, list[float]] = defaultdict(list)
    for label, p in zip(labels, failure, strict=True):
        if label != -1:
            votes[label].append(p)
    return votes


@pytest.mark.parametrize("versions", [1, 2, 3, 5])
def test_highest_posterior_is_the_published_argmax(versions: int) -> None:
    labels, failure = _case(versions, "argmax", missing=False)
    winner = np.argmax(1 - failure.numpy(), axis=1)
    decision = highest_posterior(labels, failure)
    rows = np.arange(500)
    np.testing.assert_array_equal(decision.labels.numpy(), labels.numpy()[rows, winner])
    np.testing.assert_array_equal(decision.failure_probability.numpy(), failure.numpy()[rows, winner])
    np.testing.assert_array_equal(decision.weights.numpy(), np.eye(versions)[winner])


def test_highest_posterior_takes_the_first_of_equals_that_answered() -> None:
    labels = torch.tensor([[5, 6, 7], [-1, 6, 7]])
    assert highest_posterior(labels, torch.ones(2, 3)).labels.tolist() == [5, 6]


@pytest.mark.parametrize("versions", [1, 2, 3, 4, 5])
def test_majority_is_the_published_mode(versions: int) -> None:
    labels, failure = _case(versions, "mode", missing=False)
    expected = mode(labels.numpy(), axis=1).mode
    np.testing.assert_array_equal(majority_vote(labels, failure).labels.numpy(), expected)


@pytest.mark.parametrize("versions", [1, 2, 4, 7])
def test_majority_by_probability_equals_counting_by_hand(versions: int) -> None:
    labels, failure = _case(versions, "ties")
    decision = majority_vote(labels, failure, ties="lowest_failure_probability")
    for row, (said, p) in enumerate(zip(labels.tolist(), failure.tolist(), strict=True)):
        votes = _votes(said, p)
        expected = max(votes, key=lambda label: (len(votes[label]), -min(votes[label]))) if votes else -1
        assert decision.labels[row] == expected
        mean = sum(votes[expected]) / len(votes[expected]) if votes else 1.0
        assert float(decision.failure_probability[row]) == pytest.approx(mean)


@pytest.mark.parametrize("versions", [1, 2, 4, 7])
def test_weighted_vote_equals_log_odds_by_hand(versions: int) -> None:
    labels, failure = _case(versions, "weighted")
    decision = weighted_vote(labels, failure)
    for row, (said, p) in enumerate(zip(labels.tolist(), failure.tolist(), strict=True)):
        votes = _votes(said, p)
        totals = {
            label: sum(max(0.0, math.log((1 - q) / max(q, 1e-3))) for q in given if q < 1)
            for label, given in votes.items()
        }
        expected = max(votes, key=lambda label: (round(totals[label], 9), -min(votes[label]))) if votes else -1
        assert decision.labels[row] == expected


def test_weights_are_the_shares_of_those_who_agree() -> None:
    labels = torch.tensor([[7, 7, 4, -1]])
    failure = torch.tensor([[0.1, 0.2, 0.3, 1.0]], dtype=torch.float64)
    assert majority_vote(labels, failure).weights.tolist() == [[0.5, 0.5, 0.0, 0.0]]
    decision = weighted_vote(labels, failure)
    first, second = math.log(9), math.log(4)
    share = first / (first + second)
    assert decision.weights[0].tolist() == pytest.approx([share, 1 - share, 0, 0])
    assert float(decision.failure_probability) == pytest.approx(share * 0.1 + (1 - share) * 0.2)


def test_votes_that_are_all_zero_go_to_the_most_trusted() -> None:
    decision = weighted_vote(torch.tensor([[1, 2, 2]]), torch.tensor([[0.8, 0.9, 0.6]]))
    assert decision.labels.tolist() == [2]
    assert decision.weights.tolist() == [[0.0, 0.5, 0.5]]


def test_no_version_outvotes_by_being_certain() -> None:
    failure = torch.tensor([[0.0, 0.02, 0.02]], dtype=torch.float64)  # log odds 6.9 at most, beside 2 times 3.9
    assert weighted_vote(torch.tensor([[1, 2, 2]]), failure).labels.tolist() == [2]


def test_a_single_version_is_asked_alone() -> None:
    labels, failure = _case(3, "single")
    decision = single_version(labels, failure, version=1)
    assert torch.equal(decision.labels, labels[:, 1])
    assert torch.equal(decision.failure_probability, failure[:, 1])
    assert torch.equal(decision.abstained, labels[:, 1] == -1)
    assert torch.equal(decision.weights[:, 1], (labels[:, 1] != -1).double())
    with pytest.raises(ConfigurationError, match=r"version must be in \[0, 3\), got 3"):
        single_version(labels, failure, version=3)


def test_ties_must_be_known() -> None:
    with pytest.raises(ConfigurationError, match="smallest_label, lowest_failure_probability, got 'random'"):
        majority_vote(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), ties="random")  # type: ignore[arg-type]
