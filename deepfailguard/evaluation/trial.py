"""Versions on trial: let any of them decide together on inputs whose truth is known."""

from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from deepfailguard.decision.base import DecisionRule
from deepfailguard.decision.rules import majority_vote
from deepfailguard.errors import DataFormatError
from deepfailguard.evaluation.coincidence import failures_of
from deepfailguard.evaluation.measures import oracle
from deepfailguard.seeding import generator

__all__ = ["TIE_AWARE_VOTE", "Outcome", "Trial", "cross_fitted_failure", "trial_of"]

TIE_AWARE_VOTE: Final[DecisionRule] = partial(majority_vote, ties="lowest_failure_probability")

_FOLDS: Final = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """How some versions did together, on the CPU.

    Attributes:
        right: (B,) bool, whether the rule was right. Where it abstained, the answer that it preferred counts.
        headroom: (B,) float64, 1 where some version was right but the tie-aware majority vote was not, else 0; its
            mean is the headroom.
    """

    right: Tensor
    headroom: Tensor


@dataclass(frozen=True, slots=True)
class Trial:
    """M versions that may be combined at will. Made by `trial_of`, which checks that the parts fit.

    Attributes:
        labels: (B, M) int64, -1 for no answer.
        truth: (B,) int64.
        failure_probability: (B, M) floating in [0, 1], known without the truth of the input.
        rule: decides.
    """

    labels: Tensor
    truth: Tensor
    failure_probability: Tensor
    rule: DecisionRule

    def of(self, versions: list[int]) -> Outcome:
        """Let these versions, in this order, decide together."""
        labels, failure_probability = self.labels[:, versions], self.failure_probability[:, versions]
        right = self.rule(labels, failure_probability).labels == self.truth
        voted = TIE_AWARE_VOTE(labels, failure_probability).labels == self.truth
        return Outcome(right.cpu(), (oracle(labels, self.truth) & ~voted).cpu().double())


def trial_of(
    labels: Tensor, truth: Tensor, rule: DecisionRule, failure_probability: Tensor | None, *, seed: int
) -> Trial:
    """Check the parts of a trial.

    Args:
        labels: (B, M) int64, -1 for no answer.
        truth: (B,) int64 in [0, K).
        rule: decides.
        failure_probability: (B, M) in [0, 1], by predictors that did not learn from the input that they judge; if
            None, each version's cross-fitted share of wrong answers (`cross_fitted_failure`).
        seed: of the folds.

    Raises:
        DataFormatError: the parts do not fit together, or there are no inputs.
    """
    failed = failures_of(labels, truth)
    if failure_probability is None:
        failure_probability = cross_fitted_failure(failed, seed=seed).to(labels.device)
    if failure_probability.shape != labels.shape:
        raise DataFormatError(
            f"failure probabilities must be {tuple(labels.shape)}, a column for each version and then for each "
            f"candidate, got {tuple(failure_probability.shape)}"
        )
    return Trial(labels, truth, failure_probability, rule)


def cross_fitted_failure(failed: Tensor, *, seed: int, folds: int = _FOLDS) -> Tensor:
    """Each version's share of wrong answers on the other folds, so that no input has a say in its own decision.

    Smoothed by Laplace's (wrong + 1) / (n + 2): 1/2 where there is no other fold.

    Args:
        failed: (B, M) bool, where a version is wrong.
        seed: of the division into folds.
        folds: how many; those beyond B are empty.

    Returns:
        (B, M) float64 in (0, 1), on the CPU.

    >>> cross_fitted_failure(torch.tensor([[True], [False]]), seed=0).flatten().tolist()
    [0.3333333333333333, 0.6666666666666666]
    """
    failed = failed.detach().cpu()
    inputs = len(failed)
    fold = torch.randperm(inputs, generator=generator(seed, "folds")) % folds
    member = torch.nn.functional.one_hot(fold, folds).double()
    wrong = failed.double()
    elsewhere = wrong.sum(0) - member.T @ wrong  # (folds, M)
    size = inputs - member.sum(0)[:, None]
    return ((elsewhere + 1) / (size + 2))[fold]
