"""The chaos benchmark: what its trials are judged by, and what its tables say."""

import doctest
import itertools
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from benchmarks import chaos
from benchmarks.mishaps import figures, switches, trials
from benchmarks.mishaps.faulty import Faulty
from benchmarks.mishaps.figures import ClassRun, as_plain, claims_of, figures_of, miss_rate
from benchmarks.mishaps.flipping import flip_random_bits
from benchmarks.mishaps.judging import TOLERANCE, Broken, Tale, tell
from benchmarks.mishaps.junit import junit_xml, write_junit
from benchmarks.mishaps.loading import Request
from benchmarks.mishaps.references import References, counted
from benchmarks.mishaps.scenarios import SCENARIOS
from benchmarks.mishaps.spoiling import Spoil, marker_of, spoil
from benchmarks.mishaps.subjects import Subject
from benchmarks.mishaps.switches import MODES, Switch, keys_of
from benchmarks.mishaps.tables import UNNOTICED, coverage_lines, service_lines, sum_lines, unnoticed_lines
from benchmarks.mishaps.trials import Limit, Outcome, columns_for
from deepfailguard.guard.places import in_places
from deepfailguard.guard.verdict import Verdict, VersionHealth
from deepfailguard.store import load_tensors, save_tensors
from deepfailguard.types import NO_ANSWER
from tests.chaos_subject import NAMES, small_plan, small_subject
from tests.examples import CLASSES, bars, template_model

OUT = VersionHealth("bob", 0, 0, "it broke", "exception", "suspended")
TALE = Tale(10, 50, 0, (), 0, 0.0, 0, 0, 2, 1, 3, 1, 0, 0, ())


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return small_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def references(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(subject.guard, subject.images, tmp_path_factory.mktemp("references"))


@pytest.mark.parametrize("module", [figures, switches, trials], ids=lambda module: module.__name__)
def test_examples_in_the_documentation(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def rows(subject: Subject) -> Tensor:
    return torch.arange(len(subject.images))


def without_bob(subject: Subject) -> Verdict:
    return in_places(subject.guard.without(["bob"])(subject.images), [0, 2], {1: OUT})


# References


def test_the_guard_of_each_subset_is_what_a_verdict_is_held_against(subject: Subject, references: References) -> None:
    for size in (1, 2, 3):
        for columns in itertools.combinations(range(3), size):
            out = [name for number, name in enumerate(NAMES) if number not in columns]
            verdict = subject.guard.without(out)(subject.images) if out else subject.guard(subject.images)
            others = {n: replace(OUT, name=NAMES[n]) for n in range(3) if n not in columns}
            placed = in_places(verdict, columns, others)
            assert counted(placed) == columns
            assert torch.equal(references.expected(placed, rows(subject)), verdict.labels)
            assert not references.false_answers(placed, rows(subject)).any()


def test_subsets_differ_so_that_a_mistake_would_show(subject: Subject, references: References) -> None:
    whole, fewer = subject.guard(subject.images), without_bob(subject)
    assert (whole.labels != fewer.labels).any()
    lying = replace(fewer, labels=whole.labels)
    assert (references.expected(lying, rows(subject)) != lying.labels).any()


def test_a_version_that_says_nothing_to_one_input_is_held_against_that(
    subject: Subject, references: References
) -> None:
    model = subject.guard.versions[0].model
    assert isinstance(model, Faulty)
    model.switch.turn("nan in one", targets=keys_of(subject.images[5:6]).tolist())
    try:
        verdict = subject.guard(subject.images)
    finally:
        model.switch.turn("sound")
    assert (verdict.version_labels[:, 0] == NO_ANSWER).nonzero().flatten().tolist() == [5]
    assert torch.equal(references.expected(verdict, rows(subject)), verdict.labels)


def test_references_are_found_again(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = References(subject.guard, subject.images, tmp_path)
    monkeypatch.setattr(References, "_of", lambda *_: pytest.fail("a decision was fitted again"))
    again = References(subject.guard, subject.images, tmp_path)
    assert torch.equal(again.versions, made.versions)
    assert torch.equal(
        again.expected(without_bob(subject), rows(subject)), made.expected(without_bob(subject), rows(subject))
    )


# What clients were told


def request(verdict: Verdict | None, start: float = 0.0, end: float = 0.1, error: str = "") -> Request:
    return Request(start, end, 1.0, torch.arange(40), verdict, error)


def test_a_sound_service_has_nothing_to_tell(subject: Subject, references: References) -> None:
    verdict = subject.guard(subject.images)
    tale = tell([request(verdict), request(verdict)], references, [])
    assert tale == Tale(2, 80, 0, (), 0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0, ())


def test_lost_and_late_requests_are_counted(subject: Subject, references: References) -> None:
    verdict = subject.guard(subject.images)
    late, slightly = request(verdict, 0.0, 1.5), request(verdict, 0.0, 1.0 + TOLERANCE / 2)
    tale = tell([request(None, error="ValueError: no"), late, slightly], references, [])
    assert (tale.lost, tale.errors, tale.late) == (1, ("ValueError: no",), 1)
    assert tale.overshoot == pytest.approx(0.5)


def test_wrong_labels_count_as_exposure_only_before_the_fault_was_noticed(
    subject: Subject, references: References
) -> None:
    sound, left = subject.guard(subject.images), without_bob(subject)
    false = (sound.version_labels[:, 1] + 1) % CLASSES
    seen = sound.version_labels.clone()
    seen[:, 1] = false
    labels = sound.labels.clone()
    labels[:4] = (labels[:4] + 1) % CLASSES
    deceived = replace(sound, version_labels=seen, labels=labels)
    noticed = request(left, 1.0, 1.1)
    before = [request(deceived, 0.5, 0.7), request(deceived, 0.65, 0.8)]
    broken = [Broken(1, 0.6, noticed)]
    tale = tell([*before, noticed], references, broken)
    assert (tale.exposed, tale.begun, tale.exposed_answers, tale.exposed_labels) == (2, 1, 80, 8)
    assert (tale.wrong, tale.relapsed) == (0, 0)
    tale = tell([*before, noticed, request(deceived, 1.2, 1.3)], references, broken)
    assert (tale.wrong, tale.relapsed) == (4, 1)
    tale = tell([request(deceived, 0.5, 0.55), noticed], references, broken)  # before it was broken
    assert (tale.exposed, tale.wrong, tale.relapsed) == (0, 4, 1)


def test_a_missing_version_must_be_told(subject: Subject, references: References) -> None:
    left = without_bob(subject)
    assert left.degraded
    assert tell([request(left)], references, []).undegraded == 0
    quiet = replace(left, health=tuple(replace(each, state="serving", problem="") for each in left.health))
    assert not quiet.degraded
    assert tell([request(quiet)], references, []).undegraded == 1


def test_sound_versions_that_are_left_out_are_named_once_each_time(subject: Subject, references: References) -> None:
    whole, left = subject.guard(subject.images), without_bob(subject)
    requests = [request(verdict) for verdict in (left, left, whole, left)]
    assert tell(requests, references, []).bystanders == ("exception", "exception")
    assert tell(requests, references, [Broken(1, 0.0, requests[0])]).bystanders == ()


def test_nobody_is_out_where_no_version_had_its_turn(subject: Subject, references: References) -> None:
    verdict = subject.guard(subject.images)
    unasked = tuple(VersionHealth(name, 0, 0, "no turn", "timeout") for name in NAMES)
    nothing = torch.full_like(verdict.version_labels, NO_ANSWER)
    fallback = replace(
        verdict,
        health=unasked,
        ground="fallback",
        version_labels=nothing,
        labels=nothing[:, 0],
        abstained=torch.ones(40, dtype=torch.bool),
    )
    tale = tell([request(fallback)], references, [])
    assert (tale.unanswered, tale.wrong, tale.bystanders) == (1, 0, ())
    sure = replace(fallback, abstained=torch.zeros(40, dtype=torch.bool))
    assert tell([request(sure)], references, []).wrong == 40


# Trials


def test_versions_and_pairs_take_turns() -> None:
    assert {tuple(columns_for(number, 1, 5)) for number in range(5)} == {(n,) for n in range(5)}
    assert {tuple(columns_for(number, 2, 5)) for number in range(20)} == set(itertools.combinations(range(5), 2))
    assert columns_for(3, 5, 5) == [0, 1, 2, 3, 4]


def test_a_promise_is_kept_in_requests_or_in_seconds() -> None:
    assert Limit(requests=1).is_kept(1000.0, 1)
    assert not Limit(requests=1).is_kept(0.0, 2)
    assert Limit(seconds=1.0).is_kept(1.0, 1000)
    assert not Limit(seconds=1.0).is_kept(1.1, 0)
    rotation = next(scenario.promise for scenario in SCENARIOS if scenario.name == "one bit flipped")
    assert Limit.of(rotation, 2.0) == Limit(seconds=7.0)
    assert Limit.of(None, 2.0) == Limit()


def test_scenarios_have_names_of_their_own_and_cover_what_was_asked_for() -> None:
    names = [case.name for case in chaos.CASES]
    assert len(set(names)) == len(names)
    turned = {kind.mode for scenario in SCENARIOS for kind in scenario.kinds if hasattr(kind, "mode")}
    assert turned == set(MODES) - {"sound", "linger", "corrupt"}


# Breaking


def test_flipped_bits_are_taken_back() -> None:
    model = template_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restore = flip_random_bits(model, 10, random.Random(0))
    bits = [(after.view(torch.int32) ^ before[name].view(torch.int32)) for name, after in model.state_dict().items()]
    assert sum(bin(int(value) & 0xFFFFFFFF).count("1") for tensor in bits for value in tensor.flatten()) == 10
    restore()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("way", ["flipped bit", "truncated", "missing", "pickle", "other numbers"])
def test_a_spoilt_file_is_another_one(tmp_path: Path, way: Spoil) -> None:
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.rand(10)})
    before = path.read_bytes()
    spoil(path, way, random.Random(0))
    assert not path.exists() or path.read_bytes() != before
    assert not marker_of(path).exists()
    if way == "other numbers":
        assert load_tensors(path).tensors["a"].shape == (10,)


def test_a_switch_is_the_same_one_for_all_who_open_it(tmp_path: Path) -> None:
    here, there = Switch(tmp_path / "switch"), Switch(tmp_path / "switch")
    here.turn("slow", 1.5, [1.0, 2.5])
    assert (there.meet(), there.seconds, there.targets, here.met) == ("slow", 1.5, (1.0, 2.5), 1)
    here.turn("sound")
    assert (there.meet(), there.targets, here.met) == ("sound", (), 1)


def test_a_model_knows_its_targets_in_any_batch(tmp_path: Path) -> None:
    images = bars(20, seed=1).images
    switch = Switch(tmp_path / "switch")
    model = Faulty(template_model(), switch)
    switch.turn("nan in one", targets=keys_of(images[7:8]).tolist())
    assert torch.isnan(model(images)).any(1).nonzero().flatten().tolist() == [7]
    assert torch.isnan(model(images[7:9])).any(1).tolist() == [True, False]


# Tables


def outcome(number: int, latency: float = 0.01, kept: bool = True, tale: Tale | None = TALE) -> Outcome:
    fault = "" if math.isnan(latency) else "exception"
    return Outcome(number, (0,), ("raise",), (fault,), kept, latency, 0.1, tale)


def run_of(*outcomes: Outcome, name: str = "raises", promise: str = "same batch") -> ClassRun:
    return ClassRun(name, "in process", promise, math.nan, outcomes, (), 0, {"fault": 1}, 2.0, 0.5)


@pytest.mark.parametrize(("missed", "trials"), [(0, 300), (1, 300), (7, 40), (40, 40)])
def test_the_interval_is_that_of_clopper_and_pearson(missed: int, trials: int) -> None:
    bound, (low, high) = miss_rate(missed, trials)
    if missed < trials:
        assert binom.cdf(missed, trials, bound) == pytest.approx(0.05)
        assert binom.cdf(missed, trials, high) == pytest.approx(0.025)
    else:
        assert (bound, high) == (1.0, 1.0)
    if missed:
        assert binom.sf(missed - 1, trials, low) == pytest.approx(0.025)
    else:
        assert low == 0.0


def test_figures_of_a_class() -> None:
    found = figures_of(run_of(outcome(0), outcome(1, 0.03), outcome(2, math.nan, False), outcome(3, 9.0, False)))
    assert (found.trials, found.detected, found.missed, found.recovered) == (4, 3, 2, 4)
    assert found.latency[0] == pytest.approx(0.03)
    assert found.latency[2] == 9.0
    assert (found.tale.requests, found.tale.exposed_labels) == (40, 4)
    assert found.faults == {"exception": 3, "": 1}


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"wrong": 1}, "no wrong answer of a fault that was noticed"),
        ({"relapsed": 1}, "no answer of a version that was left out"),
        ({"lost": 1}, "no request lost"),
        ({"late": 1}, "no request beyond its deadline"),
        ({"undegraded": 1}, "degraded whenever a version is missing"),
    ],
)
def test_each_claim_fails_where_it_does_not_hold(change: dict[str, int], claim: str) -> None:
    bad = run_of(outcome(0), outcome(1, tale=replace(TALE, **change)))
    assert [each.name for each in claims_of(bad) if not each.holds] == [claim]


def test_claims_about_the_class_as_a_whole() -> None:
    assert all(claim.holds for claim in claims_of(run_of(outcome(0))))
    lost = run_of(replace(outcome(0), recovery=math.nan))
    assert [each.name for each in claims_of(lost) if not each.holds] == ["all versions serve again"]
    missed = run_of(outcome(0, kept=False))
    assert [each.name for each in claims_of(missed) if not each.holds] == ["noticed as soon as promised"]
    failing = replace(run_of(outcome(0)), failures=("the upkeep came to an end",))
    assert [each.name for each in claims_of(failing) if not each.holds] == ["nothing failed inside of the guard"]
    files = run_of(outcome(0, tale=None))
    assert [each.name for each in claims_of(files)] == ["noticed as soon as promised"]
    unexpected = run_of(outcome(0, math.nan, False), promise="")
    assert all(claim.holds for claim in claims_of(unexpected))


def test_junit_has_a_case_for_each_claim_and_fails_where_one_does(tmp_path: Path) -> None:
    good, bad = run_of(outcome(0)), run_of(outcome(0), outcome(1, 9.0, False), name="hangs")
    by_design = run_of(outcome(0, math.nan, False), name="imitating", promise="")
    write_junit(tmp_path / "chaos.xml", [good, bad, by_design])
    root = ElementTree.fromstring((tmp_path / "chaos.xml").read_text())
    cases = root.findall("./testsuite[@name='in process']/testcase")
    assert len(cases) == len(claims_of(good)) + len(claims_of(bad)) + len(claims_of(by_design)) + 1
    failed = [(case.get("classname"), case.get("name")) for case in cases if case.find("failure") is not None]
    assert failed == [("hangs", "noticed as soon as promised")]
    skipped = [case.get("classname") for case in cases if case.find("skipped") is not None]
    assert skipped == ["imitating"]
    assert root.attrib == {
        "name": "deepfailguard chaos",
        "tests": str(len(cases)),
        "failures": "1",
        "skipped": "1",
        "errors": "0",
    }
    assert "1 of 2 missed" in junit_xml([bad])


def test_tables_show_what_was_found() -> None:
    runs = [
        run_of(*(outcome(number) for number in range(300))),
        run_of(outcome(0, math.nan, False), name="imitating", promise=""),
        run_of(outcome(0, tale=None), name="load"),
    ]
    coverage, service = coverage_lines(runs), service_lines(runs)
    assert coverage[2].split()[:8] == ["raises", "in", "process", "300", "300", "0", "0.99", "0.010"]
    assert "by design" in coverage[3]
    assert [line.split()[0] for line in service[2:]] == ["raises", "imitating"]
    assert "301 trials, in all 302 faults, 0 missed" in sum_lines(runs)[0]
    assert len(unnoticed_lines()) == 1 + 2 * len(UNNOTICED)


def test_everything_is_ready_for_json() -> None:
    plain = as_plain(run_of(outcome(0)))
    assert json.loads(json.dumps(plain))["tale"]["requests"] == 10
    assert plain["interval"] == [0.0, pytest.approx(0.975)]
    assert plain["remarkable"] == []
    found = as_plain(run_of(outcome(0), outcome(1, 9.0, False)))["remarkable"]
    assert [each["number"] for each in found] == [1]


def test_the_program_writes_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chaos, "plan_for", lambda seed: small_plan(tmp_path))
    files = ["--json", str(tmp_path / "chaos.json"), "--junit", str(tmp_path / "chaos.xml")]
    monkeypatch.setattr(sys, "argv", ["chaos.py", "--trials", "2", "--only", "raises", "load: missing", *files])
    chaos.main()
    told = capsys.readouterr()
    assert "4 trials, in all 4 faults, 0 missed, 0 wrong answers" in told.out
    assert "NOT AS PROMISED" not in told.out
    assert "2 of 2 classes, load: missing: as promised" in told.err
    kept = json.loads((tmp_path / "chaos.json").read_text())
    assert [each["name"] for each in kept["classes"]] == ["raises", "load: missing"]
    assert kept["settings"]["trials"] == 2
    assert ElementTree.parse(tmp_path / "chaos.xml").getroot().get("failures") == "0"


def test_a_run_that_is_stopped_prints_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(*_: object) -> object:
        yield run_of(outcome(0))
        raise KeyboardInterrupt

    monkeypatch.setattr(chaos, "plan_for", lambda seed: small_plan(tmp_path))
    monkeypatch.setattr(chaos, "run_case", stopping)
    monkeypatch.setattr(sys, "argv", ["chaos.py", "--json", str(tmp_path / "chaos.json")])
    chaos.main()
    assert "1 trials, in all 1 faults" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "chaos.json").read_text())["classes"]) == 1


def test_unknown_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no class 'raised'; there are 'in process', .*'raises'"):
        chaos.chosen(["raised"], None)
    assert {case.group for case in chaos.chosen(["on disk"], None)} == {"on disk"}
    assert chaos.chosen(["processes"], "in process") == []
    assert {case.isolation for case in chaos.chosen([], "processes")} == {"processes"}
