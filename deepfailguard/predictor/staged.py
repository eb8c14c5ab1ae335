"""Asking one version after the other, and no more of them than the answer needs."""

from collections.abc import Sequence
from typing import ClassVar, Final, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.checks import check_evidence, check_fitted
from deepfailguard.predictor.class_posterior import failure_of
from deepfailguard.predictor.joint.hearing import Hearing, hear
from deepfailguard.predictor.joint.pooling import Freedom
from deepfailguard.predictor.joint.predictor import REHEARSED, JointPredictor
from deepfailguard.predictor.states import below, under
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence, Need, Rehearsed

__all__ = ["StagedPredictor", "choose_thresholds"]

_FOLDS: Final = 2
_PRICES: Final = 60
_LEAST: Final = 8  # calibration inputs below which nothing can be tried out


class StagedPredictor:
    """A joint predictor for the first version, one for the first two, and so on: a cascade.

    An input goes on to the next version only while its answer is more probably wrong than the threshold of its stage.
    The thresholds are those with which, in cross-validation on calibration inputs, the fewest versions are asked and
    the cascade is right as often as all versions together, less the tolerance. Order the versions by what they cost,
    the cheapest first (equally costly ones: the best first).

    The stage of an input is told by its evidence: it is the number of versions up to the last one that answered.

    Args:
        tolerance: share of inputs that may be answered wrong for being asked less, in [0, 1).
        rehearse: so many inputs of each kind of change are rehearsed, at most (>= 0); 0 leaves the rehearsal out.

    Attributes:
        stages_: N predictors, of the first 1..N versions.
        thresholds_: (N,) float64 of the failure probability, the last one 1; None before `fit`.
        expected_versions_: how many versions an input is asked on average, in the cross-validation.
    """

    needs: ClassVar[frozenset[Need]] = JointPredictor.needs
    judges_alone: ClassVar[bool] = False

    def __init__(self, tolerance: float = 0.001, rehearse: int = REHEARSED) -> None:
        if not 0 <= tolerance < 1:
            raise ConfigurationError(f"tolerance must be in [0, 1), got {tolerance}")
        self.tolerance = tolerance
        self.rehearse = rehearse
        self.stages_: list[JointPredictor] = []
        self.thresholds_: Tensor | None = None
        self.expected_versions_ = float("nan")

    def fit(self, evidence: Evidence, truth: Tensor, rehearsed: Rehearsed | None = None) -> Self:
        """Learn from calibration evidence and the true classes (B,) int64."""
        heard = hear(evidence, truth, rehearsed if self.rehearse else None)
        hearings = [heard.of_versions(range(count)) for count in range(1, evidence.versions + 1)]
        self.stages_ = [JointPredictor(self.rehearse).learn(hearing) for hearing in hearings]
        failure, right = _tried_out(hearings, [stage.level_ for stage in self.stages_])
        self.thresholds_, self.expected_versions_ = choose_thresholds(failure, right, self.tolerance)
        return self

    def is_settled(self, evidence: Evidence, stage: int) -> Tensor:
        """(B,) bool, whether the answers of the first `stage` versions need no further one.

        Args:
            evidence: of these versions.
            stage: in [1, N].
        """
        thresholds = check_fitted(self, self.thresholds_)
        if stage == len(self.stages_):
            return torch.ones(len(evidence), dtype=torch.bool)
        told = self.stages_[stage - 1].class_probability(evidence)
        return (1 - told.amax(1) <= thresholds[stage - 1]) & evidence.answered.any(1)

    def class_probability(self, evidence: Evidence) -> Tensor:
        """P(truth is class k | evidence of the versions that were asked), (B, K) float64."""
        check_fitted(self, self.thresholds_)
        check_evidence(evidence, len(self.stages_))
        places = torch.arange(1, evidence.versions + 1, device=evidence.labels.device)
        stage = (evidence.answered * places).amax(1).clamp_min(1)
        parts = []
        for number, predictor in enumerate(self.stages_, 1):
            rows = (stage == number).nonzero().squeeze(1)
            parts.append((rows, predictor.class_probability(evidence[rows].of_versions(list(range(number))))))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([told for _, told in parts])[order]

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        return failure_of(self.class_probability(evidence), evidence)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        tensors = {
            "thresholds": check_fitted(self, self.thresholds_),
            "stages": torch.tensor(len(self.stages_)),
            "expected_versions": torch.tensor(self.expected_versions_, dtype=torch.float64),
        }
        for number, predictor in enumerate(self.stages_):
            tensors |= under(f"stage{number}", predictor.state())
        return tensors

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        if not {"thresholds", "stages", "expected_versions"} <= set(state):
            raise ConfigurationError(
                "StagedPredictor expects the state thresholds, stages and others, "
                f"got {', '.join(sorted(state)) or 'nothing'}; pass what state() of the same class returned"
            )
        self.thresholds_ = state["thresholds"]
        self.expected_versions_ = float(state["expected_versions"])
        self.stages_ = [
            JointPredictor(self.rehearse).with_state(below(f"stage{number}", state))
            for number in range(int(state["stages"]))
        ]
        return self


def _tried_out(hearings: Sequence[Hearing], levels: Sequence[Freedom | None]) -> tuple[Tensor, Tensor]:
    """Failure probability and whether right, (M, N), of each stage's answer, by predictors that did not see the input.

    With too few inputs to try anything out, (0, N).
    """
    truth = hearings[0].truth
    failure = torch.ones(len(truth), len(hearings), dtype=torch.float64)
    right = torch.zeros(len(truth), len(hearings), dtype=torch.bool)
    if len(truth) < _LEAST:
        return failure[:0], right[:0]
    fold = torch.randperm(len(truth), generator=generator(0, "staged folds")) % _FOLDS
    for stage, (hearing, level) in enumerate(zip(hearings, levels, strict=True)):
        for number in range(_FOLDS):
            held = fold == number
            told = JointPredictor().learn(hearing.take(~held), level).judge(hearing.usual[held])
            failure[held, stage] = 1 - told.amax(1)
            right[held, stage] = told.argmax(1) == truth[held]
    return failure, right


def choose_thresholds(failure: Tensor, right: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """The thresholds with which the fewest versions are asked at an accuracy of all versions less the tolerance.

    For a price of asking once more, the thresholds that lose least (wrong answers plus prices) are found from the
    last stage backwards; the highest price that keeps the accuracy is taken.

    Args:
        failure: (M, N) float64, failure probability of each stage's answer.
        right: (M, N) bool, whether it is right.
        tolerance: in [0, 1).

    Returns:
        (N,) thresholds, the last one 1, and the number of versions that are then asked on average.
    """
    versions = failure.shape[1]
    best = torch.full((versions,), -1.0, dtype=torch.float64)
    best[-1], asked = 1.0, float(versions)
    if len(failure) == 0:
        return best, asked
    needed = float(right[:, -1].double().mean()) - tolerance
    for price in torch.logspace(-4, 0, _PRICES, dtype=torch.float64).tolist():
        thresholds = _cheapest(failure, right, price)
        stage = (failure <= thresholds).int().argmax(1)
        accuracy, mean = float(right.gather(1, stage[:, None]).double().mean()), float(stage.double().mean()) + 1
        if accuracy >= needed and mean < asked:
            best, asked = thresholds, mean
    return best, asked


def _cheapest(failure: Tensor, right: Tensor, price: float) -> Tensor:
    versions = failure.shape[1]
    thresholds = torch.full((versions,), 1.0, dtype=torch.float64)
    later = (~right[:, -1]).double()  # what an input loses if it goes on
    for stage in range(versions - 2, -1, -1):
        order = failure[:, stage].argsort(stable=True)
        gain = (later + price - (~right[:, stage]).double())[order].cumsum(0)  # of settling the least doubtful ones
        most = int(gain.argmax())
        # Halfway to the next one: the threshold is not that input's own.
        ends = failure[order[most : most + 2], stage]
        thresholds[stage] = float(ends.mean()) if float(gain[most]) > 0 else -1.0
        settled = failure[:, stage] <= thresholds[stage]
        later = torch.where(settled, (~right[:, stage]).double(), later + price)
    return thresholds
