"""`WatchedGuard`: a guard that notices without labels when a version breaks in service, and answers without it."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.answering import answerable, verdict_of
from deepfailguard.guard.asking import Answers, evidence_of
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.judging import single_position
from deepfailguard.guard.places import apart, in_places, silence
from deepfailguard.guard.quarantine import Quarantine
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.guard.statistics import scores_of, usable_scores
from deepfailguard.guard.verdict import Verdict
from deepfailguard.guard.watch_report import DISAGREEMENT, WatchReport
from deepfailguard.guard.watching import VersionWatch
from deepfailguard.identity import digest
from deepfailguard.predictor.base import SettlingPredictor
from deepfailguard.types import NO_ANSWER

__all__ = ["WATCHED", "AlarmCallback", "WatchedGuard", "scores_for"]

WATCHED = ("logsumexp", "feature size", "distance")
"""Scores that are watched by default, as far as the guard's predictor needs what they are made of."""

AlarmCallback = Callable[[WatchReport], None]

logger = logging.getLogger(__name__)


class WatchedGuard:
    """Answers like the guard, and sets versions apart that are no longer what they were in calibration.

    A version that broke is in quarantine from the batch on in which that is noticed: this batch is already answered
    by the guard of the other versions, fitted anew on what the guard kept of its calibration. Until it is released
    it is not asked. It keeps its place in the verdict's columns, without an answer, and is named in the health.

    Where the inputs changed, most versions change at once: then nobody is set apart, and the report says so. See
    `Quarantine` for the cases, `VersionWatch` for the bound on false alarms. Inputs that the guard leaves
    unanswered are not watched; a version that fails counts as one whose answers changed.

    Threads may call it together; they are served one after the other.

    Args:
        guard: fitted; it stays as it is, and may be updated.
        scores: what is watched beside the versions' disagreement; those of `WATCHED` that can be had if None.
        inputs_per_false_alarm: > 1, how many inputs there are to one false alarm at least, on average.
        on_alarm: called once with the report after each batch in which an alarm was raised or the quarantine
            changed. An error of theirs is counted in `failures` and logged, and the answer is given.
        seed: of the random numbers that order ties.

    Attributes:
        failures: how often each of `on_alarm` failed, by name.

    Example:
        watched = WatchedGuard(guard, on_alarm=[lambda report: print(report)])
        verdict = watched(images)
        watched.report().quarantined
        watched.release(["resnet"])  # after its weights were loaded again
    """

    def __init__(
        self,
        guard: GuardedPredictor,
        *,
        scores: Sequence[str] | None = None,
        inputs_per_false_alarm: float = 1_000_000.0,
        on_alarm: Sequence[AlarmCallback] = (),
        seed: int = 0,
    ) -> None:
        if isinstance(guard.saved.predictor, SettlingPredictor):
            raise ConfigurationError(
                f"{type(guard.saved.predictor).__name__} leaves versions unasked, and who is not asked cannot be "
                "watched; take a predictor that hears all versions, such as JointPredictor"
            )
        if single_position(guard.saved.decision) is not None:
            raise ConfigurationError(
                "the decision answers by a single version, without which nothing would be answered; take one that "
                "hears all versions, such as majority_vote"
            )
        evidence, names = guard.saved.calibration.evidence, guard.saved.card.names
        chosen = scores_for(guard.saved) if scores is None else tuple(scores)
        watch = VersionWatch(chosen, names=names, inputs_per_false_alarm=inputs_per_false_alarm, seed=seed)
        watch.fit(evidence.labels, scores_of(evidence, chosen))
        self.guard = guard
        self.scores = chosen
        self.inputs_per_false_alarm = inputs_per_false_alarm
        self.on_alarm = tuple(on_alarm)
        self.failures: Counter[str] = Counter()
        self._quarantine = Quarantine(watch, evidence.labels)
        self._one_at_a_time = threading.Lock()
        self._whole = guard.saved
        self._reduced: dict[tuple[int, ...], SavedGuard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_one_at_a_time"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _one_at_a_time=threading.Lock())

    def __repr__(self) -> str:
        saved, since = self.guard.saved, self._quarantine.since_  # without the lock: a debugger may stop anywhere
        watched = (DISAGREEMENT, *self.scores)[len(saved.card.names) == 1 :]  # nobody to disagree with
        apart = ", ".join(f"{saved.card.names[version]} since input {first}" for version, first in since.items())
        return (
            f"WatchedGuard of {saved.summary}; watches {', '.join(watched)}, at most one false alarm "
            f"in {self.inputs_per_false_alarm:,.0f} inputs; in quarantine: {apart or 'nobody'}"
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Verdict:
        """Answer a batch, as the guard does.

        Args:
            images: (B, C, H, W) floating point on any device, of the calibration images' size, B >= 0.

        Raises:
            DataFormatError: the batch has another shape or dtype.
        """
        good, asked = answerable(images, self.guard.saved.card)
        with self._one_at_a_time:
            answered = self._judge(*self._ask(asked), good, len(images))
        return self._told(answered)

    def judge(self, answers: Sequence[Answers], good: Tensor, batch: int) -> Verdict:
        """Watch what the versions answered, and give the verdict of those whose answers count.

        What calling the guard does after asking; for answers that were recorded.

        Args:
            answers: of all N versions to the good inputs; what versions in quarantine say does not matter.
            good: positions in the batch of the inputs that were asked about; the others are not watched.
            batch: how many inputs there are.
        """
        with self._one_at_a_time:
            answered = self._judge(self.guard.saved, answers, good, batch)
        return self._told(answered)

    def predict(self, images: Tensor) -> Tensor:
        """Labels (B,) int64; -1 where the guard abstains."""
        verdict = self(images)
        return torch.where(verdict.abstained, NO_ANSWER, verdict.labels)

    def predict_proba(self, images: Tensor) -> Tensor:
        """Class probabilities (B, K): the predictor's, or the versions' softmax outputs weighted by the decision."""
        return self(images).probabilities

    def report(self) -> WatchReport:
        """How the versions stand, and who is in quarantine since which input."""
        with self._one_at_a_time:
            return self._quarantine.report()

    def release(self, names: Sequence[str]) -> None:
        """Ask versions again that were repaired; what was seen of them is forgotten.

        Raises:
            ConfigurationError: there is no such version.
        """
        positions = self._positions(names)
        with self._one_at_a_time:
            self._quarantine.release(positions)

    def acknowledge(self, names: Sequence[str] | None = None) -> None:
        """Take note of alarms: what was seen counts as usual from now on, and whom they set apart is asked again.

        For changed inputs that are here to stay, and for false alarms. Without it a version that breaks after the
        inputs changed is not set apart.

        Args:
            names: of versions; all if None.

        Raises:
            ConfigurationError: there is no such version.
        """
        positions = None if names is None else self._positions(names)
        with self._one_at_a_time:
            self._quarantine.acknowledge(positions)

    def state(self) -> dict[str, Tensor]:
        """What was seen so far, as named tensors: for `with_state` of a watched guard that is made after a restart."""
        with self._one_at_a_time:
            return {**self._quarantine.state(), "guard": self._identity()}

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself.

        Raises:
            ConfigurationError: the state is that of another guard, or of other scores.
        """
        if not torch.equal(state.get("guard", torch.zeros(0, dtype=torch.uint8)), self._identity()):
            raise ConfigurationError("this state is not that of a watch over this guard; watch the guard anew")
        with self._one_at_a_time:
            self._quarantine.with_state({name: tensor for name, tensor in state.items() if name != "guard"})
        return self

    def _ask(self, images: Tensor) -> tuple[SavedGuard, list[Answers]]:
        """What there is to judge by, and answers of all N versions to images; those in quarantine are not asked."""
        active = self._quarantine.active
        saved, answers = self.guard.ask(images, active)  # an update may come right afterwards
        told = dict(zip(active, answers, strict=True))
        silent, versions = silence(len(saved.card.classes), len(images)), range(len(saved.card.names))
        return saved, [told.get(version, silent) for version in versions]

    def _judge(self, saved: SavedGuard, answers: Sequence[Answers], good: Tensor, batch: int) -> "_Answered":
        evidence = evidence_of(answers, saved.predictor.needs)
        before = self._quarantine.report()
        report = self._quarantine.see(evidence.labels, scores_of(evidence, self.scores))
        active = self._quarantine.active
        verdict = verdict_of(self._of_versions(saved, active), [answers[version] for version in active], good, batch)
        return _Answered(in_places(verdict, active, apart(report)), report, _is_news(before, report))

    def _of_versions(self, saved: SavedGuard, active: list[int]) -> SavedGuard:
        """The guard of some versions; fitted once."""
        if saved is not self._whole:  # it was updated
            self._whole, self._reduced = saved, {}
        if len(active) == len(saved.card.names):
            return saved
        key = tuple(active)
        if key not in self._reduced:
            self._reduced[key] = saved.of_versions(active)
        return self._reduced[key]

    def _told(self, answered: "_Answered") -> Verdict:
        """The verdict, after `on_alarm` was told what is new; nobody waits for them but who brought the batch."""
        for callback in self.on_alarm if answered.is_news else ():
            try:
                callback(answered.report)
            except Exception as error:  # who looks on must not take the answer down
                name = getattr(callback, "__name__", type(callback).__name__)
                self.failures[name] += 1
                if self.failures[name] == 1:
                    logger.warning("on_alarm %s failed: %r (counted, not shown again)", name, error)
        return answered.verdict

    def _positions(self, names: Sequence[str]) -> list[int]:
        known = self.guard.saved.card.names
        if isinstance(names, str) or not set(names) <= set(known):
            raise ConfigurationError(f"expected names of versions, got {names!r}; there are {', '.join(known)}")
        return [known.index(name) for name in names]

    def _identity(self) -> Tensor:
        card = self.guard.saved.card
        told = [card.calibration_fingerprint, list(card.names), list(card.fingerprints), list(self.scores)]
        return torch.tensor(list(bytes.fromhex(digest(told))), dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class _Answered:
    """A batch: its verdict, how the versions stand after it, and whether somebody must be told."""

    verdict: Verdict
    report: WatchReport
    is_news: bool


def scores_for(saved: SavedGuard) -> tuple[str, ...]:
    """Those of `WATCHED` that can be had of a guard, and that were not learned on the calibration inputs."""
    usable = usable_scores(saved.calibration.evidence)
    searched = saved.distance is not None and not hasattr(saved.distance, "fit")
    return tuple(name for name in WATCHED if name in usable and (searched or name != "distance"))


def _is_news(before: WatchReport, after: WatchReport) -> bool:
    """Whether an alarm was raised, or the quarantine changed."""
    known = {(alarm.version, alarm.statistic, alarm.raised) for alarm in before.alarms}
    fresh = {(alarm.version, alarm.statistic, alarm.raised) for alarm in after.alarms} - known
    return bool(fresh) or before.quarantined != after.quarantined
