"""The decision rules.

Each is a pure function from labels (B, N) and failure probabilities (B, N) to a `Decision`, on any device.
In all of them:

- a version whose label is -1 gave no answer; it has no say and is never chosen. Where nobody answered, the
  decision's label is -1, its failure probability 1, its weights are 0, and it abstains;
- a failure probability that is NaN counts as 1, one outside [0, 1] as the nearer end;
- only versions that gave the chosen answer have weight. So the versions' class probabilities, mixed by the
  weights, put the chosen answer first whenever each version puts its own answer first;
- the decision's failure probability is the mean of the versions' failure probabilities under these weights.
  For rules that count votes this ignores that the others agree or disagree: it is no calibrated probability.
"""

from typing import Final, Literal

import torch
from torch import Tensor

from deepfailguard.decision.ballots import Ballots, ballots_of, decide
from deepfailguard.errors import ConfigurationError
from deepfailguard.types import Decision

__all__ = ["Ties", "highest_posterior", "majority_vote", "single_version", "weighted_vote"]

Ties = Literal["smallest_label", "lowest_failure_probability"]
_TIES = ("smallest_label", "lowest_failure_probability")
_MOST_CERTAIN: Final = 1e-3  # a version may outvote others, but never all of them for being sure


def highest_posterior(labels: Tensor, failure_probability: Tensor, *, abstain_above: float | None = None) -> Decision:
    """The published rule: the answer of the version that is most probably right; of equals the first.

    Args:
        labels: (B, N) int64, -1 for no answer.
        failure_probability: (B, N) floating in [0, 1].
        abstain_above: abstain where even the chosen answer is more probably wrong than this.

    >>> decision = highest_posterior(torch.tensor([[4, 7, 7]]), torch.tensor([[0.1, 0.3, 0.2]]))
    >>> decision.labels.tolist(), decision.weights.tolist()
    ([4], [[1.0, 0.0, 0.0]])
    """
    ballots = ballots_of(labels, failure_probability)
    chosen = _most_trusted(ballots, ballots.answered)
    return decide(ballots, chosen, _only(chosen, ballots), abstain_above)


def majority_vote(
    labels: Tensor,
    failure_probability: Tensor,
    *,
    ties: Ties = "smallest_label",
    abstain_above: float | None = None,
) -> Decision:
    """The answer that most versions gave; failure probabilities matter at most for ties.

    Args:
        labels: (B, N) int64, -1 for no answer.
        failure_probability: (B, N) floating in [0, 1].
        ties: between answers with equally many votes take the smallest label (as `scipy.stats.mode` and the
            published baseline do), or the one given by the version that is most probably right.
        abstain_above: abstain where the answer's failure probability, the mean over the versions that gave
            it, is larger.

    >>> majority_vote(torch.tensor([[4, 7, 7], [2, 1, 0]]), torch.rand(2, 3)).labels.tolist()
    [7, 0]
    """
    if ties not in _TIES:
        raise ConfigurationError(f"ties must be one of {', '.join(_TIES)}, got {ties!r}")
    ballots = ballots_of(labels, failure_probability)
    votes = ballots.answered.to(failure_probability.dtype)
    leading = _leading(ballots, ballots.support(votes))
    chosen = _smallest_label(ballots, leading) if ties == "smallest_label" else _most_trusted(ballots, leading)
    return decide(ballots, chosen, votes, abstain_above)


def weighted_vote(labels: Tensor, failure_probability: Tensor, *, abstain_above: float | None = None) -> Decision:
    """The answer with the most weight of votes: each version votes with the log odds that it is right.

    A version with failure probability p votes with log((1 - p) / p), p not below 0.001; from p = 1/2 on its
    vote is 0. For versions that fail independently of each other and two classes no other weights are right
    more often (Nitzan & Paroush, 1982); versions that fail together are believed too much. Ties, also where all
    votes are 0, go to the answer given by the version that is most probably right.

    Args:
        labels: (B, N) int64, -1 for no answer.
        failure_probability: (B, N) floating in [0, 1].
        abstain_above: abstain where the answer's failure probability, the mean over the versions that gave
            it, weighted by their votes, is larger.

    >>> weighted_vote(torch.tensor([[4, 7, 7]]), torch.tensor([[0.1, 0.3, 0.2]])).labels.tolist()
    [7]
    >>> weighted_vote(torch.tensor([[4, 7, 7]]), torch.tensor([[0.1, 0.4, 0.3]])).labels.tolist()
    [4]
    """
    ballots = ballots_of(labels, failure_probability)
    p = ballots.failure_probability.clamp_min(_MOST_CERTAIN)
    votes = ((1 - p).log() - p.log()).clamp_min(0) * ballots.answered
    chosen = _most_trusted(ballots, _leading(ballots, ballots.support(votes)))
    return decide(ballots, chosen, votes, abstain_above)


def single_version(
    labels: Tensor, failure_probability: Tensor, *, version: int, abstain_above: float | None = None
) -> Decision:
    """The answer of one version, whatever the others say; no answer (-1) where it gave none.

    Args:
        labels: (B, N) int64, -1 for no answer.
        failure_probability: (B, N) floating in [0, 1].
        version: its position in [0, N).
        abstain_above: abstain where the version is more probably wrong than this.

    >>> single_version(torch.tensor([[4, 7, 7]]), torch.rand(1, 3), version=0).labels.tolist()
    [4]
    """
    ballots = ballots_of(labels, failure_probability)
    if not 0 <= version < ballots.labels.shape[1]:
        raise ConfigurationError(f"version must be in [0, {ballots.labels.shape[1]}), got {version}")
    chosen = torch.full_like(ballots.labels[:, 0], version)
    return decide(ballots, chosen, _only(chosen, ballots), abstain_above)


def _only(chosen: Tensor, ballots: Ballots) -> Tensor:
    return torch.zeros_like(ballots.failure_probability).scatter_(1, chosen[:, None], 1.0)


def _leading(ballots: Ballots, support: Tensor) -> Tensor:
    """(B, N) bool, versions whose answer has the most support."""
    support = torch.where(ballots.answered, support, -1.0)
    return support == support.amax(1, keepdim=True)


def _most_trusted(ballots: Ballots, among: Tensor) -> Tensor:
    """(B,) position of the version with the lowest failure probability among some; of equals the first."""
    return torch.where(among, ballots.failure_probability, torch.inf).argmin(1)


def _smallest_label(ballots: Ballots, among: Tensor) -> Tensor:
    """(B,) position of the first version with the smallest label among some."""
    return torch.where(among, ballots.labels, torch.iinfo(torch.int64).max).argmin(1)
