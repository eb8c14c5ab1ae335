"""Cascades of five versions in several orders, replayed on the test inputs; worked out once and kept."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.cascades.timing import seconds_of
from benchmarks.decisions.ensembles import Ensemble
from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import CALIBRATION, TEST
from benchmarks.decisions.keeping import ensemble_of, kept_or_made
from deepfailguard.decision.classes import most_probable_class
from deepfailguard.predictor.class_posterior import failure_of
from deepfailguard.predictor.staged import StagedPredictor
from deepfailguard.progress import track
from deepfailguard.store import TensorFile
from deepfailguard.types import NO_ANSWER, Evidence

__all__ = ["ORDERS", "Cascade", "in_order", "measure_cascades", "replayed"]

ORDERS: Final = ("best first", "cheapest first", "accuracy per cost")
_CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Cascade:
    """How one cascade did on the B test inputs.

    Attributes:
        data: name of the data set.
        setting: of the ensemble.
        order: one of `ORDERS`.
        expected: versions asked on average, as the predictor expected after cross-validation.
        costs: (N,) float64, forward pass of each version in turn, in means of all N.
        judging: what the predictor itself costs for one input, in the same unit.
        stage: (B,) int64 in [1, N], how many versions were asked.
        right: (B,) bool, of the cascade.
        full: (B,) bool, of the joint predictor that hears all versions.
        single: (B,) bool, of the version that was best on calibration inputs.
    """

    data: str
    setting: str
    order: str
    expected: float
    costs: Tensor = field(repr=False)
    judging: float
    stage: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    full: Tensor = field(repr=False)
    single: Tensor = field(repr=False)

    @property
    def versions(self) -> float:
        """How many versions were asked on average."""
        return float(self.stage.double().mean())

    @property
    def cost(self) -> float:
        """Of an input on average, in forward passes of an average version: the versions asked, and the judging."""
        return float(self.costs.cumsum(0)[self.stage - 1].mean()) + self.judging

    @property
    def loss(self) -> float:
        """Accuracy of all versions together less that of the cascade."""
        return float(self.full.double().mean() - self.right.double().mean())


def in_order(order: str, members: Sequence[int], accuracy: Sequence[float], seconds: Sequence[float]) -> list[int]:
    """The members of an ensemble in the order in which they are asked.

    Args:
        order: one of `ORDERS`.
        members: N positions in the pool.
        accuracy: of each on calibration inputs; the better one goes first where cost decides and is equal.
        seconds: of a forward pass of each.

    >>> in_order("best first", [7, 8], [0.5, 0.9], [1.0, 2.0])
    [8, 7]
    >>> in_order("cheapest first", [7, 8], [0.5, 0.9], [1.0, 2.0])
    [7, 8]
    >>> in_order("accuracy per cost", [7, 8], [0.5, 0.9], [1.0, 2.0])
    [7, 8]
    """
    keys = {
        "best first": lambda at: (-accuracy[at], seconds[at]),
        "cheapest first": lambda at: (seconds[at], -accuracy[at]),
        "accuracy per cost": lambda at: (-accuracy[at] / seconds[at], seconds[at]),
    }
    return [members[at] for at in sorted(range(len(members)), key=keys[order])]


def replayed(predictor: StagedPredictor, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """How many versions each input is asked of, (B,) int64, and the answers, (B,) int64, to evidence of all versions.

    The predictor sees of each version only the inputs that it is asked about, as in a guard.
    """
    stage = torch.full((len(evidence),), evidence.versions)
    left = torch.arange(len(evidence))
    for number in range(1, evidence.versions + 1):
        settled = predictor.is_settled(evidence[left].of_versions(list(range(number))), number)
        stage[left[settled]] = number
        left = left[~settled]
    asked = torch.arange(evidence.versions) < stage[:, None]
    seen = replace(evidence, labels=torch.where(asked, evidence.labels, NO_ANSWER), found=evidence.found & asked)
    probability = predictor.class_probability(seen)
    failure = failure_of(probability, seen)
    return stage, most_probable_class(seen.labels, failure, class_probability=probability).labels


def measure_cascades(
    pool: PoolEvidence, ensembles: Sequence[Ensemble], seconds: Mapping[str, float], folder: Path, code: str
) -> Iterator[Cascade]:
    """Measure every ensemble in every order; answers that an earlier run kept are not worked out again.

    Args:
        pool: what its versions say.
        ensembles: of it.
        seconds: of a forward pass in this run, by family.
        folder: of what is kept.
        code: digest of the predictor's code.
    """
    tasks = [(ensemble, order) for ensemble in ensembles for order in ORDERS]
    for ensemble, order in track(tasks, len(tasks), f"cascades of {pool.data}-{pool.seed}"):
        right = pool.of(CALIBRATION, ensemble.members).labels == pool.truth(CALIBRATION)[:, None]
        took = [seconds[pool.members[number].family] for number in ensemble.members]
        chosen = in_order(order, ensemble.members, right.double().mean(0).tolist(), took)
        origin = {**ensemble_of(pool, tuple(chosen)), "machine": _judging_machine(), "code": code}
        file = kept_or_made(folder, origin, partial(_measure, pool, chosen))
        # What versions cost is this run's, on its device: only what the predictor itself takes is kept.
        costs = torch.tensor([seconds[pool.members[number].family] for number in chosen], dtype=torch.float64)
        expected, judging = file.metadata["expected"], file.metadata["judging_seconds"] / float(costs.mean())
        relative = costs / costs.mean()
        yield Cascade(pool.data, ensemble.setting, order, expected, relative, judging, **file.tensors)


def _judging_machine() -> dict[str, Any]:
    """Where the predictor judges."""
    return {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}


def _measure(pool: PoolEvidence, chosen: Sequence[int]) -> TensorFile:
    truth, calibration_truth = pool.truth(TEST), pool.truth(CALIBRATION)
    usual, asked = pool.of(CALIBRATION, chosen), pool.of(TEST, chosen)
    predictor = StagedPredictor().fit(usual, calibration_truth, pool.rehearsed(chosen, frozenset()))
    stage, labels = replayed(predictor, asked)
    took = seconds_of({"judging": lambda: replayed(predictor, asked)[0]}, _CPU)["judging"]
    full = predictor.stages_[-1].class_probability(asked).argmax(1)
    accuracy = (usual.labels == calibration_truth[:, None]).double().mean(0)
    single = asked.labels[:, int(accuracy.argmax())]
    right = {"right": labels == truth, "full": full == truth, "single": single == truth}
    facts = {"expected": predictor.expected_versions_, "judging_seconds": took / len(asked)}
    return TensorFile({"stage": stage, **right}, facts)
