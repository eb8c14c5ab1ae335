"""`JointPredictor`: the probability of every class, from all that all versions show of an input."""

import logging
from typing import ClassVar, Final, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.checks import check_evidence, check_fitted
from deepfailguard.predictor.class_posterior import failure_of, fit_sharpness, smoothed
from deepfailguard.predictor.joint.gate import Gate, fit_gate
from deepfailguard.predictor.joint.hearing import Hearing, classes_of, hear
from deepfailguard.predictor.joint.opinions import Opinions, Voice, listen
from deepfailguard.predictor.joint.pooling import Freedom, Pool, Trial, chosen_of, fit_pool, try_levels
from deepfailguard.predictor.states import below, record_of, tensors_of, under
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence, Need, Rehearsed

__all__ = ["REHEARSED", "JointPredictor"]

REHEARSED: Final = 400
"""Inputs of each kind of change, unless told otherwise."""

logger = logging.getLogger(__name__)

_ROBUST: Final = Freedom(0.1, 0.1)  # one weight for each opinion: corrections do not carry over to other changes
_SHARPEST: Final = 2.0  # a few calibration inputs without an error must not make it sure of everything
_FAMILIAR: Final = 500  # calibration inputs among the rehearsed ones from which the robust pool learns


class JointPredictor:
    """P(truth is class k | everything that all versions show), and so P(wrong) of each version's answer.

    1. Every version has two opinions: its own log-probabilities, and those of a fresh linear head on its features,
       fitted on calibration inputs. Many faults spoil the first and leave the second good.
    2. A pool weighs all opinions, and corrects what they confuse as far as the calibration data can bear (`pooling`).
    3. Where *rehearsed* inputs are given (calibration inputs that the injector changed: noise, blur, less light, ...),
       every version has a third opinion, by a head on its features that was fitted on these inputs as well. A second
       pool learns one weight for each opinion on them, and is averaged with the plain mean of the versions'
       probabilities: it is right more often where no version was calibrated. A gate learns to tell by the evidence
       alone whether an input looks changed, and blends the two. The blend is made as sharp as calibration inputs bear
       out: mixing alone leaves it too unsure of them.

    No class has a probability below 1 / (K (M + 2)) for M calibration inputs: they could not tell.
    Opinions of a version that did not answer count nothing; its failure probability is 1.

    Args:
        rehearse: so many inputs of each kind of change are rehearsed, at most (>= 0); 0 leaves the rehearsal out.

    Attributes:
        voices_: of the N versions.
        familiar_: the pool for inputs like those of calibration.
        robust_: the pool for changed inputs; None if nothing was rehearsed.
        gate_: between the two; None if nothing was rehearsed.
        sharpness_: factor in [1, 2] of the blend's log-probabilities.
        level_: freedom of the familiar pool; None if it was taken back by `with_state`.
        trials_: what cross-validation said of the levels; none if it was not asked.
        inputs_: M.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logits", "features"})
    judges_alone: ClassVar[bool] = False

    def __init__(self, rehearse: int = REHEARSED) -> None:
        if rehearse < 0:
            raise ConfigurationError(f"rehearse must be at least 0, got {rehearse}")
        self.rehearse = rehearse
        self.voices_: list[Voice] = []
        self.familiar_: Pool | None = None
        self.robust_: Pool | None = None
        self.gate_: Gate | None = None
        self.sharpness_ = 1.0
        self.level_: Freedom | None = None
        self.trials_: list[Trial] = []
        self.inputs_ = 0

    def fit(self, evidence: Evidence, truth: Tensor, rehearsed: Rehearsed | None = None) -> Self:
        """Learn from calibration evidence and the true classes (B,) int64.

        Args:
            evidence: with logits and features.
            truth: (B,).
            rehearsed: evidence on changed calibration inputs.

        Raises:
            DataFormatError: the evidence holds no logits or no features, or a true class has no logit.
        """
        return self.learn(hear(evidence, truth, rehearsed if self.rehearse else None))

    def learn(self, hearing: Hearing, level: Freedom | None = None) -> Self:
        """Learn from opinions on calibration inputs that were formed already; returns itself.

        Args:
            hearing: the opinions.
            level: freedom of the pool; chosen by cross-validation if None.
        """
        opinions, truth = hearing.usual.of_usual, hearing.truth
        self.voices_, self.inputs_ = list(hearing.voices), len(truth)
        self.trials_ = try_levels(opinions, truth) if level is None else []
        self.level_ = chosen_of(self.trials_) if level is None else level
        if self.trials_:
            logger.info(
                "pool of opinions: %s. Log loss in cross-validation, better if by over a standard error: %s",
                self.level_,
                ", ".join(map(str, self.trials_)),
            )
        self.familiar_ = fit_pool(opinions, truth, self.level_)
        self.robust_, self.gate_, self.sharpness_ = None, None, 1.0
        if len(hearing.source):
            some = torch.randperm(len(truth), generator=generator(0, "joint familiar"))[:_FAMILIAR]
            changed = torch.cat([hearing.changed.of_changed, hearing.usual[some].of_changed])
            self.robust_ = fit_pool(changed, torch.cat([hearing.changed_truth, truth[some]]), _ROBUST)
            self.gate_ = fit_gate(hearing.usual, hearing.changed)
            self.sharpness_ = min(max(fit_sharpness(self._blended(hearing.usual), truth), 1.0), _SHARPEST)
        return self

    def judge(self, opinions: Opinions) -> Tensor:
        """P(truth is class k | opinions), (B, K) float64."""
        return smoothed((self._blended(opinions) * self.sharpness_).softmax(1), self.inputs_)

    def class_probability(self, evidence: Evidence) -> Tensor:
        """P(truth is class k | evidence), (B, K) float64."""
        fitted = len(check_fitted(self, self.familiar_).bias)
        check_evidence(evidence, len(self.voices_))
        evidence = evidence.cpu()
        classes = classes_of(evidence)
        if classes != fitted:
            raise ConfigurationError(f"the predictor was fitted on {fitted} classes, got logits of {classes}")
        return self.judge(listen(self.voices_, evidence, classes))

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | evidence of all), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        return failure_of(self.class_probability(evidence), evidence)

    def _blended(self, opinions: Opinions) -> Tensor:
        """Log-probabilities (B, K)."""
        usual = check_fitted(self, self.familiar_).log_probability(opinions.of_usual)
        if self.robust_ is None or self.gate_ is None:
            return usual
        changed = self.gate_(opinions)[:, None]
        return torch.logaddexp((1 - changed).log() + usual, changed.log() + _careful(self.robust_, opinions))

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        tensors = under("familiar", tensors_of(check_fitted(self, self.familiar_)))
        tensors |= {} if self.robust_ is None else under("robust", tensors_of(self.robust_))
        tensors |= {} if self.gate_ is None else under("gate", tensors_of(self.gate_))
        for number, voice in enumerate(self.voices_):
            tensors |= under(f"voice{number}", voice.state())
        return tensors | {
            "inputs": torch.tensor(self.inputs_),
            "versions": torch.tensor(len(self.voices_)),
            "sharpness": torch.tensor(self.sharpness_, dtype=torch.float64),
        }

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        robust, gate = below("robust", state), below("gate", state)
        try:
            voices = [Voice.from_state(below(f"voice{number}", state)) for number in range(int(state["versions"]))]
            familiar = record_of(Pool, below("familiar", state))
            blend = record_of(Pool, robust) if robust else None, record_of(Gate, gate) if gate else None
            inputs, sharpness = int(state["inputs"]), float(state["sharpness"])
        except KeyError as error:
            raise ConfigurationError(
                f"JointPredictor expects the state {error} and others, got {', '.join(sorted(state)) or 'nothing'}; "
                "pass what state() of the same class returned"
            ) from error
        self.voices_, self.familiar_, (self.robust_, self.gate_) = voices, familiar, blend
        self.inputs_, self.sharpness_, self.level_, self.trials_ = inputs, sharpness, None, []
        return self


def _careful(pool: Pool, opinions: Opinions) -> Tensor:
    """The geometric mean of a pool and of the plain mean of the versions' probabilities: its logarithm (B, K)."""
    return ((pool.log_probability(opinions.of_changed) + opinions.plain) / 2).log_softmax(1)
