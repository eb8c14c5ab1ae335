"""`GuardedPredictor`: several versions that answer as one, and know when not to."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.data.base import ImageSet
from deepfailguard.decision.base import Rule
from deepfailguard.decision.risk import RiskBound
from deepfailguard.guard.answering import answerable, verdict_of
from deepfailguard.guard.asking import Answers
from deepfailguard.guard.calibrating import (
    calibrate,
    check_inside,
    check_labels,
    distance_for,
    estimator_for,
    fit_to_loaded,
    make_card,
)
from deepfailguard.guard.calibration import learned
from deepfailguard.guard.canary import check_canary, take_canary
from deepfailguard.guard.classifier import Classifier
from deepfailguard.guard.enrolling import Models, enrol
from deepfailguard.guard.judging import check_together, rule_for
from deepfailguard.guard.loading import load_versions
from deepfailguard.guard.promises import GuardedSets, bounded_decision, kept_apart, promised_sets
from deepfailguard.guard.saved import SavedGuard, load_guard, save_guard
from deepfailguard.guard.turns import ask_versions
from deepfailguard.guard.updating import Update, checked_labelled, retaken, service_evidence, updated, with_canary
from deepfailguard.guard.verdict import Verdict
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.types import NO_ANSWER, Bounds
from deepfailguard.versions.pool import TRUSTED_PACKAGES
from deepfailguard.versions.version import Version

__all__ = ["GuardedPredictor"]

_MADE_ANEW = ("_one_at_a_time", "_updating", "_estimators")  # by a copy


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
        self._updating = threading.Lock()
        self._estimators = [estimator_for(version, self.saved.distance, self.cache) for version in self.versions]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _MADE_ANEW}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._start()

    def __repr__(self) -> str:
        return f"GuardedPredictor of {self.saved.summary}"

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
            predictor: learns failure probabilities; `JointPredictor` if None. It stays as it is: a copy is fitted.
            decision: from failure probabilities to one answer; if None the most probable class where the predictor
                tells class probabilities, else the answer of the version that is most probably right.
            distance: tells boundary distances, if the predictor needs them; the balanced search if None. One that
                learns from a search is fitted to every version here.
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
        check_inside(data.images, bounds, "calibration")
        enrolled = enrol(versions, data.images[:1], None if classes is None else len(classes), bounds)
        names = tuple(classes) if classes is not None else tuple(map(str, range(enrolled[0].classes)))
        check_labels(data.labels, len(names), "calibration")
        predictor = predictor if predictor is not None else JointPredictor()
        decision = decision if decision is not None else rule_for(predictor)
        check_together(predictor, decision)
        distance = fit_to_loaded(enrolled, distance_for(predictor, distance, bounds), data.images, cache)
        estimators = [estimator_for(version, distance, cache) for version in enrolled]
        heard = calibrate(enrolled, estimators, data, predictor, bounds)
        card = make_card(enrolled, names, bounds, data, heard)
        canary = take_canary(enrolled, data.images, data.labels)
        saved = SavedGuard(card, learned(predictor, heard), decision, distance, heard, canary=canary)
        return cls(enrolled, saved, cache)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Verdict:
        """Answer a batch.

        A version that fails is left out and named in ``verdict.health``; an input that is not finite or out of
        bounds is left unanswered and named in ``verdict.problems``. Neither touches the other answers. Threads that
        call it together are served one after the other.

        Args:
            images: (B, C, H, W) floating point on any device, of the calibration images' size, B >= 0.

        Raises:
            DataFormatError: the batch has another shape or dtype.
        """
        good, asked = answerable(images, self.saved.card)
        saved, answers = self.ask(asked)
        return verdict_of(saved, answers, good, len(images))

    def ask(self, images: Tensor, columns: Sequence[int] | None = None) -> tuple[SavedGuard, list[Answers]]:
        """Answers of the versions, and what there is to judge them by.

        Args:
            images: (B, C, H, W) float32, finite and in the bounds.
            columns: positions of the versions that are asked; all if None.
        """
        columns = range(len(self.models)) if columns is None else columns
        with self._one_at_a_time:  # an update must not come between asking and judging
            versions, estimators = [self.versions[c] for c in columns], [self._estimators[c] for c in columns]
            return self.saved, ask_versions(versions, estimators, images, self.saved.predictor)

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
            ConfigurationError: the guard learned from some of these images, or they are too few (or answered wrong
                too often) for the promise; the message says what would do.
        """
        now = self._derived(*self._now())
        data, rule = kept_apart(labelled, now.saved), now.saved.decision
        decision, bound = bounded_decision(now, data, rule, risk=risk, confidence=confidence)
        return self._derived(now.versions, replace(now.saved, decision=decision)), bound

    def prediction_sets(
        self, labelled: ImageSet | tuple[Tensor, Tensor], *, miss_rate: float, by_class: bool = False
    ) -> GuardedSets:
        """A function from images to sets of classes (B, K) bool that lack the true class at most this often.

        The promise holds on average over inputs from the same source as these. An input without an answer has every
        class. The sets are those of the guard as it is now: it is not touched by later updates.

        Args:
            labelled: images with labels that neither a version was trained nor this guard was fitted on.
            miss_rate: in (0, 1).
            by_class: keep the promise for the inputs of each class alone.

        Raises:
            ConfigurationError: the guard learned from some of these images.
        """
        now = self._derived(*self._now())
        return promised_sets(now.predict_proba, kept_apart(labelled, now.saved), miss_rate=miss_rate, by_class=by_class)

    def update(self, images: Tensor, labels: Tensor) -> Update:
        """Learn from labelled inputs of service, in place: all that came so far, or nothing if that is better.

        Three predictors are compared on these inputs in cross-validation: the one that was calibrated, one that
        learned from them too, and one that learned from them alone (where a version broke, say). They are kept, the
        newest 5,000, and saved with the guard, until weights change. Other threads are answered in the meantime. What
        `promising` found for the guard as it was does not hold for another one: ask for it again.

        Args:
            images: (B, C, H, W) floating point, B >= 1, finite and in the bounds; none of calibration.
            labels: (B,) int64, the true classes.

        Raises:
            DataFormatError: the inputs do not fit; nothing was changed.
        """
        data = checked_labelled(images, labels, self.saved)
        with self._updating:
            versions, now = retaken(self.versions, self.saved)
            estimators = [estimator_for(version, now.distance, self.cache) for version in versions]
            with self._one_at_a_time:
                evidence = service_evidence(versions, estimators, data.images, self.saved)
                now = with_canary(now, versions, self.saved)
            saved, update = updated(self.saved, now, evidence, data)
            with self._one_at_a_time:
                if saved.card.fingerprints != self.saved.card.fingerprints:
                    self.versions, self._estimators = tuple(versions), estimators
                self.saved = saved
        return update

    def without(self, names: Sequence[str]) -> Self:
        """A guard of the other versions; the models are shared with this one, and none is asked.

        Its predictor is fitted anew on what is kept. A risk that was promised is so no longer.

        Args:
            names: versions to leave out.

        Raises:
            ConfigurationError: there is no such version, none would be left, or the decision answers by it alone.
        """
        versions, saved = self._now()
        columns = saved.card.columns_without(names)
        return self._derived([versions[column] for column in columns], saved.of_versions(columns))

    def _now(self) -> tuple[Sequence[Version], SavedGuard]:
        """Versions and what was learned of them: an update must not come in between."""
        with self._one_at_a_time:
            return self.versions, self.saved

    def _derived(self, versions: Sequence[Version], saved: SavedGuard) -> Self:
        """Another guard of the same models."""
        guard = type(self)(versions, saved, self.cache)
        guard._one_at_a_time = self._one_at_a_time  # asking changes a model's mode, whoever asks
        return guard

    def as_classifier(self) -> Classifier:
        """A module from images to log-probabilities (B, K), for code that expects an ordinary classifier."""
        return Classifier(self)

    def save(self, folder: Path | str) -> None:
        """Write the guard with its versions' weights as one folder; an error leaves what is there as it was.

        Raises:
            ConfigurationError: weights changed since it learned, a part cannot be described, or other things are there.
        """
        versions, saved = self._now()
        save_guard(Path(folder), saved, [version.model for version in versions])

    @classmethod
    def load(
        cls,
        folder: Path | str,
        models: Sequence[nn.Module] | Mapping[str, nn.Module] | None = None,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
        trusted: Sequence[str] = TRUSTED_PACKAGES,
        public_key: Path | str | None = None,
    ) -> Self:
        """Read what `save` wrote, verify every file, and that the versions answer as they did.

        Args:
            folder: of the guard.
            models: modules of the versions' architectures in their order or by name, for versions that
                deepfailguard did not train; their weights are overwritten by those of the folder.
            device: where the versions shall run.
            cache: folder of cached distances.
            trusted: packages whose classes the folder may name.
            public_key: file of the key by which the guard must be signed; it need not be if None.

        Raises:
            StoreError: a file is lost or was changed, or the guard is not signed so.
            WrongOutputError: a version's code is no longer that of `fit`.
        """
        saved = load_guard(Path(folder), trusted, None if public_key is None else Path(public_key))
        guard = cls(load_versions(Path(folder), saved.card, trusted, models), saved, cache).to(device)
        check_canary(saved.canary, guard.versions)
        return guard
