"""A runtime under load, and what a trial needs of both."""

import random
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.mishaps.loading import Habits, Load, Request
from benchmarks.mishaps.patients import Patient, live_rounds
from benchmarks.mishaps.references import References
from benchmarks.mishaps.scenarios import Scenario
from benchmarks.mishaps.subjects import Subject, with_switches
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.runtime.settings import Settings

__all__ = ["Plan", "Service"]

_SETTINGS: Final = Settings(first_probe=0.02, longest_probe=0.2, watch=False)
_SECONDS_TO_BEGIN: Final = 120.0
_SECONDS_TO_FIT: Final = 600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign is made with.

    Attributes:
        subject: the guard.
        references: what it must answer.
        folder: for what a runtime writes; decisions that were fitted there are found again.
        seed: of all draws.
        habits: of the load.
        settings: of all runtimes, but for what a class of faults changes.
    """

    subject: Subject
    references: References
    folder: Path
    seed: int = 0
    habits: Habits = field(default_factory=Habits)
    settings: Settings = _SETTINGS


class Service:
    """A runtime on a copy of the guard's folder, and clients that ask it all the time.

    Args:
        plan: of the campaign.
        scenario: says where versions run, and which settings differ.

    Attributes:
        runtime: of the guard.
        load: on it.
        told: how many requests were taken notice of.
    """

    def __init__(self, plan: Plan, scenario: Scenario) -> None:
        self.plan = plan
        self.scenario = scenario
        self.folder = plan.folder / "guard"
        self.state = plan.folder / "state"
        self._prepare()
        subject = plan.subject
        models = with_switches(subject.plans, plan.folder, subject.names)
        self.switches = [models[name].switch for name in subject.names]
        for switch in self.switches:
            switch.turn("sound")
        self.runtime = GuardRuntime.load(
            self.folder, models, isolation=scenario.isolation, settings=self._settings(), state=self.state
        )
        self.told = 0
        self.load = Load(self.runtime, subject.images, plan.habits, plan.seed)

    def _prepare(self) -> None:
        """A fresh copy of the guard; of what a runtime before wrote only the fitted decisions stay."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.plan.subject.folder, self.folder)
        for old in self.state.glob("*.json*"):
            old.unlink()

    def _settings(self) -> Settings:
        changes: dict[str, Any] = self.scenario.settings
        return replace(self.plan.settings, **changes)

    def __enter__(self) -> Self:
        try:
            if not self.runtime._core.roster.derived.wait(_SECONDS_TO_FIT):
                raise TimeoutError(f"decisions for all subsets were not fitted within {_SECONDS_TO_FIT:g} s")
            self.load.__enter__()
            if self.wait_whole(0, _SECONDS_TO_BEGIN) is None:
                raise TimeoutError(f"not all versions served within {_SECONDS_TO_BEGIN:g} s")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for switch in self.switches:
            switch.turn("sound")
        self.load.__exit__()
        self.runtime.close()

    @property
    def versions(self) -> int:
        """How many there are."""
        return len(self.switches)

    def patient(self, column: int, draw: random.Random) -> Patient:
        """A version that is to be broken."""
        return Patient(self.runtime, self.load, column, self.switches[column], self.folder, draw)

    def wait_whole(self, number: int, seconds: float) -> Request | None:
        """The first request from this number on that was made from now on and that all versions answered."""
        now = time.monotonic()
        return self.load.wait(number, lambda request: request.start >= now and _is_whole(request), seconds)

    def new_requests(self) -> list[Request]:
        """The requests that ended since this was called last."""
        requests = self.load.since(self.told)
        self.told += len(requests)
        self.load.forget(self.told)
        return requests

    def round_seconds(self) -> float:
        """How long a round of the comparison of weights takes, of the version for which it takes longest."""
        start, rounds = time.monotonic(), self._rounds()
        while min(after - before for before, after in zip(rounds, self._rounds(), strict=True)) < _ROUNDS:
            if time.monotonic() - start > _SECONDS_TO_BEGIN:
                raise TimeoutError(f"no {_ROUNDS} rounds of comparing weights within {_SECONDS_TO_BEGIN:g} s")
            time.sleep(0.01)
        return (time.monotonic() - start) / _ROUNDS

    def _rounds(self) -> list[int]:
        return [live_rounds(self.runtime, column) for column in range(self.versions)]


_ROUNDS: Final = 3


def _is_whole(request: Request) -> bool:
    return request.verdict is not None and all(
        each.state == "serving" and each.fault is None and each.answered == each.asked > 0
        for each in request.verdict.health
    )
