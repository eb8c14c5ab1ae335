"""`JointPredictor`: the probability of every class, from all that all versions show of an input."""

from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.checks import check_evidence, check_fitted
from deepfailguard.predictor.joint.gate import Gate, fit_gate
from deepfailguard.predictor.joint.heads import FeatureHead
from deepfailguard.predictor.joint.hearing import Hearing, classes_of, hear
from deepfailguard.predictor.joint.opinions import Opinions, Voice, listen
from deepfailguard.predictor.joint.pooling import Freedom, Pool, choose_level, fit_pool
from deepfailguard.types import Evidence, Need, Rehearsed

__all__ = ["REHEARSED", "JointPredictor"]

REHEARSED: Final = 400
"""Inputs of each kind of change, unless told otherwise."""

_ROBUST: Final = Freedom(0.1, 0.1)  # one weight for each opinion: corrections do not carry over to other changes
_FAMILIAR: Final = 500  # calibration inputs among the rehearsed ones from which the robust pool learns


class JointPredictor:
    """P(truth is class k | everything that all versions show), and so P(wrong) of each version's answer.

    1. Every version has two opinions: its own log-probabilities, and those of a fresh linear head on its features,
       fitted on calibration inputs. Many faults spoil the first and leave the second good.
    2. A pool weighs all opinions, and corrects what they confuse as far as the calibration data can bear (`pooling`).
    3. Where *rehearsed* inputs are given (calibration inputs that the injector changed: noise, blur, less light, ...),
       a second pool learns one weight for each opinion on them, and is averaged with the plain mean of the versions'
       probabilities: it is right more often where no version was calibrated. A gate learns to tell by the evidence
       alone whether an input looks changed, and blends the two.

    No class has a probability below 1 / (K (M + 2)) for M calibration inputs: they could not tell.
    Opinions of a version that did not answer count nothing; its failure probability is 1.

    Args:
        rehearse: so many inputs of each kind of change are rehearsed, at most (>= 0); 0 leaves the rehearsal out.

    Attributes:
        voices_: of the N versions.
        familiar_: the pool for inputs like those of calibration.
        robust_: the pool for changed inputs; None if nothing was rehearsed.
        gate_: between the two; None if nothing was rehearsed.
        calibration_size_: M.
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
        self.calibration_size_ = 0

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

    def learn(self, hearing: Hearing) -> Self:
        """Learn from opinions on calibration inputs that were formed already; returns itself."""
        usual = hearing.usual
        self.voices_ = list(hearing.voices)
        self.familiar_ = fit_pool(usual.all, hearing.truth, choose_level(usual.all, hearing.truth))
        self.robust_ = self.gate_ = None
        self.calibration_size_ = len(hearing.truth)
        if hearing.changed is not None and hearing.changed_truth is not None:
            opinions = torch.cat([hearing.changed.all, usual.all[:_FAMILIAR]])
            truth = torch.cat([hearing.changed_truth, hearing.truth[:_FAMILIAR]])
            self.robust_ = fit_pool(opinions, truth, _ROBUST)
            self.gate_ = fit_gate(usual, hearing.changed)
        return self

    def class_probability(self, evidence: Evidence) -> Tensor:
        """P(truth is class k | evidence), (B, K) float64."""
        familiar = check_fitted(self, self.familiar_)
        check_evidence(evidence, len(self.voices_))
        classes = classes_of(evidence)
        if classes != len(familiar.bias):
            raise ConfigurationError(
                f"the predictor was fitted on {len(familiar.bias)} classes, got logits of {classes}"
            )
        heard = listen(self.voices_, evidence, classes)
        probability = familiar.log_probability(heard.all).exp()
        if self.robust_ is not None and self.gate_ is not None:
            changed = self.gate_(heard)[:, None]
            probability = (1 - changed) * probability + changed * _careful(self.robust_, heard)
        unknown = 1 / (self.calibration_size_ + 2)
        return (1 - unknown) * probability + unknown / classes

    def changed_probability(self, evidence: Evidence) -> Tensor:
        """How much each input looks changed rather than like calibration, (B,) float64; 0 if nothing was rehearsed."""
        check_fitted(self, self.familiar_)
        if self.gate_ is None:
            return torch.zeros(len(evidence), dtype=torch.float64)
        return self.gate_(listen(self.voices_, evidence, classes_of(evidence)))

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | evidence of all), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        right = self.class_probability(evidence).gather(1, evidence.labels.clamp_min(0))
        return torch.where(evidence.answered, (1 - right).clamp(0, 1), 1.0)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        familiar = check_fitted(self, self.familiar_)
        tensors = {
            "calibration_size": torch.tensor(self.calibration_size_),
            "versions": torch.tensor(len(self.voices_)),
        }
        tensors |= _named("familiar", familiar)
        tensors |= {} if self.robust_ is None else _named("robust", self.robust_)
        tensors |= {} if self.gate_ is None else _named("gate", self.gate_)
        for number, voice in enumerate(self.voices_):
            factors = [voice.sharpness, voice.head_sharpness, voice.usual]
            tensors[f"voice{number}.factors"] = torch.tensor(factors, dtype=torch.float64)
            tensors |= {} if voice.head is None else _named(f"voice{number}.head", voice.head)
        return tensors

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        try:
            self.voices_ = [_voice(state, number) for number in range(int(state["versions"]))]
            self.familiar_ = _taken("familiar", Pool, state)
            self.calibration_size_ = int(state["calibration_size"])
        except KeyError as error:
            raise ConfigurationError(
                f"JointPredictor expects the state {error} and others, got {', '.join(sorted(state)) or 'nothing'}; "
                "pass what state() of the same class returned"
            ) from error
        self.robust_ = _taken("robust", Pool, state) if "robust.weight" in state else None
        self.gate_ = _taken("gate", Gate, state) if "gate.slope" in state else None
        return self


def _careful(pool: Pool, heard: Opinions) -> Tensor:
    """The geometric mean of a pool and of the plain mean of the versions' probabilities: (B, K)."""
    return ((pool.log_probability(heard.all) + heard.plain) / 2).softmax(1)


def _named(name: str, record: Pool | Gate | FeatureHead) -> dict[str, Tensor]:
    return {f"{name}.{field}": getattr(record, field).contiguous() for field in record.__slots__}


def _taken(name: str, kind: type[Any], state: dict[str, Tensor]) -> Any:
    return kind(**{field: state[f"{name}.{field}"] for field in kind.__slots__})


def _voice(state: dict[str, Tensor], number: int) -> Voice:
    sharpness, head_sharpness, usual = state[f"voice{number}.factors"].tolist()
    name = f"voice{number}.head"
    head = _taken(name, FeatureHead, state) if f"{name}.mean" in state else None
    return Voice(sharpness, head, head_sharpness, usual)
