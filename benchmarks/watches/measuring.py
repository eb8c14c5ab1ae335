"""Streams in which something breaks or changes, and streams in which nothing does."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from benchmarks.decisions.ensembles import Ensemble
from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import CALIBRATION, SHIFTS, TEST, shifted_part
from benchmarks.watches.damages import Damage, Said, with_damage
from benchmarks.watches.serving import Service, labels_of, serve
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.quarantine import Quarantine
from deepfailguard.guard.statistics import scores_of
from deepfailguard.guard.watch_report import Cause, WatchReport
from deepfailguard.guard.watched import WatchedGuard
from deepfailguard.guard.watching import VersionWatch
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence

__all__ = ["Accuracies", "Case", "Quiet", "break_versions", "shift_inputs", "stay_quiet"]

_QUIET_BATCH: Final = 256  # batches of any size lead to the same alarms; large ones take less time


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Shares of right answers over the same inputs.

    Attributes:
        watched: of the watched guard.
        unwatched: of the guard as it was calibrated.
        without: of the guard that never had the version that broke; NaN where none did.
    """

    watched: float
    unwatched: float
    without: float


@dataclass(frozen=True, slots=True)
class Case:
    """One stream in which a version was broken from the start, or the inputs changed at some point.

    Attributes:
        data: name of the data set.
        seed: of the pool.
        setting: of the ensemble.
        members: who answered, in words.
        change: what was done: "10 bits", "noise".
        target: position of the version that broke; None where the inputs changed.
        drop: how much accuracy the version lost by it; NaN where the inputs changed.
        inputs: how many came since.
        delay: with which input since the change the first alarm was raised, the first one being 1; NaN for never. 0
            and below: before the inputs changed.
        first_cause: what the report said when it was.
        last_cause: what it said in the end.
        apart: positions of the versions in quarantine in the end.
        wrongly: share of the inputs since at which a version was in quarantine that was not broken.
        stream: over all inputs since.
        after: over those from the batch of the first alarm on; None without an alarm.
    """

    data: str
    seed: int
    setting: str
    members: tuple[str, ...]
    change: str
    target: int | None
    drop: float
    inputs: int
    delay: float
    first_cause: Cause
    last_cause: Cause
    apart: tuple[int, ...]
    wrongly: float
    stream: Accuracies
    after: Accuracies | None

    @property
    def versions(self) -> int:
        """How many answered."""
        return len(self.members)


@dataclass(frozen=True, slots=True)
class Quiet:
    """Streams in which nothing changed.

    Attributes:
        data: name of the data set.
        seed: of the pool.
        versions: how many were watched.
        streams: how many.
        inputs: of all of them.
        alarms: of all of them.
    """

    data: str
    seed: int
    versions: int
    streams: int
    inputs: int
    alarms: int


@dataclass(frozen=True, slots=True)
class _Stream:
    """Evidence in the order in which it comes."""

    evidence: Evidence
    truth: Tensor
    sound: Evidence
    onset: int


class _Counting(VersionWatch):
    """Counts alarms as they are raised: some no longer stand once a version was set apart."""

    counted = 0

    def update(self, labels: Tensor, scores: Mapping[str, Tensor]) -> WatchReport:
        before = len(self.report().alarms)
        report = super().update(labels, scores)
        self.counted += len(report.alarms) - before
        return report


def break_versions(
    pool: PoolEvidence, ensemble: Ensemble, guard: GuardedPredictor, damages: Sequence[Damage], said: dict[Damage, Said]
) -> Iterator[Case]:
    """A case for each damage of a member of the ensemble; it is there from the first input on."""
    test, truth = pool.of(TEST, ensemble.members), pool.truth(TEST)
    for number, damage in enumerate(damages):
        target = ensemble.members.index(damage.member)
        broken = with_damage(test, target, said[damage])
        order = _order(len(truth), pool.seed, "damage", *ensemble.members, number)
        right, still_right = test.labels[:, target] == truth, broken.labels[:, target] == truth
        drop = float(right.double().mean() - still_right.double().mean())
        stream = _Stream(broken[order], truth[order], test[order], 0)
        change = f"{damage.bits} bit{'s' * (damage.bits > 1)}"
        yield _case(pool, ensemble, guard, stream, change, target, drop)


def shift_inputs(pool: PoolEvidence, ensemble: Ensemble, guard: GuardedPredictor, repeats: int) -> Iterator[Case]:
    """Cases for each shift; the inputs change after a quarter of the stream."""
    usual, truth = pool.of(TEST, ensemble.members), pool.truth(TEST)
    onset = len(truth) // 4
    for shift in (name for name in SHIFTS if shifted_part(name) in pool.parts):
        changed = pool.of(shifted_part(shift), ensemble.members)
        for repeat in range(repeats):
            order = _order(len(truth), pool.seed, shift, *ensemble.members, repeat)
            evidence = Evidence.concatenate([usual[order[:onset]], changed[order[onset:]]])
            stream = _Stream(evidence, truth[order], evidence, onset)
            yield _case(pool, ensemble, guard, stream, shift, None, math.nan)


def stay_quiet(pool: PoolEvidence, ensemble: Ensemble, watched: WatchedGuard, streams: int) -> Quiet:
    """Count alarms where nothing changes; each is acknowledged, so that the next one counts too.

    Calibration and test inputs are mixed and parted anew for each stream, so that nothing tells one part from the
    other. A stream that drew its inputs with replacement would be told from the calibration inputs, and rightly.

    Args:
        pool: what its versions say.
        ensemble: who is watched.
        watched: whose settings are measured.
        streams: how many.
    """
    parts, names, rate = (CALIBRATION, TEST), watched.scores, watched.inputs_per_false_alarm
    whole = Evidence.concatenate([pool.of(part, ensemble.members) for part in parts])
    calibration, alarms = len(pool.truth(CALIBRATION)), 0
    labels, scores = whole.labels, scores_of(whole, names)
    for number in range(streams):
        order = _order(len(whole), pool.seed, "quiet", *ensemble.members, number)
        usual = order[:calibration]
        watch = _Counting(names, inputs_per_false_alarm=rate, seed=number)
        watch.fit(labels[usual], {name: values[usual] for name, values in scores.items()})
        quarantine = Quarantine(watch, labels[usual])
        for batch in order[calibration:].split(_QUIET_BATCH):
            report = quarantine.see(labels[batch], {name: values[batch] for name, values in scores.items()})
            if report.alarms:
                quarantine.acknowledge()
        alarms += watch.counted
    inputs = streams * (len(whole) - calibration)
    return Quiet(pool.data, pool.seed, len(ensemble.members), streams, inputs, alarms)


def _case(
    pool: PoolEvidence,
    ensemble: Ensemble,
    guard: GuardedPredictor,
    stream: _Stream,
    change: str,
    target: int | None,
    drop: float,
) -> Case:
    service = serve(guard, stream.evidence)
    first = service.first_alarm
    alarm = None if first is None else service.reports[first].alarms[0]
    accuracies = _judged(guard, stream, service, target)
    return Case(
        data=pool.data,
        seed=pool.seed,
        setting=ensemble.setting,
        members=tuple(str(pool.members[number]) for number in ensemble.members),
        change=change,
        target=target,
        drop=drop,
        inputs=len(stream.truth) - stream.onset,
        delay=math.nan if alarm is None else float(alarm.raised + 1 - stream.onset),
        first_cause="nothing" if first is None else service.reports[first].cause,
        last_cause=service.reports[-1].cause,
        apart=tuple(each.version for each in service.reports[-1].quarantined),
        wrongly=_wrongly(service, stream.onset, target),
        stream=accuracies(stream.onset),
        after=None if first is None else accuracies(max(service.start(first), stream.onset)),
    )


def _judged(
    guard: GuardedPredictor, stream: _Stream, service: Service, target: int | None
) -> Callable[[int], Accuracies]:
    """Accuracies over the inputs from one on."""
    versions = range(stream.evidence.versions)
    unwatched = labels_of(guard, stream.evidence, versions)
    without = None if target is None else labels_of(guard, stream.sound, [v for v in versions if v != target])

    def share(labels: Tensor | None, start: int) -> float:
        return math.nan if labels is None else float((labels == stream.truth)[start:].double().mean())

    return lambda start: Accuracies(share(service.labels, start), share(unwatched, start), share(without, start))


def _wrongly(service: Service, onset: int, target: int | None) -> float:
    """Share of the inputs since the onset that were answered without a version that was not broken."""
    wrong = 0
    for number, (report, end) in enumerate(zip(service.reports, service.ends, strict=True)):
        sound_apart = any(each.version != target for each in report.quarantined)
        wrong += max(0, end - max(service.start(number), onset)) * sound_apart
    return wrong / (service.ends[-1] - onset)


def _order(count: int, seed: int, *purpose: object) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "watching benchmark", *purpose))
