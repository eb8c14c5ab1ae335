"""`GuardedPredictor`: several versions that answer as one, and know when not to."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.data.base import ImageSet
from deepfailguard.decision.base import Rule
from deepfailguard.decision.risk import RiskBound, bound_risk
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.faults.rehearsal import Rehearsal
from deepfailguard.guard.asking import Answers, evidence_of
from deepfailguard.guard.calibrating import (
    check_inside,
    check_labels,
    estimator_for,
    fit_to_loaded,
    gather,
    make_card,
    rehearsed_evidence,
)
from deepfailguard.guard.classifier import Classifier
from deepfailguard.guard.enrolling import Models, enrol
from deepfailguard.guard.judging import check_together, judge, rule_for, with_threshold
from deepfailguard.guard.saved import SavedGuard, load_guard, load_versions, save_guard
from deepfailguard.guard.turns import ask_versions
from deepfailguard.guard.verdict import Verdict
from deepfailguard.identity import TARGET, describe
from deepfailguard.predictor.base import FailurePredictor, RehearsingPredictor
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.types import NO_ANSWER, Bounds, Evidence
from deepfailguard.versions.pool import TRUSTED_PACKAGES
from deepfailguard.versions.version import Version

__all__ = ["GuardedPredictor"]

_PIECE = 256


class GuardedPredictor(nn.Module):
    """Several versions that answer as one, weighed for each input by how probably each is wrong.

    Made by `fit` or `load`. It is a module: ``guard.to("cuda")`` moves every version.

    Example:
        guard = GuardedPredictor.fit([model_a, model_b, model_c], (images, labels))
        verdict = guard(new_images)
        verdict.labels, verdict.failure_probability, verdict.abstained
        print(verdict.explain(0))
    """

    def __init__(self, versions: Sequence[Version], saved: SavedGuard, cache: Path | None = None) -> None:
        super().__init__()
        self.versions = tuple(versions)
        self.models = nn.ModuleList([version.model for version in versions])
        self.saved = saved
        self.cache = cache
        self._start()

    def _start(self) -> None:
        """What a copy must make anew: a lock and the open caches."""
        self._one_at_a_time = threading.Lock()  # asking changes a model's mode for a moment
        self._estimators = [estimator_for(version, self.saved.distance, self.cache) for version in self.versions]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_one_at_a_time", "_estimators")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._start()

    def __repr__(self) -> str:
        card = self.saved.card
        rates = ", ".join(f"{n} ({a:.1%})" for n, a in zip(card.names, card.calibration_accuracy, strict=True))
        return (
            f"GuardedPredictor of {len(card.names)} versions, "
            f"right on {card.calibration_size} calibration inputs: {rates}; "
            f"{type(self.saved.predictor).__name__}, {describe(self.saved.decision)[TARGET].rpartition('.')[2]}"
        )

    @classmethod
    def fit(
        cls,
        versions: Models,
        calibration: ImageSet | tuple[Tensor, Tensor],
        *,
        predictor: FailurePredictor | None = None,
        decision: Rule | None = None,
        distance: DistanceEstimator | None = None,
        classes: Sequence[str] | None = None,
        bounds: Bounds | None = None,
        cache: Path | None = None,
    ) -> Self:
        """Learn on calibration data when each version is wrong.

        Args:
            versions: trained models (or a dict of them by name, or `Version` objects) from images inside the
                bounds to logits; each stays as it is and where it is.
            calibration: images (B, C, H, W) float32 with labels (B,) int64 that no version was trained on.
            predictor: learns failure probabilities; `JointPredictor` if None.
            decision: from failure probabilities to one answer; if None the most probable class where the predictor
                tells class probabilities, else the answer of the version that is most probably right.
            distance: tells boundary distances; the balanced search if None. One that learns from a search is fitted
                to every version here.
            classes: K class names; "0".."K-1" if None.
            bounds: range of the input values; [0, 1] if None.
            cache: folder that keeps distances, so that fitting again (or going on after a kill) is cheap.

        Raises:
            ConfigurationError: the decision wants more than the predictor tells.
            DataFormatError: calibration data are not finite, out of bounds, or labelled outside the classes.
            WrongOutputError: a version fails on calibration data or answers for another number of classes.
        """
        data = calibration if isinstance(calibration, ImageSet) else ImageSet(*calibration)
        bounds = bounds or Bounds()
        check_inside(data.images, bounds)
        enrolled = enrol(versions, data.images[:1], None if classes is None else len(classes), bounds)
        names = tuple(classes) if classes is not None else tuple(map(str, range(enrolled[0].classes)))
        check_labels(data.labels, len(names))
        predictor = predictor if predictor is not None else JointPredictor()
        decision = decision if decision is not None else rule_for(predictor)
        check_together(predictor, decision)
        if distance is None and "distances" in predictor.needs:
            distance = BoundarySearch(low=bounds.low, high=bounds.high)
        distance = fit_to_loaded(enrolled, distance, data.images, cache)
        estimators = [estimator_for(version, distance, cache) for version in enrolled]
        evidence = gather(enrolled, estimators, data.images, predictor.needs)
        correct = evidence.labels == data.labels.cpu()[:, None]
        card = make_card(enrolled, names, bounds, data, correct)
        learned = _learn(predictor, evidence, data, enrolled, bounds)
        return cls(enrolled, SavedGuard(card, learned, decision, distance), cache)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Verdict:
        """Answer a batch.

        A version that fails is left out and named in ``verdict.health``; an input that is not finite or out of
        bounds is left unanswered and named in ``verdict.problems``. Neither touches the other answers.

        Threads may call it together; they are served one after the other.

        Args:
            images: (B, C, H, W) floating point on any device, of the calibration images' size, B >= 0.

        Raises:
            DataFormatError: the batch has another shape or dtype.
        """
        images = self._checked(images)
        outside = self.saved.card.bounds.outside(images) if len(images) else torch.zeros(0, dtype=torch.bool)
        good = (~outside).nonzero().flatten().cpu()
        asked = images[good.to(images.device)]
        with self._one_at_a_time:
            answers = ask_versions(self.versions, self._estimators, asked, self.saved.predictor)
        return self._verdict(answers, good, len(images))

    def predict(self, images: Tensor) -> Tensor:
        """Labels (B,) int64; -1 where the guard abstains."""
        verdict: Verdict = self(images)
        return torch.where(verdict.abstained, NO_ANSWER, verdict.labels)

    def predict_proba(self, images: Tensor) -> Tensor:
        """Class probabilities (B, K): the predictor's, or the versions' softmax outputs weighted by the decision."""
        verdict: Verdict = self(images)
        return verdict.probabilities

    def promising(
        self, labelled: ImageSet | tuple[Tensor, Tensor], *, risk: float, confidence: float = 0.95
    ) -> tuple[Self, RiskBound]:
        """A guard of the same versions that abstains so often that at most a share `risk` of its answers is wrong.

        The promise holds for inputs from the same source as these, with this confidence over their draw.

        Args:
            labelled: images with labels that neither a version was trained nor this guard was fitted on.
            risk: largest share of wrong answers among those that are given, in (0, 1).
            confidence: in (0, 1).

        Raises:
            ConfigurationError: the guard was fitted on these images, or they are too few (or too often answered
                wrong) for the promise; the message says what would do.
        """
        data = labelled if isinstance(labelled, ImageSet) else ImageSet(*labelled)
        if data.fingerprint == self.saved.card.calibration_fingerprint:
            raise ConfigurationError(
                "the guard was fitted on these very images, on which it looks better than it is; "
                "keep some labelled images apart and pass those"
            )
        verdicts = [self(piece) for piece in data.images.split(_PIECE)]
        failure = torch.cat([verdict.failure_probability for verdict in verdicts])
        answers = torch.cat([verdict.labels for verdict in verdicts]).cpu()
        bound = bound_risk(failure, answers != data.labels.cpu(), risk=risk, confidence=confidence)
        if not bound.guaranteed:
            raise ConfigurationError(bound.explain())
        decision = with_threshold(self.saved.decision, bound.threshold)
        return type(self)(self.versions, replace(self.saved, decision=decision), self.cache), bound

    def as_classifier(self) -> Classifier:
        """A module from images to log-probabilities (B, K), for code that expects an ordinary classifier."""
        return Classifier(self)

    def save(self, folder: Path | str) -> None:
        """Write the guard with its versions' weights as one folder."""
        save_guard(Path(folder), self.saved, list(self.models))

    @classmethod
    def load(
        cls,
        folder: Path | str,
        models: Sequence[nn.Module] | Mapping[str, nn.Module] | None = None,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
        trusted: Sequence[str] = TRUSTED_PACKAGES,
    ) -> Self:
        """Read what `save` wrote, and verify every file.

        Args:
            folder: of the guard.
            models: modules of the versions' architectures in their order or by name, for versions that
                deepfailguard did not train; their weights are overwritten by those of the folder.
            device: where the versions shall run.
            cache: folder of cached distances.
            trusted: packages whose classes the folder may name.
        """
        saved = load_guard(Path(folder), trusted)
        guard = cls(load_versions(Path(folder), saved.card, trusted, models), saved, cache)
        return guard.to(device)

    def _checked(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            raise DataFormatError(
                f"expected a torch tensor of images, got a {type(images).__name__}; torch.as_tensor it"
            )
        expected = self.saved.card.input_shape
        if images.ndim != 4:
            raise DataFormatError(
                f"expected images (B, C, H, W), got shape {tuple(images.shape)}; add the batch dimension"
            )
        if tuple(images.shape[1:]) != expected:
            raise DataFormatError(
                f"expected images of shape {expected} as in calibration, got {tuple(images.shape[1:])}"
            )
        if not images.is_floating_point():
            bounds = self.saved.card.bounds
            raise DataFormatError(
                f"expected floating point images in [{bounds.low}, {bounds.high}], got {images.dtype}"
            )
        return images.float()

    def _verdict(self, answers: list[Answers], good: Tensor, batch: int) -> Verdict:
        evidence = evidence_of(answers, self.saved.predictor.needs)
        judgement = judge(evidence, self.saved.predictor, self.saved.decision)
        decision = judgement.decision
        probabilities = judgement.class_probability
        if probabilities is None:
            softmax = torch.stack([answer.probabilities for answer in answers], dim=1)
            probabilities = (softmax * decision.weights[:, :, None].to(softmax.dtype)).sum(1)
        positions = set(good.tolist())
        low, high = self.saved.card.bounds.low, self.saved.card.bounds.high
        problem = f"it has values that are NaN or outside [{low}, {high}]"
        return Verdict(
            labels=_spread(decision.labels, good, batch, NO_ANSWER),
            failure_probability=_spread(decision.failure_probability, good, batch, 1.0),
            abstained=_spread(decision.abstained, good, batch, True),
            weights=_spread(decision.weights, good, batch, 0.0),
            probabilities=_spread(probabilities, good, batch, 0.0),
            version_labels=_spread(evidence.labels, good, batch, NO_ANSWER),
            version_failure_probability=_spread(judgement.failure_probability, good, batch, 1.0),
            distance=_spread(evidence.distance, good, batch, 0.0),
            found=_spread(evidence.found, good, batch, False),
            health=tuple(answer.health for answer in answers),
            problems={i: problem for i in range(batch) if i not in positions},
            classes=self.saved.card.classes,
            measured=self.saved.distance is not None,
        )


def _learn(
    predictor: FailurePredictor,
    evidence: Evidence,
    data: ImageSet,
    versions: Sequence[Version],
    bounds: Bounds,
) -> FailurePredictor:
    """The predictor, fitted; it rehearses if that is its way."""
    truth = data.labels.cpu()
    if isinstance(predictor, RehearsingPredictor) and predictor.rehearse and "distances" not in predictor.needs:
        rehearsal = Rehearsal(inputs=predictor.rehearse)
        return predictor.fit(evidence, truth, rehearsed_evidence(versions, data, rehearsal, bounds, predictor.needs))
    return predictor.fit(evidence, truth)


def _spread(values: Tensor, positions: Tensor, batch: int, otherwise: float) -> Tensor:
    """Put the values of the judged inputs in their places among all inputs of the batch."""
    if len(positions) == batch:
        return values
    whole = torch.full((batch, *values.shape[1:]), otherwise, dtype=values.dtype)
    whole[positions] = values.cpu()
    return whole
