"""Which rule is right on which input: for every ensemble, computed once and kept."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from benchmarks.decisions.ensembles import SETTINGS, Ensemble
from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import CALIBRATION, RELATED, TEST, shifted_part
from benchmarks.decisions.keeping import ensemble_of, kept_or_made
from benchmarks.decisions.rules import LEARNING, LOG_POOL, SOFT_VOTE, Answers, fit_guards, fit_rules
from benchmarks.reporting import digest_of_code
from deepfailguard.evaluation.failure_prediction import expected_calibration_error
from deepfailguard.evaluation.measures import oracle
from deepfailguard.faults.rehearsal import Kind
from deepfailguard.predictor.joint.hearing import Hearing, hear
from deepfailguard.progress import track
from deepfailguard.store import TensorFile

__all__ = ["ORACLE", "Outcome", "code_digest", "measure_pool", "some_of_each"]

ORACLE: Final = "oracle"
_UNDER_SHIFT: Final = (SOFT_VOTE, LOG_POOL)  # what the guard is held against there, beside the votes that learn nothing
_CODE: Final = (  # what makes answers of evidence
    "deepfailguard/predictor/joint/*.py",
    *(f"deepfailguard/predictor/{name}.py" for name in ("answer_densities", "checks", "class_posterior", "density")),
    *(f"deepfailguard/predictor/{name}.py" for name in ("dynamic_selection", "kde", "soft_vote", "stacking")),
    "deepfailguard/decision/*.py",
    "deepfailguard/guard/judging.py",
    *(f"deepfailguard/evaluation/{name}.py" for name in ("failure_prediction", "measures", "ties")),
    *(f"benchmarks/decisions/{name}.py" for name in ("agreement", "evidence", "outcomes", "rules")),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How all rules did with one ensemble on one part.

    Attributes:
        data: name of the data set.
        seed: of pool and images.
        setting: of the ensemble.
        members: who answered, in words.
        shift: of the inputs; None for usual ones.
        right: by rule and for the oracle, (B,) bool.
        ece: calibration error of the chosen answer's failure probability, by rule; only of rules that tell one.
    """

    data: str
    seed: int
    setting: str
    members: tuple[str, ...]
    shift: str | None
    right: Mapping[str, Tensor] = field(repr=False)
    ece: Mapping[str, float]

    @property
    def versions(self) -> int:
        """How many answered: N."""
        return len(self.members)

    def accuracy(self, rule: str) -> float:
        """Share of inputs on which a rule (or the oracle) is right."""
        return float(self.right[rule].double().mean())


@dataclass(frozen=True, slots=True)
class _Task:
    """One ensemble, to be measured on usual or on shifted inputs."""

    pool: PoolEvidence = field(repr=False)
    ensemble: Ensemble
    shifts: tuple[str, ...]

    def outcome(self, shift: str | None, right: Mapping[str, Tensor], ece: Mapping[str, float]) -> Outcome:
        members = tuple(str(self.pool.members[number]) for number in self.ensemble.members)
        return Outcome(self.pool.data, self.pool.seed, self.ensemble.setting, members, shift, right, ece)

    @property
    def parts(self) -> dict[str | None, str]:
        return {shift: shifted_part(shift) for shift in self.shifts} if self.shifts else {None: TEST}

    def made_of(self, code: str) -> dict[str, Any]:
        members = self.ensemble.members
        own = {"shifts": self.shifts, "distances": self.pool.distances_digest(members), "code": code}
        return ensemble_of(self.pool, members) | own


def measure_pool(
    pool: PoolEvidence, ensembles: Sequence[Ensemble], shifted: Iterable[Ensemble], folder: Path, code: str
) -> list[Outcome]:
    """Measure ensembles of one pool; what an earlier run kept is not measured again.

    Args:
        pool: what its versions say.
        ensembles: to measure on usual test inputs.
        shifted: those of them to measure on shifted inputs as well.
        folder: of what is kept.
        code: `code_digest`: what other code measured is measured anew.
    """
    shifts = tuple(shift for shift in RELATED if shifted_part(shift) in pool.parts)
    tasks = [_Task(pool, ensemble, ()) for ensemble in ensembles]
    tasks += [_Task(pool, ensemble, shifts) for ensemble in shifted]
    hear_once = functools.cache(partial(_hear, pool))  # only if something is to be measured
    outcomes: list[Outcome] = []
    for task in track(tasks, len(tasks), f"measuring ensembles of {pool.data}-{pool.seed}"):
        outcomes += _read(task, kept_or_made(folder, task.made_of(code), partial(_written, task, hear_once)))
    return outcomes


def some_of_each(ensembles: Sequence[Ensemble], most: int) -> list[Ensemble]:
    """The first few ensembles of every setting and size."""
    groups = [(setting, size) for setting in SETTINGS for size in sorted({len(each.members) for each in ensembles})]
    return [
        each
        for setting, size in groups
        for each in [e for e in ensembles if e.setting == setting and len(e.members) == size][:most]
    ]


def code_digest() -> str:
    """Of the code that turns evidence into answers: another digest, other answers."""
    return digest_of_code(*_CODE)


def _hear(pool: PoolEvidence, without: frozenset[Kind]) -> Hearing:
    """What all versions of a pool say on calibration inputs and on those changed in all ways but some.

    Any ensemble's is a part of it.
    """
    everybody = range(len(pool.members))
    return hear(pool.of(CALIBRATION, everybody), pool.truth(CALIBRATION), pool.rehearsed(everybody, without))


def _measure(task: _Task, hear_once: Callable[[frozenset[Kind]], Hearing]) -> Iterator[Outcome]:
    chosen, pool = task.ensemble.members, task.pool
    evidence, truth = pool.of(CALIBRATION, chosen), pool.truth(CALIBRATION)
    learning = _UNDER_SHIFT if task.shifts else tuple(LEARNING)
    others = fit_rules(evidence, truth, pool.searched(CALIBRATION), learning)
    without = {shift: RELATED[shift] if shift else frozenset() for shift in task.parts}
    # A guard must not have rehearsed changes of the very family that is tested.
    guards = fit_guards({kinds: hear_once(kinds).of_versions(chosen) for kinds in set(without.values())})
    for shift, part in task.parts.items():
        asked = pool.of(part, chosen)
        answers = {**others(asked), **guards[without[shift]](asked)}
        yield _outcome(task, shift, pool.truth(part), asked.labels, answers)


def _outcome(task: _Task, shift: str | None, truth: Tensor, labels: Tensor, answers: Mapping[str, Answers]) -> Outcome:
    right = {rule: told.labels == truth for rule, told in answers.items()}
    ece = {
        rule: expected_calibration_error(told.failure_probability, ~right[rule])
        for rule, told in answers.items()
        if told.failure_probability is not None
    }
    right[ORACLE] = oracle(labels, truth)
    return task.outcome(shift, right, ece)


def _written(task: _Task, hear_once: Callable[[frozenset[Kind]], Hearing]) -> TensorFile:
    outcomes = list(_measure(task, hear_once))
    tensors = {f"{each.shift or ''}/{rule}": right for each in outcomes for rule, right in each.right.items()}
    return TensorFile(tensors, {"ece": {each.shift or "": dict(each.ece) for each in outcomes}})


def _read(task: _Task, file: TensorFile) -> Iterator[Outcome]:
    for shift in task.parts:
        start = f"{shift or ''}/"
        right = {name.removeprefix(start): each for name, each in file.tensors.items() if name.startswith(start)}
        yield task.outcome(shift, right, file.metadata["ece"][shift or ""])
