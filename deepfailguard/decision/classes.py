"""Rules that choose among all classes, not only among those that some version gave."""

import torch
from torch import Tensor

from deepfailguard.decision.ballots import ballots_of, check_abstain_above
from deepfailguard.errors import ConfigurationError
from deepfailguard.types import NO_ANSWER, Decision

__all__ = ["most_probable_class"]


def most_probable_class(
    labels: Tensor,
    failure_probability: Tensor,
    *,
    class_probability: Tensor,
    abstain_above: float | None = None,
) -> Decision:
    """The class that is most probably the truth, for predictors that tell class probabilities.

    It may be one that no version gave: where all versions are damaged, what they show can still tell the class.
    Versions that gave the class share the weight, by how probably they are right; where none gave it, all that
    answered share it equally.

    Args:
        labels: (B, N) int64, -1 for no answer.
        failure_probability: (B, N) floating in [0, 1].
        class_probability: (B, K) floating in [0, 1].
        abstain_above: abstain where the class is more probably wrong than this.

    >>> told = torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64)
    >>> decision = most_probable_class(torch.tensor([[0, 1]]), torch.tensor([[0.8, 0.3]]), class_probability=told)
    >>> decision.labels.tolist(), decision.weights.tolist()
    ([1], [[0.0, 1.0]])
    """
    ballots = ballots_of(labels, failure_probability)
    check_abstain_above(abstain_above)
    if class_probability.ndim != 2 or len(class_probability) != len(labels) or class_probability.shape[1] == 0:
        raise ConfigurationError(
            f"class probabilities must be ({len(labels)}, K) for these labels, got {tuple(class_probability.shape)}"
        )
    told = torch.nan_to_num(class_probability, nan=0.0)
    best = told.max(1)
    silent = ~ballots.answered.any(1)
    chosen = torch.where(silent, NO_ANSWER, best.indices)
    gave = ballots.answered & (ballots.labels == chosen[:, None])
    votes = torch.where(gave.any(1, keepdim=True), gave * (1 - ballots.failure_probability), 0.0)
    votes = torch.where(votes.sum(1, keepdim=True) > 0, votes, gave.to(votes.dtype))
    votes = torch.where(gave.any(1, keepdim=True), votes, ballots.answered.to(votes.dtype))
    weights = votes / torch.where(silent[:, None], 1.0, votes.sum(1, keepdim=True))
    failure = torch.where(silent, 1.0, (1 - best.values).clamp(0, 1))
    abstained = silent if abstain_above is None else silent | (failure > abstain_above)
    return Decision(chosen, failure, weights, abstained)
