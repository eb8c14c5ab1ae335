"""Calibrations simulated over and over: does the promise hold as often as it says?

The test inputs of an ensemble are taken for the whole world: calibration inputs are drawn from them with replacement,
so that they are independent draws from a source whose risk is known exactly at every threshold. On a part held out
instead, the risk would be an estimate itself, and a promise that was kept would seem broken by the luck of that part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.bounds.thresholds import Threshold
from deepfailguard.decision.classes import most_probable_class
from deepfailguard.decision.prediction_sets import calibrate_sets
from deepfailguard.predictor.class_posterior import failure_of
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence

__all__ = ["Kept", "Sets", "Trials", "World", "keep_promises", "keep_sets", "world_of"]


@dataclass(frozen=True, slots=True)
class World:
    """All B inputs that there are.

    Attributes:
        name: of the ensemble.
        failure: (B,) float64, failure probability of the guard's answer.
        wrong: (B,) bool, whether that is wrong.
        probability: (B, K) float64, of the classes.
        truth: (B,) int64.
    """

    name: str
    failure: Tensor = field(repr=False)
    wrong: Tensor = field(repr=False)
    probability: Tensor = field(repr=False)
    truth: Tensor = field(repr=False)

    def at(self, threshold: float) -> tuple[float, float]:
        """Coverage, and the share of wrong answers among the given ones, exactly; 0 where none is given."""
        answered = self.failure <= threshold
        count = int(answered.sum())
        return count / len(answered), int((self.wrong & answered).sum()) / max(1, count)


@dataclass(frozen=True, slots=True)
class Trials:
    """What to simulate.

    Attributes:
        draws: how many calibrations.
        inputs: of each calibration.
        confidence: of the promise.
    """

    draws: int
    inputs: int
    confidence: float

    def of(self, world: World) -> Iterator[Tensor]:
        """The inputs (n,) int64 of each calibration, the same for all ways."""
        for draw in range(self.draws):
            random = generator(draw, "risk benchmark", world.name)
            yield torch.randint(len(world.wrong), (self.inputs,), generator=random)


@dataclass(frozen=True, slots=True)
class Kept:
    """How one way to choose thresholds kept one risk in one world.

    Attributes:
        way: its name.
        risk: that was allowed.
        holds: share of the calibrations after which the true risk is at most that.
        coverage: mean share of inputs that are then answered.
        true_risk: mean share of wrong answers among the given ones.
        nothing: share of the calibrations after which nothing is answered.
    """

    way: str
    risk: float
    holds: float
    coverage: float
    true_risk: float
    nothing: float


@dataclass(frozen=True, slots=True)
class Sets:
    """How prediction sets kept one miss rate in one world.

    Attributes:
        miss_rate: that was allowed.
        misses: (draws,) float64, the true share of inputs whose set lacks the truth, after each calibration.
        size: mean number of classes in a set.
    """

    miss_rate: float
    misses: Tensor = field(repr=False)
    size: float


def world_of(name: str, asked: Evidence, probability: Tensor, truth: Tensor) -> World:
    """The answers of a guard that takes the most probable class.

    Args:
        name: of the ensemble.
        asked: evidence of B inputs.
        probability: (B, K) of the classes.
        truth: (B,) int64.
    """
    failure = failure_of(probability, asked)
    decision = most_probable_class(asked.labels, failure, class_probability=probability)
    return World(name, decision.failure_probability, decision.labels != truth, probability, truth)


def keep_promises(world: World, way: str, threshold_of: Threshold, risk: float, trials: Trials) -> Kept:
    """Let one way choose a threshold after each simulated calibration, and look at what is true then."""
    came = []
    for drawn in trials.of(world):
        threshold = threshold_of(world.failure[drawn], world.wrong[drawn], risk, trials.confidence)
        came.append(world.at(threshold))
    coverage, true_risk = torch.tensor(came, dtype=torch.float64).unbind(1)
    return Kept(
        way=way,
        risk=risk,
        holds=_share(true_risk <= risk),
        coverage=float(coverage.mean()),
        true_risk=float(true_risk.mean()),
        nothing=_share(coverage == 0),
    )


def keep_sets(world: World, miss_rate: float, trials: Trials) -> Sets:
    """Calibrate prediction sets after each simulated calibration, and look at what is true then."""
    misses, sizes = [], []
    for drawn in trials.of(world):
        sets = calibrate_sets(world.probability[drawn], world.truth[drawn], miss_rate)(world.probability)
        misses.append(float((~sets.gather(1, world.truth[:, None])).double().mean()))
        sizes.append(float(sets.double().sum(1).mean()))
    return Sets(miss_rate, torch.tensor(misses, dtype=torch.float64), _mean(sizes))


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
