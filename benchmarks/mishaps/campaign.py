"""All classes of faults, one after the other."""

import json
import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.mishaps.figures import ClassRun
from benchmarks.mishaps.refusing import Loading, run_loading
from benchmarks.mishaps.scenarios import Scenario
from benchmarks.mishaps.service import Plan, Service
from benchmarks.mishaps.trials import Limit, Outcome, run_trial
from deepfailguard.errors import ConfigurationError

__all__ = ["Case", "run_case", "trials_for"]

Case = Scenario | Loading
"""A class of faults."""

_TELL_EVERY: Final = 15.0  # seconds
_MOST_REPEATS: Final = 3  # of one trial
_SECONDS_TO_SETTLE: Final = 60.0


def trials_for(case: Case, trials: int) -> int:
    """How many trials of a class are made."""
    return max(1, round(case.share * trials))


def run_case(plan: Plan, case: Case, trials: int, say: Callable[[str], None]) -> Iterator[ClassRun]:
    """Make the trials of a class; what there is so far after each of them, so that one may stop at any time.

    Args:
        plan: of the campaign.
        case: the class.
        trials: how many.
        say: gets a line about the progress now and then.
    """
    progress = _Progress(case.name, trials, say)
    if isinstance(case, Loading):
        yield from _loadings(plan, case, trials, progress)
    else:
        yield from _Live(plan, case, progress).runs(trials)


def _loadings(plan: Plan, case: Loading, trials: int, progress: "_Progress") -> Iterator[ClassRun]:
    outcomes: list[Outcome] = []
    for number in range(trials):
        outcomes.append(run_loading(plan, case, number, _draw(plan, case, number)))
        progress.tell(outcomes)
        limit = case.promise.seconds or math.nan
        yield ClassRun(case.name, case.group, case.promise.text, limit, tuple(outcomes), (), 0, {}, *progress.told)


class _Live:
    """Trials of a class under load; a runtime whose versions do not recover is exchanged for a fresh one."""

    def __init__(self, plan: Plan, case: Scenario, progress: "_Progress") -> None:
        self.plan = plan
        self.case = case
        self.progress = progress
        self.outcomes: list[Outcome] = []
        self.failures: list[str] = []
        self.events: Counter[str] = Counter()
        self.repeated = 0

    def runs(self, trials: int) -> Iterator[ClassRun]:
        while len(self.outcomes) < trials:
            with _noting(self.failures), Service(self.plan, self.case) as service:
                needs_round = self.case.promise is not None and self.case.promise.rotations > 0
                limit = Limit.of(self.case.promise, service.round_seconds() if needs_round else 0.0)
                try:
                    yield from self._on(service, limit, trials)
                finally:
                    self.failures += _broken(service)
            self.events += _events(service.state / "events.jsonl")
        yield self._so_far(limit)

    def _on(self, service: Service, limit: Limit, trials: int) -> Iterator[ClassRun]:
        while len(self.outcomes) < trials:
            outcome = self._trial(service, limit, len(self.outcomes))
            self.outcomes.append(outcome)
            self.progress.tell(self.outcomes)
            yield self._so_far(limit)
            if not outcome.recovered:
                return

    def _trial(self, service: Service, limit: Limit, number: int) -> Outcome:
        for _ in range(_MOST_REPEATS):
            try:
                return run_trial(service, number, limit, _draw(self.plan, self.case, number))
            except ConfigurationError as error:  # a sound version was just left out, so that it cannot be broken
                self.progress.say(f"{self.case.name}: trial {number} is made again: {error}")
                self.repeated += 1
                service.wait_whole(0, _SECONDS_TO_SETTLE)
        return run_trial(service, number, limit, _draw(self.plan, self.case, number))

    def _so_far(self, limit: Limit) -> ClassRun:
        promise = "" if self.case.promise is None else self.case.promise.text
        seconds = math.nan if limit.seconds is None else limit.seconds
        told = (tuple(self.outcomes), tuple(self.failures), self.repeated, dict(self.events), *self.progress.told)
        return ClassRun(self.case.name, self.case.group, promise, seconds, *told)


class _Progress:
    """Says now and then how far a class is."""

    def __init__(self, name: str, trials: int, say: Callable[[str], None]) -> None:
        self.name = name
        self.trials = trials
        self.say = say
        self._start = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def told(self) -> tuple[float, float]:
        """These, and how busy the machine is."""
        return self.seconds, os.getloadavg()[0]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Say it if it is time."""
        now = time.monotonic()
        if now - self._told < _TELL_EVERY:
            return
        self._told = now
        missed, left = sum(not each.kept for each in outcomes), self.trials - len(outcomes)
        seconds = self.seconds / len(outcomes) * left
        self.say(f"{self.name}: {len(outcomes)} of {self.trials}, {missed} missed, about {seconds:.0f} s left")


class _Noting(logging.Handler):
    def __init__(self, failures: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.failures = failures

    def emit(self, record: logging.LogRecord) -> None:
        what = record.exc_info[1] if record.exc_info else ""
        self.failures.append(f"{record.getMessage()}: {type(what).__name__}: {what}")


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Take note of the errors that the guard logs."""
    handler, logger = _Noting(failures), logging.getLogger("deepfailguard")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _broken(service: Service) -> list[str]:
    """What should go on and does not."""
    failures = [] if service.load.alive else ["a client came to an end"]
    thread = service.runtime._upkeep._thread
    return failures if thread is not None and thread.is_alive() else [*failures, "the upkeep came to an end"]


def _events(path: Path) -> Counter[str]:
    """How often each event was written."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return Counter(json.loads(line)["event"] for line in lines)


def _draw(plan: Plan, case: Case, number: int) -> random.Random:
    return random.Random(f"{plan.seed}/{case.name}/{number}")
