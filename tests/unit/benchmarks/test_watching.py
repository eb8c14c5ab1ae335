"""The watching benchmark: damaged versions, replayed streams, figures."""

import doctest
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import watching
from benchmarks.decisions.ensembles import Ensemble
from benchmarks.decisions.evidence import PoolEvidence, Said
from benchmarks.decisions.images import CALIBRATION, TEST, Part, rehearsed_part, shifted_part
from benchmarks.decisions.pools import DEVELOPMENT, Member
from benchmarks.watches import damages, figures
from benchmarks.watches.damages import Damage, damaged, with_damage
from benchmarks.watches.figures import Measured, as_plain, at_most, bars_for, is_right, matters, noticed, tables
from benchmarks.watches.measuring import Accuracies, Case, Quiet, break_versions, shift_inputs, stay_quiet
from benchmarks.watches.serving import guard_of, labels_of, serve
from deepfailguard.data.base import ImageSet
from deepfailguard.faults.rehearsal import KINDS
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.quarantine import Quarantine
from deepfailguard.guard.watch_report import WatchReport
from deepfailguard.guard.watched import WatchedGuard
from deepfailguard.guard.watching import VersionWatch
from deepfailguard.types import Bounds
from deepfailguard.versions.tapping import tapped
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, bars, template_model

ENSEMBLE = Ensemble("sound", (0, 1, 2))


@pytest.fixture(scope="module")
def versions() -> list[Version]:
    return [Version.of(template_model(seed, 0.3), f"v{seed}", CLASSES, Bounds()) for seed in range(3)]


@pytest.fixture(scope="module")
def pool(versions: list[Version]) -> PoolEvidence:
    test = bars(200, seed=11)
    parts = {CALIBRATION: Part(bars(300, seed=10)), TEST: Part(test)}
    parts[shifted_part("light")] = Part(ImageSet(test.images * 0.4, test.labels))
    for number, kind in enumerate(KINDS):
        parts[rehearsed_part(kind)] = Part(bars(20, seed=20 + number), torch.arange(20))
    nothing = torch.zeros(0)
    said = {}
    for name, part in parts.items():
        taps = [tapped(version.model, part.images.images) for version in versions]
        said[name] = tuple(Said(tap.logits, tap.features, nothing, nothing.bool()) for tap in taps)
    members = tuple(Member(version.name, None) for version in versions)
    return PoolEvidence("digits", 100, members, tuple(v.fingerprint for v in versions), parts, said)


@pytest.fixture(scope="module")
def guard(pool: PoolEvidence, versions: list[Version]) -> GuardedPredictor:
    return guard_of(pool, ENSEMBLE, versions)


def spoilt(pool: PoolEvidence, member: int) -> dict[str, Tensor]:
    """What a version says that is wrong on all inputs and sure of it."""
    said = pool.said[TEST][member]
    return {"logits": said.logits.roll(1, 1) * 5, "features": said.features}


def test_what_damaged_versions_say_is_asked_once(pool: PoolEvidence, versions: list[Version], tmp_path: Path) -> None:
    damage, by_position = Damage(1, 100, 3), dict(enumerate(versions))
    first = damaged([damage, damage], pool, by_position, tmp_path)[damage]
    assert len(list(tmp_path.iterdir())) == 1
    assert not torch.equal(first["logits"], pool.said[TEST][1].logits)
    model, receipt = damage.fault.apply(versions[1].model, 3)
    torch.testing.assert_close(first["logits"], model(pool.parts[TEST].images.images).detach(), equal_nan=True)
    assert sum(change.count for change in receipt.changes) <= 100
    versions[1].model.eval()
    kept = damaged([damage], pool, {1: replace(versions[1], model=torch.nn.Identity())}, tmp_path)[damage]
    assert torch.equal(first["features"].nan_to_num(), kept["features"].nan_to_num())


def test_what_other_code_broke_is_not_kept(
    pool: PoolEvidence, versions: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, by_position = Damage(1, 1, 0), dict(enumerate(versions))
    damaged([damage], pool, by_position, tmp_path)
    monkeypatch.setattr(damages, "digest_of_code", lambda *patterns: f"other code in {patterns}")
    damaged([damage], pool, by_position, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_evidence_of_a_damaged_version_is_as_a_guard_gathers_it(pool: PoolEvidence) -> None:
    said = spoilt(pool, 2)
    said["logits"][5] = torch.nan
    sound = pool.of(TEST, ENSEMBLE.members)
    broken = with_damage(sound, 2, said)
    assert broken.labels[5].tolist()[2] == -1
    assert broken.logits is not None
    assert (broken.logits[5, 2] == 0).all()
    assert torch.equal(broken.labels[:, :2], sound.labels[:, :2])
    assert (broken.labels[:5, 2] == said["logits"][:5].argmax(1)).all()
    assert sound.labels[5].tolist()[2] != -1


def test_a_replayed_stream_gives_the_answers_of_the_guard(pool: PoolEvidence, guard: GuardedPredictor) -> None:
    service = serve(guard, pool.of(TEST, ENSEMBLE.members))
    images, watched = pool.parts[TEST].images.images, WatchedGuard(guard)
    live = torch.cat([watched(images[start : start + 32]).labels for start in range(0, 200, 32)])
    assert torch.equal(service.labels, live)
    assert str(service.reports[-1]) == str(watched.report())
    assert (service.first_alarm, service.ends[-1], service.start(2)) == (None, 200, 64)
    assert torch.equal(labels_of(guard, pool.of(TEST, ENSEMBLE.members), range(3)), live)


def test_a_broken_version_is_noticed_and_the_others_answer(pool: PoolEvidence, guard: GuardedPredictor) -> None:
    damage = Damage(1, 10, 0)
    (case,) = break_versions(pool, ENSEMBLE, guard, [damage], {damage: spoilt(pool, 1)})
    assert (case.change, case.target, case.versions) == ("10 bits", 1, 3)
    assert matters(case)
    assert noticed(case)
    assert is_right(case)
    assert case.wrongly == 0
    assert case.after is not None
    assert case.after.watched == case.after.without
    assert case.stream.watched >= case.stream.unwatched


def test_changed_inputs_set_nobody_apart(pool: PoolEvidence, guard: GuardedPredictor) -> None:
    cases = list(shift_inputs(pool, ENSEMBLE, guard, repeats=2))
    assert [case.change for case in cases] == ["light", "light"]
    for case in cases:
        assert case.inputs == 150
        assert noticed(case)
        assert (case.last_cause, case.apart) == ("inputs", ())
        assert math.isnan(case.stream.without)


def test_undisturbed_streams_are_counted(pool: PoolEvidence, guard: GuardedPredictor) -> None:
    quiet = stay_quiet(pool, ENSEMBLE, WatchedGuard(guard), 3)
    assert quiet == Quiet("digits", 100, 3, 3, 600, 0)
    nervous = stay_quiet(pool, ENSEMBLE, WatchedGuard(guard, inputs_per_false_alarm=5.0), 3)
    assert 0 < nervous.alarms <= 600 / 5


def test_alarms_that_no_longer_stand_after_a_quarantine_are_counted_too(
    pool: PoolEvidence, guard: GuardedPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised, told = [], []
    update, see = VersionWatch.update, Quarantine.see

    def watching_update(watch: VersionWatch, labels: Tensor, scores: Mapping[str, Tensor]) -> WatchReport:
        report = update(watch, labels, scores)
        raised.append(len(report.alarms))  # none stood before: each is acknowledged
        return report

    def watching_see(quarantine: Quarantine, labels: Tensor, scores: Mapping[str, Tensor]) -> WatchReport:
        report = see(quarantine, labels, scores)
        told.append(len(report.alarms))
        return report

    monkeypatch.setattr(VersionWatch, "update", watching_update)
    monkeypatch.setattr(Quarantine, "see", watching_see)
    quiet = stay_quiet(pool, ENSEMBLE, WatchedGuard(guard, inputs_per_false_alarm=30.0), 20)
    assert quiet.alarms == sum(raised) > sum(told)


def made_up(**settings: Any) -> Case:
    case = Case(
        data="digits",
        seed=100,
        setting="sound",
        members=("a", "b", "c"),
        change="10 bits",
        target=1,
        drop=0.5,
        inputs=1000,
        delay=20.0,
        first_cause="versions",
        last_cause="versions",
        apart=(1,),
        wrongly=0.0,
        stream=Accuracies(0.89, 0.5, 0.9),
        after=Accuracies(0.9, 0.5, 0.9),
    )
    return replace(case, **settings)


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        ({}, True),
        ({"first_cause": "unclear"}, False),
        ({"apart": ()}, False),
        ({"apart": (1, 2)}, False),
        ({"target": None, "first_cause": "inputs", "apart": ()}, True),
        ({"target": None, "first_cause": "inputs"}, False),
        ({"target": None, "apart": ()}, False),
    ],
)
def test_who_is_right(settings: dict[str, Any], right: bool) -> None:
    assert is_right(made_up(**settings)) == right


@pytest.mark.parametrize(("delay", "expected"), [(1.0, True), (500.0, True), (501.0, False), (0.0, False)])
def test_what_counts_as_noticed(delay: float, expected: bool) -> None:
    assert noticed(made_up(delay=delay)) == expected
    assert not noticed(made_up(delay=math.nan))


def test_bars_say_what_was_reached() -> None:
    late = made_up(delay=math.nan, after=None, stream=Accuracies(0.5, 0.5, 0.9), first_cause="nothing", apart=())
    harmless = made_up(drop=0.01, delay=math.nan, after=None, stream=Accuracies(0.0, 0.0, 1.0))
    measured = Measured("digits", [made_up(), late, harmless], [], [Quiet("digits", 100, 3, 10, 200_000, 1)])
    share, after, stream, false = bars_for(measured)
    assert (share.figure, share.verdict, share.note) == (0.5, "MISSED", "1 of 2 faults")
    assert (after.figure, after.verdict) == (0.0, "reached")
    assert stream.figure == pytest.approx((0.01 + 0.4) / 2)
    assert "worst 0.4000" in stream.note
    assert (false.figure, false.verdict) == (pytest.approx(5e-6), "reached")
    nothing = bars_for(Measured("digits", [], [], []))
    assert [bar.verdict for bar in nothing] == ["not measured"] * 4


def test_tables_and_json_hold_everything() -> None:
    shifted = made_up(target=None, change="noise", drop=math.nan, wrongly=0.25, first_cause="inputs", apart=())
    measured = Measured("digits", [made_up(), made_up(drop=0.0)], [shifted], [Quiet("digits", 100, 3, 10, 20_000, 0)])
    text = "\n".join(tables(measured))
    assert "noise" in text
    assert "25.0" in text
    assert "89.00" in text
    assert "20000" in text
    plain = as_plain(measured)
    assert plain["broken"][0] == asdict(made_up())
    assert len(plain["quiet"]) == 1


def test_the_interval_of_rare_events_is_exact() -> None:
    # P(no event | mean 2.996) = P(at most one | mean 4.744) = 0.05
    assert at_most(0, 1) == pytest.approx(2.9957, abs=1e-4)
    assert at_most(1, 100) == pytest.approx(0.047439, abs=1e-6)


def test_members_take_turns_in_breaking() -> None:
    told = watching.damages_of(Ensemble("sound", (2, 5, 7)), 4)
    assert len(told) == 12
    assert [damage.member for damage in told[:4]] == [2, 5, 7, 2]
    assert len(set(told)) == 12


@pytest.mark.parametrize("module", [figures, watching], ids=lambda module: module.__name__)
def test_doctests(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_a_quick_run_never_sees_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["watching.py", "--quick"])
    options = watching.arguments()
    assert min(options.seeds) >= DEVELOPMENT
    assert options.versions == [3]
