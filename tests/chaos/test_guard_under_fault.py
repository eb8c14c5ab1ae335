"""A guard under load while its versions are broken in every way: a trial or two of each class of the benchmark."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.mishaps.campaign import run_case
from benchmarks.mishaps.figures import ClassRun
from benchmarks.mishaps.loading import Habits
from benchmarks.mishaps.refusing import LOADINGS, Loading
from benchmarks.mishaps.scenarios import SCENARIOS, Scenario
from benchmarks.mishaps.service import Plan, Service
from benchmarks.mishaps.trials import Limit, Outcome, run_trial
from tests.chaos_subject import small_plan

HERE = [scenario for scenario in SCENARIOS if scenario.isolation == "in process"]
HANGING = ("hangs", "slow", "two versions, raising or hanging")
APART = ("killed while idle", "killed in an answer", "ends itself", "segmentation fault")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return small_plan(tmp_path_factory.mktemp("chaos"))


@pytest.fixture(scope="module")
def processes(plan: Plan) -> Iterator[Service]:
    scenario = named(APART[0])
    apart = replace(plan, folder=plan.folder.with_name("apart"))
    with Service(apart, scenario) as service:
        yield service


def named(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def limit_of(scenario: Scenario) -> Limit:
    """What was promised in requests; how many seconds it takes depends on the machine."""
    return Limit() if scenario.promise is None else Limit(scenario.promise.requests, 120.0)


def check(outcome: Outcome, noticed: bool) -> None:
    tale = outcome.tale
    assert tale is not None
    assert outcome.kept == noticed, outcome
    assert outcome.detected == noticed
    assert outcome.recovered
    assert (tale.wrong, tale.relapsed, tale.lost, tale.undegraded) == (0, 0, 0, 0), tale
    assert tale.requests > 0


@pytest.mark.parametrize("scenario", HERE, ids=lambda scenario: scenario.name)
def test_in_this_process(plan: Plan, scenario: Scenario) -> None:
    if scenario.name in HANGING:
        plan = replace(plan, habits=Habits(clients=2, batch=8, deadlines=(1.0, 1.5), pause=0.002))
    with Service(plan, scenario) as service:
        for number in range(2):
            check(
                run_trial(service, number, limit_of(scenario), random.Random(number)),
                noticed=scenario.promise is not None,
            )
        states = [version.state for version in service.runtime.status().versions]
    assert states == ["serving"] * 3


@pytest.mark.parametrize("name", APART)
def test_in_processes(processes: Service, name: str) -> None:
    processes.scenario = named(name)
    outcome = run_trial(processes, 0, limit_of(processes.scenario), random.Random(0))
    check(outcome, noticed=True)
    assert outcome.faults == ("process died",)


@pytest.mark.parametrize("loading", LOADINGS, ids=lambda loading: loading.name)
def test_damaged_files_are_not_loaded(plan: Plan, loading: Loading, tmp_path: Path) -> None:
    *_, run = run_case(replace(plan, folder=tmp_path), loading, 2, print)
    assert isinstance(run, ClassRun)
    assert [outcome.detected for outcome in run.outcomes] == [True, True]
    assert all(outcome.faults != ("",) for outcome in run.outcomes)


def test_a_guard_that_is_sound_is_loaded(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the trials above would show nothing."""
    monkeypatch.setattr("benchmarks.mishaps.refusing.spoil", lambda path, way, draw: None)
    *_, run = run_case(replace(plan, folder=tmp_path), LOADINGS[0], 1, print)
    assert not run.outcomes[0].detected
    assert not run.outcomes[0].kept


def test_a_guard_that_examines_nothing_is_found_out(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the trials above would show nothing."""
    monkeypatch.setattr("deepfailguard.runtime.core.examine", lambda *_: None)
    with Service(plan, named("constant output")) as service:
        outcome = run_trial(service, 0, Limit(), random.Random(0))
    assert not outcome.detected
    assert outcome.tale is not None
    assert outcome.tale.exposed_answers > 0
    assert outcome.faults == ("",)
