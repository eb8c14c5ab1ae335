"""`ScoresPredictor`: each version judged alone, by what confidence, margin, distance and others say together."""

from collections.abc import Sequence
from typing import ClassVar, Final, Self, get_args

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.predictor.answer_scores import (
    DISTANCE_SCORES,
    FEATURE_SCORES,
    SCORES,
    STABILITY_SCORES,
    Score,
    score_columns,
)
from deepfailguard.predictor.checks import check_calibration, check_evidence, check_fitted
from deepfailguard.predictor.class_posterior import CalibratedSoftmax
from deepfailguard.predictor.joint.opinions import Voice, fit_voice
from deepfailguard.predictor.score_calibration import Calibration
from deepfailguard.predictor.score_model import Regression, ScoreModel, fit_score_model
from deepfailguard.predictor.states import below, under
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence, Need

__all__ = ["ScoresPredictor"]

_FOLDS: Final = 5


class ScoresPredictor:
    """P(wrong | scores of this answer), one small model per version.

    The scores and their formulas stand in `score_columns`. They are standardised; a score outside the range of
    calibration counts as the nearest end; one that is missing (no distance found, a feature that is not finite)
    counts as the mean, and that it is missing counts by itself. Scores of features come from a head that was fitted
    on calibration inputs, and the model learns from those of heads that did not see the input ("cross-fitted"). So does
    a calibration: it learns from log odds of models that did not see the answer.

    With n calibration answers of a version, its failure probability p becomes (n p + 1) / (n + 2): never 0, never 1
    (Venn-Abers probabilities are in that range as they come). A version that was never wrong, or never right, has the
    same p for all answers; fewer than two wrong or two right ones leave nothing to hold out, so there is no calibration
    and no boosting.

    Args:
        evidence: which scores, each once. The second opinion tells most of versions that a fault spoilt.
        model: "logistic" regression, or "boosting": shallow trees, as many as cross-validation bears out, perhaps none.
            They see what scores tell together, like a small distance that speaks against sure answers only; where the
            scores are log odds of one kind or other, as those of the default are, the regression is at least as good.
        calibration: upon the model's log odds: "none", "isotonic" (a monotone line; answers on a level part of it
            can no longer be told apart), or "venn_abers", which tells more of them apart and is never sure
            by luck.
        penalty: on half the squared slopes of the standardised scores, > 0; of the logistic regression.

    Attributes:
        softmax_: of the N versions.
        models_: of the N versions.
        voices_: heads on features; None each if no score of features was asked for.

    Example:
        >>> logits = torch.tensor([[[1.0, 0.0]], [[5.0, 0.0]], [[0.0, 1.0]], [[0.0, 6.0]]])
        >>> found = torch.ones(4, 1, dtype=torch.bool)
        >>> evidence = Evidence(logits.argmax(2), torch.ones(4, 1), found, logits)
        >>> predictor = ScoresPredictor(("confidence",)).fit(evidence, torch.tensor([1, 0, 0, 1]))
        >>> (predictor.failure_probability(evidence).flatten() > 0.5).tolist()
        [True, False, True, False]
    """

    judges_alone: ClassVar[bool] = True

    def __init__(
        self,
        evidence: Sequence[Score] = ("confidence", "margin", "entropy", "energy", "second_opinion"),
        model: Regression = "logistic",
        calibration: Calibration = "none",
        penalty: float = 1.0,
    ) -> None:
        if isinstance(evidence, str):
            raise ConfigurationError(f"evidence must be several scores, got {evidence!r}; put it in a list")
        if not evidence or len(set(evidence)) != len(evidence) or not set(evidence) <= set(SCORES):
            raise ConfigurationError(
                f"evidence must be some of {', '.join(SCORES)}, each once, got {', '.join(evidence) or 'nothing'}"
            )
        for name, value, known in (("model", model, Regression), ("calibration", calibration, Calibration)):
            if value not in get_args(known):
                raise ConfigurationError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        if not 0 < penalty < float("inf"):
            raise ConfigurationError(f"penalty must be > 0 and finite, got {penalty}")
        self.evidence: tuple[Score, ...] = tuple(evidence)  # hydra hands over lists of its own kind
        self.model: Regression = model
        self.calibration: Calibration = calibration
        self.penalty = penalty
        self.softmax_: CalibratedSoftmax | None = None
        self.models_: list[ScoreModel] = []
        self.voices_: list[Voice | None] = []

    @property
    def needs(self) -> frozenset[Need]:
        """Logits, and what the scores need besides."""
        wanted, extra = set(self.evidence), set[Need]()
        extra |= {"distances"} if wanted & DISTANCE_SCORES else set()
        extra |= {"features"} if wanted & FEATURE_SCORES else set()
        extra |= {"stability"} if wanted & STABILITY_SCORES else set()
        return frozenset({"logits", *extra})

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence and the true classes (B,) int64.

        Raises:
            DataFormatError: the evidence lacks the logits or features that the scores need.
        """
        correct = check_calibration(evidence, truth)
        self._check_features(evidence)
        self.softmax_ = softmax = CalibratedSoftmax.fit(evidence, truth)
        self.models_, self.voices_ = [], []
        scaled = softmax.scaled(evidence)
        for column in range(evidence.versions):
            rows = evidence.answered[:, column].nonzero().squeeze(1)
            answered, own = evidence[rows], scaled[rows, column]
            voice, scores = self._cross_fitted(answered, column, own, truth.to(rows.device)[rows])
            wrong = ~correct[rows, column].cpu()
            self.models_.append(fit_score_model(scores, wrong, self.model, self.calibration, self.penalty))
            self.voices_.append(voice)
        return self

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | its scores), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        softmax = check_fitted(self, self.softmax_)
        check_evidence(evidence, len(self.models_))
        self._check_features(evidence)
        scaled = softmax.scaled(evidence)
        columns = [
            model(score_columns(self.evidence, evidence, column, scaled[:, column], voice))
            for column, (model, voice) in enumerate(zip(self.models_, self.voices_, strict=True))
        ]
        failure = torch.stack(columns, 1).to(evidence.labels.device)
        return torch.where(evidence.answered, failure, 1.0)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        tensors = check_fitted(self, self.softmax_).state()
        for number, (model, voice) in enumerate(zip(self.models_, self.voices_, strict=True)):
            tensors |= under(f"model{number}", model.state())
            tensors |= {} if voice is None else under(f"voice{number}", voice.state())
        return tensors

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        try:
            softmax = CalibratedSoftmax.from_state(state)
            versions = range(len(softmax.sharpness))
            models = [ScoreModel.from_state(below(f"model{number}", state)) for number in versions]
            parts = [below(f"voice{number}", state) for number in versions]
            voices = [Voice.from_state(part) if part else None for part in parts]
        except KeyError as error:
            raise ConfigurationError(
                f"ScoresPredictor expects the state {error} and others, got {', '.join(sorted(state)) or 'nothing'}; "
                "pass what state() of the same class returned"
            ) from error
        self.softmax_, self.models_, self.voices_ = softmax, models, voices
        return self

    def _check_features(self, evidence: Evidence) -> None:
        if evidence.features is None and "features" in self.needs:
            raise DataFormatError("the scores need evidence with features; ask the versions for them")

    def _cross_fitted(
        self, evidence: Evidence, column: int, scaled: Tensor, truth: Tensor
    ) -> tuple[Voice | None, Tensor]:
        """A version's head, and its scores by heads that did not see the input; all inputs were answered."""
        wanted = self.evidence
        if evidence.features is None or "features" not in self.needs or not len(truth):
            return None, score_columns(wanted, evidence, column, scaled)
        fold = torch.randperm(len(truth), generator=generator(0, "scores folds")) % min(_FOLDS, max(1, len(truth) // 2))
        folds, features = int(fold.max()) + 1, evidence.features[column].cpu()
        voice, others = fit_voice(scaled.cpu(), features, truth.cpu(), scaled.shape[1], fold, folds)
        scores = torch.empty(len(truth), len(wanted), dtype=torch.float64)
        for number, other in enumerate(others):
            rows = (fold == number).nonzero().squeeze(1)
            scores[rows] = score_columns(wanted, evidence[rows], column, scaled[rows], other)
        return voice, scores
