"""The invariants of a guard under fault, with runners and a clock that do what the test says."""

import dataclasses
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError, VersionError, VersionLostError
from deepfailguard.guard.asking import Answers
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.verdict import Verdict
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.predictor.staged import StagedPredictor
from deepfailguard.runtime import enlarging, state_folder
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.runtime.settings import Settings
from deepfailguard.runtime.sources import MemorySource
from deepfailguard.store import load_json, save_tensors
from deepfailguard.types import NO_ANSWER
from tests.examples import bars, template_model
from tests.fake_runners import FakeHouse

NAMES = ("ann", "bob", "eve")
SETTINGS = Settings(deadline=1.0, first_probe=1.0, longest_probe=8.0, canary_every=0.0, watch=False)
Behaviour = Callable[[Answers, Question], Answers]


@pytest.fixture(scope="module")
def guard() -> GuardedPredictor:
    models = {name: template_model(seed, noise=0.05 * (seed + 1)) for seed, name in enumerate(NAMES)}
    return GuardedPredictor.fit(models, bars(200, seed=3), predictor=SoftVotePredictor())


@pytest.fixture
def house() -> FakeHouse:
    return FakeHouse()


@pytest.fixture
def runtime(guard: GuardedPredictor, house: FakeHouse) -> Iterator[GuardRuntime]:
    with _runtime(guard, house, SETTINGS) as made:
        yield made


def _runtime(guard: GuardedPredictor, house: FakeHouse, settings: Settings, state: Path | None = None) -> GuardRuntime:
    made = GuardRuntime(guard, isolation=house, settings=settings, state=state, clock=house.clock, upkeep=False)
    assert made._core.roster.derived.wait(60.0)
    return made


def _states(verdict: Verdict) -> list[str]:
    return [health.state for health in verdict.health]


def _only_for(rows: slice, change: Callable[[Tensor], Tensor]) -> Behaviour:
    """Logits of the inputs of a batch, but not those of canary inputs, are changed."""

    def behave(answers: Answers, question: Question) -> Answers:
        if not question.measured:
            return answers
        return change_logits(answers, change(answers.logits.clone()))

    return behave


def change_logits(answers: Answers, logits: Tensor) -> Answers:
    labels = torch.where(torch.isfinite(logits).all(1), logits.argmax(1), NO_ANSWER)
    bad = int((labels == NO_ANSWER).sum())
    health = replace(
        answers.health, answered=len(labels) - bad, fault="not finite" if bad else None, problem="NaN" * bad
    )
    return replace(answers, logits=logits, distances=replace(answers.distances, labels=labels), health=health)


def test_it_answers_as_the_guard_does(guard: GuardedPredictor, runtime: GuardRuntime) -> None:
    images = bars(32, seed=9).images
    expected, verdict = guard(images), runtime(images)
    for field in dataclasses.fields(Verdict):
        told, wanted = getattr(verdict, field.name), getattr(expected, field.name)
        assert torch.equal(told, wanted) if isinstance(told, Tensor) else told == wanted, field.name
    assert verdict.ground == "all versions"
    assert not verdict.degraded


@pytest.mark.parametrize("parallel", [True, False])
def test_a_version_that_hangs_is_left_out_within_the_deadline(guard: GuardedPredictor, parallel: bool) -> None:
    house = FakeHouse(parallel=parallel)
    with _runtime(guard, house, SETTINGS) as runtime:
        house.runners["bob"].hangs = True
        images, start = bars(8, seed=9).images, house.clock.now
        verdict = runtime(images)
        assert house.clock.now - start <= SETTINGS.deadline
        assert verdict.health[1].fault == "timeout"
        assert _states(verdict) == ["serving", "suspended", "serving"]
        assert verdict.degraded
        assert verdict.ground == "versions left"
        expected = guard.without(["bob"])(images)
        assert torch.equal(verdict.labels, expected.labels)
        assert torch.equal(verdict.failure_probability, expected.failure_probability)
        assert house.runners["bob"].abandoned == 1
        start, before = house.clock.now, len(house.runners["bob"].asked)
        runtime(images)
        assert house.clock.now == start  # nobody waits for it again
        assert len(house.runners["bob"].asked) == before


def test_versions_that_take_turns_share_the_time(guard: GuardedPredictor) -> None:
    house = FakeHouse(parallel=False)
    with _runtime(guard, house, SETTINGS) as runtime:
        house.runners["ann"].hangs = house.runners["bob"].hangs = True
        verdict = runtime(bars(4, seed=9).images)
        assert _states(verdict) == ["suspended", "suspended", "serving"]
        assert (verdict.labels >= 0).all()


def test_who_could_not_be_asked_is_not_to_blame(guard: GuardedPredictor) -> None:
    house = FakeHouse(parallel=False)
    with _runtime(guard, house, SETTINGS) as runtime:

        def behave(answers: Answers, _: Question) -> Answers:
            house.clock.now += 5.0  # whatever stopped the whole program for so long
            return answers

        house.runners["ann"].behave = behave
        verdict = runtime(bars(4, seed=9).images)
        assert _states(verdict) == ["serving"] * 3
        assert verdict.degraded
        assert verdict.ground == "versions left"
        assert "not enough time" in verdict.health[2].problem
        assert not runtime(bars(4, seed=9).images, deadline=100.0).degraded


def test_a_deadline_that_no_version_can_keep_blames_none(guard: GuardedPredictor, house: FakeHouse) -> None:
    with _runtime(guard, house, SETTINGS) as runtime:
        images = bars(4, seed=9).images
        for member in runtime._core.roster.members:
            member.tally.note_seconds(0.01)
        verdict = runtime(images, deadline=0.005)
        assert verdict.ground == "fallback"
        assert verdict.degraded
        assert _states(verdict) == ["serving"] * 3
        assert not runtime(images).degraded


def test_a_version_that_was_repaired_while_it_was_asked_does_not_count(
    guard: GuardedPredictor, house: FakeHouse
) -> None:
    with _runtime(guard, house, SETTINGS) as runtime:
        core = runtime._core
        (bob,) = [member for member in core.roster.members if member.name == "bob"]

        def behave(answers: Answers, _: Question) -> Answers:  # eve is slow; meanwhile bob is found corrupted
            core.suspend(bob, "weights changed", "a bit flipped")
            bob.restart = False
            bob.breaker.close(house.clock())
            core.note_change(bob)
            return answers

        house.runners["eve"].behave = behave
        verdict = runtime(bars(4, seed=9).images)
        assert (verdict.version_labels[:, 1] == NO_ANSWER).all()
        assert verdict.degraded
        assert "repaired since" in verdict.health[1].problem
        house.runners["eve"].behave = None
        assert not runtime(bars(4, seed=9).images).degraded


def test_a_version_serves_again_when_it_passes_the_canary(runtime: GuardRuntime, house: FakeHouse) -> None:
    ann = house.runners["ann"]
    ann.broken, images = VersionLostError("killed"), bars(4, seed=9).images
    assert runtime(images).health[0].fault == "process died"
    runtime.upkeep()
    assert ann.starts == 1  # not yet: the first probe is due after a second
    house.clock.now += 1.0
    runtime.upkeep()  # begins to start it
    runtime.upkeep()  # learns that it failed
    assert ann.starts == 2
    assert _states(runtime(images))[0] == "suspended"
    ann.broken = None
    house.clock.now += 2.0
    for _ in range(3):
        runtime.upkeep()
    verdict = runtime(images)
    assert not verdict.degraded
    assert verdict.ground == "all versions"
    assert runtime.status().versions[0].restarts == 2
    told = [event["event"] for event in runtime.status().events]
    assert told == ["starting", "fault", "suspended", "restarting", "fault", "restarting", "recovered"]


def test_probes_become_rarer(runtime: GuardRuntime, house: FakeHouse) -> None:
    ann = house.runners["ann"]
    ann.broken = VersionLostError("killed")
    runtime(bars(1, seed=9).images)
    times = []
    for _ in range(400):
        starts = ann.starts
        house.clock.now += 0.1
        runtime.upkeep()
        if ann.starts > starts:
            times.append(house.clock.now)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert [round(gap) for gap in gaps] == [2, 4, 8, 8, 8, 8]


def test_who_was_tried_in_vain_is_given_more_time(runtime: GuardRuntime, house: FakeHouse) -> None:
    ann, told = house.runners["ann"], dict[str, None]()
    ann.broken = VersionLostError("killed")
    runtime(bars(1, seed=9).images)
    ann.broken, ann.hangs = None, True  # it is started, and its first answer does not come
    for _ in range(400):
        house.clock.now += 0.1
        runtime.upkeep()
        told[runtime.status().versions[0].reason] = None
    assert re.findall(r"canary inputs took longer than (\S+) s", " ".join(told)) == ["1", "2", "4", "8"]


def test_weights_that_changed_are_noticed_and_loaded_again(runtime: GuardRuntime, house: FakeHouse) -> None:
    eve = house.runners["eve"]
    eve.changed = ("1.weight",)
    for _ in range(20):
        house.clock.now += 0.5
        runtime.upkeep()
        if runtime.status().versions[2].state == "suspended":
            break
    status = runtime.status().versions[2]
    assert status.fault == "weights changed"
    assert "1.weight" in status.reason
    eve.changed = ()
    for _ in range(5):
        house.clock.now += 0.5
        runtime.upkeep()
    assert eve.starts == 2
    assert runtime.status().versions[2].state == "serving"


def test_an_input_that_a_version_cannot_answer_costs_neither_version_nor_batch(
    guard: GuardedPredictor, runtime: GuardRuntime, house: FakeHouse
) -> None:
    def spoil(logits: Tensor) -> Tensor:
        logits[2] = torch.nan
        return logits

    house.runners["ann"].behave = _only_for(slice(2, 3), spoil)
    images = bars(6, seed=9).images
    verdict = runtime(images)
    assert _states(verdict) == ["serving"] * 3
    assert verdict.version_labels[:, 0].tolist().count(NO_ANSWER) == 1
    assert verdict.degraded
    rest = [0, 1, 3, 4, 5]
    assert torch.equal(verdict.labels[rest], guard(images).labels[rest])
    assert runtime.status().versions[0].faults == {"not finite": 1}
    for _ in range(SETTINGS.pardons):  # but not again and again
        verdict = runtime(images)
    assert _states(verdict)[0] == "suspended"


def test_a_version_that_repeats_itself_is_left_out_at_once(runtime: GuardRuntime, house: FakeHouse) -> None:
    stuck = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    house.runners["eve"].behave = lambda answers, _: change_logits(
        answers, stuck.expand(len(answers.logits), 3).clone()
    )
    verdict = runtime(bars(6, seed=9).images)
    assert verdict.health[2].fault == "stuck output"
    assert (verdict.version_labels[:, 2] == NO_ANSWER).all()
    assert (verdict.weights[:, 2] == 0).all()


def test_a_version_that_gives_the_batch_before_again_is_left_out(runtime: GuardRuntime, house: FakeHouse) -> None:
    kept: list[Answers] = []

    def behave(answers: Answers, _: Question) -> Answers:
        kept.append(answers)
        return replace(kept[0], health=replace(answers.health))

    house.runners["bob"].behave = behave
    assert not runtime(bars(8, seed=9).images).degraded
    verdict = runtime(bars(8, seed=10).images)
    assert verdict.health[1].fault == "stuck output"


def test_what_was_asked_before_a_fault_does_not_excuse_it(guard: GuardedPredictor, house: FakeHouse) -> None:
    with _runtime(guard, house, replace(SETTINGS, canary_every=1.0)) as runtime:
        house.clock.now += 2.0
        runtime.upkeep()  # all are asked the canary inputs, and pass
        house.runners["eve"].behave = lambda answers, _: change_logits(
            answers, torch.full_like(answers.logits, torch.nan)
        )
        assert runtime(bars(4, seed=9).images).health[2].fault == "not finite"
        runtime.upkeep()  # hears of it
        assert runtime.status().versions[2].state == "suspended"


def test_repeating_oneself_on_alike_inputs_is_no_fault(runtime: GuardRuntime) -> None:
    blank = torch.zeros(4, 1, 8, 8)
    blank[:, 0, 7, 7] = torch.arange(4) / 100  # a pixel that no model looks at but for noise
    assert not runtime(torch.zeros(4, 1, 8, 8)).degraded
    runtime(blank)
    assert all(version.faults == {} for version in runtime.status().versions)


def test_fewer_versions_than_must_answer_make_it_abstain(guard: GuardedPredictor, house: FakeHouse) -> None:
    with _runtime(guard, house, replace(SETTINGS, least_versions=2)) as runtime:
        images = bars(4, seed=9).images
        runtime.set_aside("ann", "for a test")
        assert not runtime(images).abstained.any()
        assert runtime.status().ready
        house.runners["bob"].broken = VersionLostError("killed")
        verdict = runtime(images)
        assert verdict.abstained.all()
        assert verdict.ground == "too few versions"
        assert (verdict.labels >= 0).all()  # what it would say
        assert not runtime.status().ready
        assert runtime.status().events[-1]["event"] == "not ready"


@pytest.mark.parametrize("fallback", [None, 2])
def test_no_version_left_gives_the_declared_fallback(
    guard: GuardedPredictor, house: FakeHouse, fallback: int | None
) -> None:
    with _runtime(guard, house, replace(SETTINGS, fallback=fallback)) as runtime:
        for runner in house.runners.values():
            runner.broken = VersionLostError("killed")
        images = bars(3, seed=9).images
        images[1, 0, 0, 0] = torch.nan
        verdict = runtime(images)
        wanted = NO_ANSWER if fallback is None else fallback
        assert verdict.labels.tolist() == [wanted, NO_ANSWER, wanted]
        assert verdict.abstained.tolist() == [fallback is None, True, fallback is None]
        assert (verdict.failure_probability == 1).all()
        assert verdict.ground == "fallback"
        assert verdict.degraded
        assert 1 in verdict.problems
        assert ("declared fallback" in verdict.explain(0)) == (fallback is not None)


def test_no_answer_comes_from_a_version_that_was_set_aside(runtime: GuardRuntime, house: FakeHouse) -> None:
    images = bars(4, seed=9).images
    runtime.set_aside("bob", "looks odd")
    before = len(house.runners["bob"].asked)
    verdict = runtime(images)
    assert len(house.runners["bob"].asked) == before
    assert (verdict.version_labels[:, 1] == NO_ANSWER).all()
    assert verdict.degraded
    assert "looks odd" in verdict.explain(0)
    assert "1 in quarantine" in verdict.explain(0)
    with pytest.raises(ConfigurationError, match="nothing to release"):
        runtime.release("ann")
    with pytest.raises(ConfigurationError, match="no version 'zoe'"):
        runtime.release("zoe")
    runtime.release("bob")
    assert _states(runtime(images))[1] == "suspended"  # not before it was tried
    for _ in range(3):
        runtime.upkeep()
    assert _states(runtime(images))[1] == "serving"


def test_setting_a_version_aside_while_it_answers_takes_its_answer_back(
    runtime: GuardRuntime, house: FakeHouse
) -> None:
    def behave(answers: Answers, question: Question) -> Answers:
        runtime.set_aside("ann", "just now")
        return answers

    house.runners["ann"].behave = behave
    verdict = runtime(bars(4, seed=9).images)
    assert (verdict.version_labels[:, 0] == NO_ANSWER).all()
    assert verdict.degraded
    assert verdict.health[0].state == "quarantined"
    assert verdict.health[0].asked == 4


def test_same_inputs_give_the_same_verdict(runtime: GuardRuntime) -> None:
    images = bars(16, seed=9).images
    first, second = runtime(images), runtime(images)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.failure_probability, second.failure_probability)
    assert torch.equal(first.weights, second.weights)


def test_bad_inputs_are_named_and_a_bad_batch_is_refused(runtime: GuardRuntime) -> None:
    images = bars(3, seed=9).images
    images[0] = 7.0
    verdict = runtime(images)
    assert list(verdict.problems) == [0]
    assert not verdict.degraded
    assert len(runtime(images[:1])) == 1
    assert len(runtime(images[:0])) == 0
    with pytest.raises(DataFormatError, match="as in calibration"):
        runtime(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigurationError, match="positive number of seconds"):
        runtime(images, deadline=0.0)


def test_swapping_lets_a_shadow_serve_and_the_gate_refuses_worse(guard: GuardedPredictor, house: FakeHouse) -> None:
    with _runtime(guard, house, replace(SETTINGS, standby=("eve",))) as runtime:
        images = bars(8, seed=9).images
        verdict = runtime(images)
        assert _states(verdict) == ["serving", "serving", "shadow"]
        assert not verdict.degraded
        assert torch.equal(verdict.labels, guard.without(["eve"])(images).labels)
        runtime.upkeep()  # asks the shadow
        runtime.upkeep()  # hears it
        assert runtime.status().versions[2].asked == 8
        with pytest.raises(ConfigurationError, match="does not serve"):
            runtime.swap("eve", "eve")
        gate = runtime.swap("ann", "eve", force=True)
        assert gate.leaving == "ann"
        assert gate.entering == "eve"
        verdict = runtime(images)
        assert _states(verdict) == ["shadow", "serving", "serving"]
        assert verdict.ground == "all versions"
        assert torch.equal(verdict.labels, guard.without(["ann"])(images).labels)
        assert runtime.status().events[-1]["event"] == "swapped"


def test_a_swap_for_a_much_worse_version_is_refused(house: FakeHouse) -> None:
    models = {"good": template_model(0), "bad": template_model(2, noise=5.0)}
    guard = GuardedPredictor.fit(models, bars(400, seed=3), predictor=PriorPredictor())
    with _runtime(guard, house, replace(SETTINGS, standby=("bad",))) as runtime:
        with pytest.raises(ConfigurationError, match="the swap is refused"):
            runtime.swap("good", "bad")
        assert _states(runtime(bars(2, seed=9).images)) == ["serving", "shadow"]


def test_a_version_that_is_added_counts_only_after_it_was_calibrated(
    guard: GuardedPredictor, runtime: GuardRuntime
) -> None:
    images = bars(8, seed=9).images
    runtime.add(template_model(7, noise=0.01), "new")
    verdict = runtime(images)
    assert len(verdict.health) == 3
    assert torch.equal(verdict.labels, guard(images).labels)
    with pytest.raises(ConfigurationError, match="not calibrated yet"):
        runtime.admit("new")
    with pytest.raises(ConfigurationError, match="must be calibrated on the 200 images"):
        runtime.calibrate("new", bars(200, seed=4))
    runtime.calibrate("new", bars(200, seed=3))
    assert torch.equal(runtime(images).labels, guard(images).labels)
    assert _states(runtime(images)) == ["serving", "serving", "serving", "shadow"]
    runtime.admit("new")
    verdict = runtime(images)
    assert verdict.version_labels.shape == (8, 4)
    assert verdict.ground == "all versions"
    assert not verdict.degraded
    models = {name: template_model(seed, noise=0.05 * (seed + 1)) for seed, name in enumerate(NAMES)}
    whole = GuardedPredictor.fit(
        models | {"new": template_model(7, noise=0.01)}, bars(200, seed=3), predictor=SoftVotePredictor()
    )
    assert torch.equal(verdict.failure_probability, whole(images).failure_probability)
    runtime.retire("ann")
    assert _states(runtime(images))[0] == "shadow"


def test_what_labelled_inputs_taught_is_not_dropped_for_a_newcomer(
    house: FakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {name: template_model(seed, noise=0.05 * (seed + 1)) for seed, name in enumerate(NAMES)}
    guard = GuardedPredictor.fit(models, bars(200, seed=3), predictor=SoftVotePredictor())
    service = guard.update(bars(4, seed=4).images, bars(4, seed=4).labels)
    assert service.chosen == "calibration"  # so few show nothing: the guard learned nothing that could be lost
    with _runtime(guard, house, SETTINGS) as runtime:
        runtime.add(template_model(7, noise=0.01), "new")
        runtime.calibrate("new", bars(200, seed=3))
    kept = guard.saved.service
    assert kept is not None
    taught = replace(guard.saved, service=replace(kept, basis="service"))
    sources = [MemorySource(version) for version in guard.versions]
    with GuardRuntime(taught, sources=sources, isolation=house, settings=SETTINGS, upkeep=False) as runtime:
        runtime.add(template_model(7, noise=0.01), "new")
        monkeypatch.setattr(enlarging, "fit_to_loaded", None)  # nothing is begun that takes long
        with pytest.raises(ConfigurationError, match=r"from 4 labelled .* would be lost: 'new'.*Fit a guard of all"):
            runtime.calibrate("new", bars(200, seed=3))
        assert runtime._core.roster.saved is taught


def test_what_was_saved_last_is_the_newest_state(
    guard: GuardedPredictor, house: FakeHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:  # as on a busy disk
        if threading.current_thread() is upkeep:
            inside.set()
            assert go.wait(60)
        save_tensors(*arguments)

    with _runtime(guard, house, replace(SETTINGS, watch=True), tmp_path) as runtime:
        monkeypatch.setattr(state_folder, "save_tensors", slow)
        upkeep = threading.Thread(target=lambda: runtime._folder.save(runtime._core))
        operator = threading.Thread(target=lambda: runtime.set_aside("bob", "poisoned"))
        upkeep.start()
        assert inside.wait(60)
        operator.start()
        operator.join(0.5)  # as long as it may overtake; it must not
        go.set()
        upkeep.join(60)
        operator.join(60)
        told = load_json(tmp_path / "state.json")["versions"]
    assert [told[name]["aside"] for name in NAMES] == ["", "poisoned", ""]


def test_what_was_set_aside_stays_so_after_a_restart(guard: GuardedPredictor, tmp_path: Path) -> None:
    settings = replace(SETTINGS, standby=("eve",), watch=True)
    with _runtime(guard, FakeHouse(), settings, tmp_path) as runtime:
        runtime.set_aside("bob", "looks odd")
        runtime.swap("ann", "eve", force=True)
        runtime(bars(8, seed=9).images)
        seen = runtime._core.roster.quarantine
        assert seen is not None
        assert seen.report().inputs == 8
    with _runtime(guard, FakeHouse(), settings, tmp_path) as runtime:
        assert [version.state for version in runtime.status().versions] == ["shadow", "quarantined", "serving"]
        seen = runtime._core.roster.quarantine
        assert seen is not None
        assert seen.report().inputs == 8
        lines = (tmp_path / "events.jsonl").read_text().splitlines()
        assert sum('"quarantined"' in line for line in lines) == 2
    (tmp_path / "state.json").write_text("{}")
    with _runtime(guard, FakeHouse(), settings, tmp_path) as runtime:
        assert [version.state for version in runtime.status().versions] == ["serving", "serving", "shadow"]
        assert "state ignored" in [event["event"] for event in runtime.status().events]


def test_a_version_that_cannot_be_started_is_left_out_and_none_at_all_is_an_error(guard: GuardedPredictor) -> None:
    class Breaking(FakeHouse):
        def __call__(self, name, source, distance, cache):  # type: ignore[no-untyped-def]
            runner = super().__call__(name, source, distance, cache)
            runner.broken = VersionError("no file") if name in self.lost else None
            return runner

        lost: tuple[str, ...] = ("ann",)

    house = Breaking()
    with _runtime(guard, house, SETTINGS) as runtime:
        verdict = runtime(bars(2, seed=9).images)
        assert _states(verdict)[0] == "suspended"
        assert "no file" in verdict.health[0].problem
    Breaking.lost = NAMES
    with pytest.raises(ConfigurationError, match=r"no version of the guard can answer: ann: .*no file"):
        _runtime(guard, Breaking(), SETTINGS)


def test_memory_that_grows_restarts_a_process(runtime: GuardRuntime, house: FakeHouse) -> None:
    bob = house.runners["bob"]
    bob.bytes = 100 << 20
    house.clock.now += 1.0
    runtime.upkeep()
    bob.bytes = (100 << 20) + SETTINGS.memory_growth + 1
    house.clock.now += 1.0
    runtime.upkeep()
    assert runtime.status().versions[1].fault == "memory growth"
    bob.bytes = 100 << 20
    house.clock.now += 1.0
    for _ in range(4):
        runtime.upkeep()
    assert bob.starts == 2
    assert runtime.status().versions[1].state == "serving"


def test_a_cascade_goes_on_without_a_version(house: FakeHouse) -> None:
    models = {name: template_model(seed, noise=0.05 * (seed + 1)) for seed, name in enumerate(NAMES)}
    guard = GuardedPredictor.fit(models, bars(300, seed=3), predictor=StagedPredictor())
    with _runtime(guard, house, SETTINGS) as runtime:
        images = bars(16, seed=9).images
        assert torch.equal(runtime(images).labels, guard(images).labels)
        assert torch.equal(runtime(images).version_labels, guard(images).version_labels)
        house.runners["ann"].hangs = True
        verdict = runtime(images)
        assert verdict.health[0].fault == "timeout"
        assert verdict.degraded
        assert torch.equal(runtime(images).labels, guard.without(["ann"])(images).labels)


def test_a_predictor_that_fails_makes_the_guard_say_so(runtime: GuardRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: SoftVotePredictor, _: object) -> Tensor:
        raise ArithmeticError("singular")

    monkeypatch.setattr(SoftVotePredictor, "class_probability", fail)
    verdict = runtime(bars(2, seed=9).images)
    assert verdict.ground == "fallback"
    assert verdict.abstained.all()
    assert (verdict.labels == NO_ANSWER).all()
    assert [event["event"] for event in runtime.status().events][-1] == "judging failed"


def test_settings_that_cannot_work_are_refused(guard: GuardedPredictor, house: FakeHouse) -> None:
    for settings, match in [
        (Settings(least_versions=4), "4 versions must answer at least, but only 3 serve"),
        (Settings(standby=("zoe",)), "no version zoe to stand by"),
        (Settings(fallback=3), r"label in \[0, 3\), got 3"),
    ]:
        with pytest.raises(ConfigurationError, match=match):
            _runtime(guard, house, settings)
    with pytest.raises(ConfigurationError, match="positive number of seconds"):
        Settings(deadline=-1.0)
    with pytest.raises(ConfigurationError, match="'in process' or in 'processes'"):
        GuardRuntime(guard, isolation="somewhere")  # type: ignore[arg-type]


def test_it_does_not_answer_after_it_was_closed(guard: GuardedPredictor, house: FakeHouse) -> None:
    runtime = _runtime(guard, house, SETTINGS)
    runtime.close()
    assert all(runner.closed for runner in house.runners.values())
    with pytest.raises(ConfigurationError, match="was closed"):
        runtime(bars(1).images)


def test_closing_ends_every_thread(guard: GuardedPredictor) -> None:
    before = set(threading.enumerate())
    with GuardRuntime(guard, settings=SETTINGS) as runtime:
        runtime(bars(2, seed=9).images, deadline=60.0)
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(60.0)
    assert not any(thread.is_alive() for thread in left)
