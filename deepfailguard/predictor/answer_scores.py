"""Single numbers that tell how far a version's answer can be trusted: each grows with trust."""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from deepfailguard.errors import DataFormatError
from deepfailguard.predictor.class_posterior import heard
from deepfailguard.predictor.joint.opinions import Voice
from deepfailguard.types import Evidence

__all__ = [
    "DISTANCE_SCORES",
    "FEATURE_SCORES",
    "SCORES",
    "STABILITY_SCORES",
    "Score",
    "logit_scores",
    "score_columns",
]

Score = Literal[
    "confidence", "margin", "gap", "entropy", "energy", "distance", "typicality", "second_opinion", "stability"
]
"""What `score_columns` can give."""

SCORES: Final[tuple[str, ...]] = get_args(Score)
DISTANCE_SCORES: Final = frozenset({"distance"})
FEATURE_SCORES: Final = frozenset({"typicality", "second_opinion"})
STABILITY_SCORES: Final = frozenset({"stability"})
"""What is in none of these three comes of logits."""

_LOGIT_SCORES: Final = frozenset(SCORES) - DISTANCE_SCORES - FEATURE_SCORES - STABILITY_SCORES
_TINY: Final = torch.finfo(torch.float64).tiny
_ONE: Final = 1 - torch.finfo(torch.float32).eps / 2  # the last float32 below 1: what is nearer cannot be told from it


def score_columns(
    wanted: Sequence[str], evidence: Evidence, column: int, scaled: Tensor, voice: Voice | None = None
) -> Tensor:
    """Scores of one version's answers, (B, S) float64 on the CPU; NaN where one is not known.

    With z the logits times the version's calibrated sharpness, p their softmax, p1 >= p2 the largest ones:

    ==============  =========================================================================================
    score           value
    ==============  =========================================================================================
    confidence      log p1 / (1 - p1): ordered as the maximum softmax, but not crowded at 1
    margin          log (1 + m) / (1 - m) of m = p1 - p2: ordered as m
    gap             log p1 / p2: the difference of the two largest z
    entropy         -log of the entropy -sum p log p
    energy          log sum exp z (Liu et al., 2020)
    distance        square root of the boundary distance; not known if none was found or it is not finite
    typicality      -log of the features' distance to the nearest class mean of the voice's head, over the usual one
    second_opinion  log odds of the version's answer by the voice's head
    stability       log odds of the mean probability that it keeps its answer when the input is changed slightly,
                    within 16.6 of zero
    ==============  =========================================================================================

    Nothing of logits is known where the version did not answer or a logit is not finite, or where there is only one
    class; nothing of features without a head, or where a feature is not finite; no stability where it is NaN.

    Args:
        wanted: S of them, in this order.
        evidence: (B, N), with features or stability if one of their scores is wanted.
        column: the version's.
        scaled: (B, K) float64, its logits times its sharpness.
        voice: its head, if a score of features is wanted.

    Raises:
        DataFormatError: the stability is wanted and the evidence holds none.
    """
    known = _distance_scores(evidence, column)
    if set(wanted) & _LOGIT_SCORES:
        said = heard(evidence)[:, column].to(scaled.device)
        known |= {name: torch.where(said, each, torch.nan) for name, each in logit_scores(scaled).items()}
    if set(wanted) & FEATURE_SCORES:
        known |= _feature_scores(evidence, column, voice)
    if set(wanted) & STABILITY_SCORES:
        known |= _stability_scores(evidence, column)
    columns = torch.stack([known[name].cpu() for name in wanted], 1)
    return torch.where(columns.isfinite() & evidence.answered[:, column, None].cpu(), columns, torch.nan)


def logit_scores(scaled: Tensor) -> dict[str, Tensor]:
    """The scores (B,) float64 of scaled logits (B, K) by the table of `score_columns`; not finite where not known.

    >>> scores = logit_scores(torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64).log1p())
    >>> [round(float(scores[name].exp()), 3) for name in ("confidence", "gap", "energy")]
    [2.0, 4.0, 6.0]
    """
    if scaled.shape[1] == 1:  # no second class to compare with
        return dict.fromkeys(_LOGIT_SCORES, torch.full((len(scaled),), torch.nan, dtype=torch.float64))
    log_p = scaled.log_softmax(1)
    top, at = log_p.topk(2, dim=1)
    rest = log_p.scatter(1, at[:, :1], -torch.inf).logsumexp(1)  # log (1 - p1), exact where p1 is almost 1
    first, second = top.unbind(1)
    return {
        "confidence": first - rest,
        "margin": torch.log1p(first.exp() - second.exp()) - torch.logaddexp(rest, second),
        "gap": first - second,
        "entropy": -torch.special.entr(log_p.exp()).sum(1).clamp_min(_TINY).log(),
        "energy": scaled.logsumexp(1),
    }


def _distance_scores(evidence: Evidence, column: int) -> dict[str, Tensor]:
    size = evidence.distance[:, column].double()
    return {"distance": torch.where(evidence.found[:, column] & (size >= 0), size, torch.nan).sqrt()}


def _stability_scores(evidence: Evidence, column: int) -> dict[str, Tensor]:
    if evidence.stability is None:
        raise DataFormatError("the scores need evidence with stability; ask the versions for it")
    return {"stability": evidence.stability[:, column].double().clamp(1 - _ONE, _ONE).logit()}


def _feature_scores(evidence: Evidence, column: int, voice: Voice | None) -> dict[str, Tensor]:
    features = None if evidence.features is None else evidence.features[column]
    unknown = torch.full((len(evidence),), torch.nan, dtype=torch.float64)
    if features is None or voice is None or voice.head is None or features.shape[1] != len(voice.head.mean):
        return dict.fromkeys(FEATURE_SCORES, unknown)
    said, distance = voice.head(features)
    said = (said * voice.head_sharpness).log_softmax(1)
    label = evidence.labels[:, column, None].clamp_min(0).to(said.device)
    others = said.scatter(1, label, -torch.inf).logsumexp(1)
    usable = features.isfinite().all(1).to(said.device)
    scores = {
        "typicality": -(distance / voice.usual).clamp_min(_TINY).log(),
        "second_opinion": said.gather(1, label).squeeze(1) - others,
    }
    return {name: torch.where(usable, value, torch.nan) for name, value in scores.items()}
