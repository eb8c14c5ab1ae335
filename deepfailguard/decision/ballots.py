"""What all decision rules share: checked input, who agrees with whom, and the record of a decision."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.types import NO_ANSWER, Decision

__all__ = ["Ballots", "ballots_of", "check_abstain_above", "decide"]


@dataclass(frozen=True, slots=True)
class Ballots:
    """Labels and failure probabilities that are known to be sound.

    Attributes:
        labels: (B, N) int64, -1 for no answer.
        failure_probability: (B, N) floating in [0, 1], never NaN.
    """

    labels: Tensor
    failure_probability: Tensor

    @property
    def answered(self) -> Tensor:
        """(B, N) bool, whether the version answered."""
        return self.labels != NO_ANSWER

    def support(self, votes: Tensor) -> Tensor:
        """(B, N) sum of the votes (B, N) of all versions that gave the same label as this one."""
        same = self.labels[:, :, None] == self.labels[:, None, :]
        return (same * votes[:, None, :]).sum(2)


def ballots_of(labels: Tensor, failure_probability: Tensor) -> Ballots:
    """Check what a rule was given.

    Raises:
        ConfigurationError: not int64 and floating tensors of one shape (B, N), or no version.
    """
    if labels.ndim != 2 or labels.shape[1] == 0 or labels.dtype != torch.int64:
        raise ConfigurationError(
            f"labels must be int64 (B, N) with N >= 1 versions, got {labels.dtype} {tuple(labels.shape)}; "
            "give one column per version"
        )
    if failure_probability.shape != labels.shape or not failure_probability.is_floating_point():
        raise ConfigurationError(
            f"failure probabilities must be floating {tuple(labels.shape)} like the labels, "
            f"got {failure_probability.dtype} {tuple(failure_probability.shape)}"
        )
    # A wrong number of one version must not fail the batch: it makes this version the least trusted.
    return Ballots(labels, torch.nan_to_num(failure_probability, nan=1.0).clamp(0, 1))


def check_abstain_above(abstain_above: float | None) -> None:
    """Refuse a threshold of failure probabilities outside [0, 1].

    Raises:
        ConfigurationError: it is.
    """
    if abstain_above is not None and not 0 <= abstain_above <= 1:
        raise ConfigurationError(f"abstain_above must be in [0, 1] or None, got {abstain_above}")


def decide(ballots: Ballots, chosen: Tensor, votes: Tensor, abstain_above: float | None) -> Decision:
    """Decide for the answers of the chosen versions.

    Args:
        ballots: what the versions said.
        chosen: (B,) int64 in [0, N), a version that gave the answer.
        votes: (B, N) >= 0; the share of each version's vote among those with the same answer is its weight.
            Where all of them are 0, they share equally.
        abstain_above: abstain where the answer's failure probability is larger; None for never.

    Raises:
        ConfigurationError: `abstain_above` is not in [0, 1].
    """
    check_abstain_above(abstain_above)
    labels = ballots.labels.gather(1, chosen[:, None])
    supporters = ballots.answered & (ballots.labels == labels)
    votes = votes * supporters
    total = votes.sum(1, keepdim=True)
    votes = torch.where(total > 0, votes, supporters.to(votes.dtype))
    # Without any supporter nobody answered: the divisor 1 leaves the weights at 0.
    weights = votes / torch.where(supporters.any(1, keepdim=True), votes.sum(1, keepdim=True), 1.0)
    silent = labels[:, 0] == NO_ANSWER
    mean = (weights * ballots.failure_probability).sum(1).clamp(0, 1)
    failure = torch.where(silent, 1.0, mean)
    abstained = silent if abstain_above is None else silent | (failure > abstain_above)
    return Decision(labels[:, 0], failure, weights, abstained)
