"""What of versions' answers is watched: numbers that need no truth, one of each kind per version."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.types import NO_ANSWER, Evidence, Need

__all__ = ["SCORES", "disagreement", "scores_of", "statistics_of", "usable_scores"]


def _confidence(evidence: Evidence) -> Tensor:
    return _logits(evidence).softmax(2).amax(2)


def _largest_logit(evidence: Evidence) -> Tensor:
    return _logits(evidence).amax(2)


def _log_sum(evidence: Evidence) -> Tensor:
    return _logits(evidence).logsumexp(2)


def _feature_size(evidence: Evidence) -> Tensor:
    assert evidence.features is not None  # `usable_scores` has seen to it
    return torch.stack([each.double().norm(dim=1) for each in evidence.features], 1)


def _distance(evidence: Evidence) -> Tensor:
    """Infinite where none was found: as far as can be."""
    return torch.where(evidence.found, evidence.distance.double(), torch.inf)


def _stability(evidence: Evidence) -> Tensor:
    assert evidence.stability is not None  # `usable_scores` has seen to it
    return evidence.stability.double()


def _logits(evidence: Evidence) -> Tensor:
    assert evidence.logits is not None  # `usable_scores` has seen to it
    return evidence.logits.double()


SCORES: Final[Mapping[str, tuple[Need, Callable[[Evidence], Tensor]]]] = {
    "confidence": ("logits", _confidence),
    "largest logit": ("logits", _largest_logit),
    "logsumexp": ("logits", _log_sum),
    "feature size": ("features", _feature_size),
    "stability": ("stability", _stability),
    "distance": ("distances", _distance),
}


def disagreement(labels: Tensor) -> Tensor:
    """Whether each version's answer is none of the leading answers of the other versions, (B, N) bool.

    False where no other version answered. No answer (-1) disagrees with any answer and counts for none.

    Args:
        labels: (B, N) int64, N >= 1.

    >>> disagreement(torch.tensor([[4, 7, 7], [4, 7, 9], [4, -1, -1]])).tolist()
    [[True, False, False], [True, True, True], [False, True, True]]
    """
    answered = labels != NO_ANSWER
    same = (labels[:, :, None] == labels[:, None, :]) & answered[:, :, None] & answered[:, None, :]
    support = same.sum(2)
    # How many others gave the answer of i, as seen by j: j's own vote counts for nothing.
    seen = support[:, :, None] - same.int()
    others = ~torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    leading = (seen * others).amax(1)
    return support - answered.int() < leading


def usable_scores(evidence: Evidence) -> tuple[str, ...]:
    """Names of those of `SCORES` that such evidence tells."""
    there = _there(evidence) - (set() if evidence.found.any() else {"distances"})
    return tuple(name for name, (need, _) in SCORES.items() if need in there)


def scores_of(evidence: Evidence, names: Sequence[str]) -> dict[str, Tensor]:
    """Scores (B, N) float64 of versions' answers by name; what they are where a version did not answer is arbitrary.

    Raises:
        ConfigurationError: a name that is none of `SCORES`, or whose evidence is not there.
    """
    there = _there(evidence)
    missing = [name for name in names if name not in SCORES or SCORES[name][0] not in there]
    if missing:
        raise ConfigurationError(
            f"the scores {missing} cannot be had from this evidence; name some of {list(usable_scores(evidence))}"
        )
    return {name: SCORES[name][1](evidence) for name in names}


def _there(evidence: Evidence) -> set[Need]:
    told: dict[Need, object] = {
        "logits": evidence.logits,
        "features": evidence.features,
        "stability": evidence.stability,
    }
    return {"distances", *(need for need, found in told.items() if found is not None)}


def statistics_of(
    labels: Tensor, scores: Mapping[str, Tensor], names: Sequence[str], active: Tensor | None = None
) -> Tensor:
    """All statistics (B, N * statistics per version) float64 on the CPU, the most extreme as +inf.

    For each version its disagreement (for two versions and more), then the named scores.

    Args:
        labels: (B, N) int64, -1 for no answer.
        scores: (B, N) floating per name.
        names: that are expected, in their order.
        active: (N,) bool, whose labels count; all if None.

    Raises:
        DataFormatError: other shapes, or other scores than are expected.
    """
    _check(labels, scores, names)
    labels = labels.detach().cpu() if active is None else torch.where(active, labels.detach().cpu(), NO_ANSWER)
    columns = [scores[name].detach().cpu().double() for name in names]
    if labels.shape[1] > 1:
        columns.insert(0, disagreement(labels).double())
    if not columns:
        return torch.zeros(len(labels), 0, dtype=torch.float64)
    values = torch.stack(columns, dim=2)
    extreme = values.isnan() | (labels == NO_ANSWER)[:, :, None]
    return torch.where(extreme, torch.inf, values).flatten(1)


def _check(labels: Tensor, scores: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    if labels.ndim != 2 or labels.shape[1] == 0 or labels.dtype != torch.int64:
        raise DataFormatError(
            f"labels must be int64 (B, N) with N >= 1 versions, got {labels.dtype} {tuple(labels.shape)}; "
            "give one column per version"
        )
    if set(scores) != set(expected):
        raise DataFormatError(
            f"expected the scores {sorted(expected)}, got {sorted(scores)}; name them in scores=[...]"
        )
    for name, score in scores.items():
        if score.shape != labels.shape or not score.is_floating_point():
            raise DataFormatError(
                f"score {name!r} must be floating {tuple(labels.shape)} like the labels, "
                f"got {score.dtype} {tuple(score.shape)}"
            )
