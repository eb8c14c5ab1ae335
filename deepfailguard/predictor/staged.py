"""Asking one version after the other, and no more of them than the answer needs."""

import math
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
_LEAST: Final = 100  # calibration inputs below which nothing can be tried out
_SMOOTHING: Final = 200  # inputs, see `_expected_loss`


class StagedPredictor:
    """A joint predictor for the first version, one for the first two, and so on: a cascade.

    An input goes on to the next version only while its answer is more probably wrong than the threshold of its stage.
    The thresholds are those with which, in cross-validation on calibration inputs, the fewest versions are asked and
    the cascade is right as often as all versions together, less the tolerance; of fewer than 100 calibration inputs
    nothing can be told, and all versions are asked. Give the versions in the order in which they shall be asked: with
    the best one first fewest are asked, unless costs differ widely.

    The stage of an input is told by its evidence: it is the number of versions up to the last one that answered.

    Args:
        tolerance: share of inputs that may be answered wrong for being asked less, in [0, 1). With 0 all versions are
            asked, unless further ones never change an answer.
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
        told = _tried_out(hearings, [stage.level_ for stage in self.stages_])
        self.thresholds_, self.expected_versions_ = choose_thresholds(told, heard.truth, self.tolerance)
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
        evidence = evidence.cpu()
        told = self.stages_[stage - 1].class_probability(evidence)
        return (1 - told.amax(1) <= thresholds[stage - 1]) & evidence.answered.any(1)

    def class_probability(self, evidence: Evidence) -> Tensor:
        """P(truth is class k | evidence of the versions that were asked), (B, K) float64."""
        check_fitted(self, self.thresholds_)
        check_evidence(evidence, len(self.stages_))
        evidence = evidence.cpu()
        places = torch.arange(1, evidence.versions + 1)
        stage = (evidence.answered * places).amax(1).clamp_min(1)
        parts = []
        for number, predictor in enumerate(self.stages_, 1):
            rows = (stage == number).nonzero().squeeze(1)
            parts.append((rows, predictor.class_probability(evidence[rows].of_versions(list(range(number))))))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([told for _, told in parts])[order]

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        return failure_of(self.class_probability(evidence), evidence.cpu())

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
        numbers = range(int(state["stages"]))
        stages = [JointPredictor(self.rehearse).with_state(below(f"stage{number}", state)) for number in numbers]
        self.stages_, self.thresholds_ = stages, state["thresholds"]
        self.expected_versions_ = float(state["expected_versions"])
        return self


def _tried_out(hearings: Sequence[Hearing], levels: Sequence[Freedom | None]) -> Tensor:
    """Class probabilities of each stage, (M, N, K), by pools that did not see the input.

    (The heads were heard without it, too; but what the pools learned from was said by heads that had seen it.) With
    too few inputs to try anything out, (0, N, K).
    """
    truth, classes = hearings[0].truth, hearings[0].usual.plain.shape[1]
    told = torch.empty(len(truth), len(hearings), classes, dtype=torch.float64)
    if len(truth) < _LEAST:
        return told[:0]
    fold = torch.randperm(len(truth), generator=generator(0, "staged folds")) % _FOLDS
    for stage, (hearing, level) in enumerate(zip(hearings, levels, strict=True)):
        for number in range(_FOLDS):
            held = fold == number
            told[held, stage] = JointPredictor().learn(hearing.take(~held), level).judge(hearing.usual[held])
    return told


def choose_thresholds(told: Tensor, truth: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """The thresholds with which the fewest versions are asked at an accuracy of all versions less the tolerance.

    For a price of asking once more, the thresholds that lose least (answers expected to be wrong, plus prices) are
    found from the last stage backwards. The price is taken that asks the fewest versions, of those that keep the
    tolerance: so does the expected loss plus its standard error (the thresholds are the best ones for these very
    inputs, and lose more elsewhere), and the loss that came, less its own, does not contradict it.

    Args:
        told: (M, N, K) float64, class probabilities of each stage.
        truth: (M,) int64, the true classes.
        tolerance: in [0, 1).

    Returns:
        (N,) thresholds, the last one 1, and the number of versions that are then asked on average. All versions are
        asked of too few inputs to try anything out.
    """
    versions = told.shape[1]
    best = torch.full((versions,), -1.0, dtype=torch.float64)
    best[-1], asked = 1.0, float(versions)
    if len(told) < _LEAST:
        return best, asked
    failure, came, expected = 1 - told.amax(2), _loss_that_came(told, truth), _expected_loss(told)
    order = failure.argsort(dim=0, stable=True)
    for price in torch.logspace(-4, 0, _PRICES, dtype=torch.float64).tolist():
        thresholds = _cheapest(failure, order, expected, price)
        stage = (failure <= thresholds).int().argmax(1, keepdim=True)
        mean = float(stage.double().mean()) + 1
        most, least = _within_error(expected.gather(1, stage))[1], _within_error(came.gather(1, stage))[0]
        if max(most, least) <= tolerance and mean < asked:
            best, asked = thresholds, mean
    return best, asked


def _within_error(values: Tensor) -> tuple[float, float]:
    """Their mean less and plus its standard error."""
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    return mean - error, mean + error


def _loss_that_came(told: Tensor, truth: Tensor) -> Tensor:
    """By how much all versions were more right than the first ones, (M, N) of -1, 0 and 1."""
    right = (told.argmax(2) == truth[:, None]).double()
    return right[:, -1:] - right


def _expected_loss(told: Tensor) -> Tensor:
    """By how much all versions are more probably right than the first ones, (M, N) float64.

    Two expectations of one thing. That all versions believe their own answer more than that of a stage: zero for most
    inputs, so that a few doubtful ones decide. And that they are surer of their answer than the stage was of its own:
    smooth, but wrong where more versions only become too sure. So it counts as much as some inputs would, no more.
    """
    failure, last = 1 - told.amax(2), told[:, -1]
    overruled = last.amax(1, keepdim=True) - last.gather(1, told.argmax(2))
    share = _SMOOTHING / (len(told) + _SMOOTHING)
    return (1 - share) * overruled + share * (failure - failure[:, -1:])


def _cheapest(failure: Tensor, order: Tensor, loss: Tensor, price: float) -> Tensor:
    """The thresholds with the smallest sum of losses and prices, by inputs in the order of failure at each stage."""
    thresholds = torch.ones(failure.shape[1], dtype=torch.float64)
    later = loss[:, -1]  # what an input costs if it goes on
    for stage in range(failure.shape[1] - 2, -1, -1):
        gain = (later + price - loss[:, stage])[order[:, stage]].cumsum(0)  # of settling the least doubtful ones
        most = int(gain.argmax())
        # Halfway to the next one: the threshold is not that input's own.
        ends = failure[order[most : most + 2, stage], stage]
        thresholds[stage] = float(ends.mean()) if float(gain[most]) > 0 else -1.0
        later = torch.where(failure[:, stage] <= thresholds[stage], loss[:, stage], later + price)
    return thresholds
