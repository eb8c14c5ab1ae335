import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError, NotFittedError
from deepfailguard.guard.statistics import disagreement
from deepfailguard.guard.watch_report import WatchReport, cause_of
from deepfailguard.guard.watching import VersionWatch
from deepfailguard.seeding import generator

Batch = tuple[Tensor, dict[str, Tensor]]


def _batch(size: int, versions: int = 3, purpose: str = "service") -> Batch:
    """Answers of versions that are each wrong on 10 % of the inputs, with a confidence."""
    random = generator(0, "watching", purpose)
    truth = torch.randint(10, (size, 1), generator=random)
    wrong = torch.rand(size, versions, generator=random) < 0.1
    labels = torch.where(wrong, torch.randint(10, (size, versions), generator=random), truth)
    return labels, {"confidence": torch.rand(size, versions, generator=random)}


def _watch(n: int = 1000, versions: int = 3, **settings: Any) -> VersionWatch:
    return VersionWatch(**settings).fit(*_batch(n, versions, "calibration"))


def _statistics(report: WatchReport) -> set[tuple[int, str]]:
    return {(alarm.version, alarm.statistic) for alarm in report.alarms}


def test_nothing_is_reported_while_nothing_changes() -> None:
    report = _watch().update(*_batch(3000))
    assert (report.inputs, report.alarms, report.cause) == (3000, (), "nothing")
    assert report.changed.tolist() == [False] * 3
    assert str(report) == "3000 inputs: no change"


def test_a_version_that_answers_at_random_is_named() -> None:
    watch = _watch(names=("ann", "bob", "eve"))
    labels, scores = _batch(600)
    labels[200:, 1] = torch.randint(10, (400,), generator=generator(0, "broken"))
    report = watch.update(labels, scores)
    assert report.changed.tolist() == [False, True, False]
    assert report.cause == "versions"
    (alarm,) = report.of(1)
    assert (alarm.name, alarm.statistic) == ("bob", "disagreement")
    assert 190 <= alarm.since <= 205
    assert 200 <= alarm.raised < 240
    assert alarm.evidence >= 100_000
    assert alarm.usual == pytest.approx(0.1, abs=0.03)
    assert alarm.lately > 0.7
    assert "bob disagrees with the other versions on" in str(report)
    assert report.of(0) == ()


@pytest.mark.parametrize(
    ("change", "within"),
    [
        (lambda score: score * 0 + 0.9, 30),  # stuck
        (lambda score: score * 0.3, 60),
        (lambda score: score + 2, 30),
        (lambda score: score * torch.nan, 30),
        (lambda score: 0.25 + score / 2, 300),  # less spread, the same mean
    ],
    ids=["stuck", "low", "high", "NaN", "spread"],
)
def test_a_version_whose_confidence_changes_is_named(change: Any, within: int) -> None:
    watch = _watch()
    labels, scores = _batch(500)
    scores["confidence"][100:, 2] = change(scores["confidence"][100:, 2])
    report = watch.update(labels, scores)
    assert _statistics(report) == {(2, "confidence")}
    assert report.alarms[0].raised < 100 + within
    assert report.cause == "versions"


def test_inputs_that_change_for_all_versions_are_told_from_a_broken_version() -> None:
    watch = _watch(versions=5)
    labels, scores = _batch(400, versions=5)
    report = watch.update(labels, {"confidence": scores["confidence"] * 0.5})
    assert report.changed.all()
    assert report.cause == "inputs"
    assert "it is the inputs" in str(report)


def test_a_version_that_stops_to_answer_alarms_with_all_its_statistics() -> None:
    watch = _watch()
    labels, scores = _batch(60)
    labels[:, 0] = -1
    report = watch.update(labels, scores)
    assert _statistics(report) == {(0, "disagreement"), (0, "confidence")}
    alarm = report.of(0)[0]
    assert math.isnan(alarm.lately)
    assert alarm.missing == 1
    assert "none on 100% of the inputs" in str(alarm)


def test_a_statistic_that_calibration_never_had_may_be_missing_for_ever() -> None:
    labels, scores = _batch(300)
    scores["confidence"][:, 0] = torch.nan
    watch = VersionWatch().fit(labels, scores)
    again, service = _batch(2000)
    service["confidence"][:, 0] = torch.nan
    assert watch.update(again, service).alarms == ()
    report = watch.update(again[:100], _batch(100)[1])
    assert _statistics(report) == {(0, "confidence")}
    assert math.isnan(report.alarms[0].usual)
    assert str(report)


def test_constant_scores_are_usual_if_they_were_constant_in_calibration() -> None:
    labels, _ = _batch(500)
    watch = VersionWatch(scores=["found"]).fit(labels, {"found": torch.ones(500, 3)})
    again, _ = _batch(2000)
    assert watch.update(again, {"found": torch.ones(2000, 3)}).alarms == ()
    found = torch.ones(100, 3)
    found[:, 1] = 0.0
    assert _statistics(watch.update(again[:100], {"found": found})) == {(1, "found")}


def test_one_version_is_watched_by_its_scores_and_the_cause_is_unclear() -> None:
    watch = _watch(versions=1)
    labels, scores = _batch(200, versions=1)
    assert watch.update(labels, scores).alarms == ()
    report = watch.update(labels, {"confidence": scores["confidence"] / 4})
    assert _statistics(report) == {(0, "confidence")}
    assert report.cause == "unclear"


def test_two_versions_without_scores_cannot_tell_who_changed() -> None:
    labels, _ = _batch(1000, versions=2, purpose="calibration")
    watch = VersionWatch(scores=()).fit(labels, {})
    again, _ = _batch(200, versions=2)
    again[:, 0] = (again[:, 0] + 1) % 10
    report = watch.update(again, {})
    assert report.changed.tolist() == [True, True]
    assert report.cause == "unclear"


def test_several_scores_are_watched_side_by_side() -> None:
    labels, scores = _batch(500, purpose="calibration")
    typical = torch.randn(500, 3, generator=generator(0, "typical"), dtype=torch.float64)
    watch = VersionWatch(scores=("confidence", "typicality")).fit(labels, {**scores, "typicality": typical})
    labels, scores = _batch(200)
    report = watch.update(labels, {"typicality": typical[:200] - torch.tensor([0.0, 3.0, 0.0]), **scores})
    assert _statistics(report) == {(1, "typicality")}
    assert "has typicality -" in str(report)


def test_an_empty_batch_leaves_the_report_as_it_was() -> None:
    watch = _watch()
    watch.update(*_batch(10))
    before = watch.state()
    report = watch.update(*_batch(0))
    assert report.inputs == 10
    assert all(torch.equal(before[name], value) for name, value in watch.state().items())


def test_alarms_stand_until_acknowledged_and_the_new_becomes_usual() -> None:
    watch = _watch(n=200)
    labels, scores = _batch(100)
    low = {"confidence": scores["confidence"] * torch.tensor([0.2, 1.0, 1.0])}
    first = watch.update(labels, low)
    assert first.changed.tolist() == [True, False, False]
    again = watch.update(*_batch(50, purpose="sound"))
    assert again.alarms[0].raised == first.alarms[0].raised  # though it is sound again
    watch.acknowledge([1])
    assert watch.report().changed.tolist() == [True, False, False]
    watch.acknowledge()
    assert watch.report().alarms == ()
    assert float(watch.state()["bets.counts"].sum()) == 6 * (201 + 150)


def test_a_repaired_version_begins_anew() -> None:
    watch = _watch()
    labels, scores = _batch(100)
    labels[:, 0] = -1
    assert watch.update(labels, scores).changed.tolist() == [True, False, False]
    watch.renew([0])
    assert watch.report().alarms == ()
    sums = watch.state()["bets.counts"].sum(1)
    assert sums.tolist() == [1001, 1001, 1101, 1101, 1101, 1101]
    assert watch.update(*_batch(500)).alarms == ()
    report = watch.update(labels, scores)
    assert report.of(0)[0].since >= 580


def test_versions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"versions must be in \[0, 3\), got \[3\]"):
        _watch().acknowledge([3])
    with pytest.raises(ConfigurationError, match="versions must be in"):
        _watch().renew([-1])


def test_state_goes_on_elsewhere_as_if_nothing_had_happened() -> None:
    watch = _watch(seed=3)
    labels, scores = _batch(700)
    scores["confidence"][300:, 0] = 0.5
    watch.update(labels[:310], {"confidence": scores["confidence"][:310]})
    copy = VersionWatch(seed=3).with_state({name: value.clone() for name, value in watch.state().items()})
    rest = labels[310:], {"confidence": scores["confidence"][310:]}
    assert repr(copy.update(*rest)) == repr(watch.update(*rest))
    assert copy.report().alarms
    assert all(torch.equal(copy.state()[name], value) for name, value in watch.state().items())


def test_a_state_of_something_else_is_refused() -> None:
    state = _watch().state()
    with pytest.raises(ConfigurationError, match="make the watch with the scores"):
        VersionWatch(scores=("a", "b")).with_state(state)
    with pytest.raises(ConfigurationError, match="got 1 names for 3 versions"):
        VersionWatch(names=("only",)).with_state(state)
    del state["usual"]
    with pytest.raises(ConfigurationError, match="expects the state"):
        VersionWatch().with_state(state)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="different names"):
        VersionWatch(scores=("a", "a"))
    with pytest.raises(ConfigurationError, match="other than 'disagreement'"):
        VersionWatch(scores=("disagreement",))
    for rate in (1.0, math.inf, math.nan):
        with pytest.raises(ConfigurationError, match="inputs_per_false_alarm"):
            VersionWatch(inputs_per_false_alarm=rate)
    with pytest.raises(ConfigurationError, match="nothing to watch"):
        VersionWatch(scores=()).fit(_batch(200, versions=1)[0], {})
    with pytest.raises(ConfigurationError, match="got 2 names for 3 versions"):
        _watch(names=("a", "b"))


def test_data_of_the_wrong_shape_are_refused_and_not_watched() -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        VersionWatch().update(*_batch(1))
    with pytest.raises(DataFormatError, match="at least 100 calibration inputs, got 99"):
        _watch(n=99)
    watch = _watch()
    labels, scores = _batch(5)
    with pytest.raises(DataFormatError, match=r"expected the scores \['confidence'\], got \[\]"):
        watch.update(labels, {})
    with pytest.raises(DataFormatError, match="must be floating"):
        watch.update(labels, {"confidence": scores["confidence"][:4]})
    with pytest.raises(DataFormatError, match="labels must be int64"):
        watch.update(labels.float(), scores)
    with pytest.raises(DataFormatError, match="fitted on 3 versions, got labels of 2"):
        watch.update(labels[:, :2], {"confidence": scores["confidence"][:, :2]})
    assert watch.report().inputs == 0


def test_fewer_inputs_per_false_alarm_notice_sooner() -> None:
    labels, scores = _batch(400)
    scores["confidence"][:, 0] *= 0.6
    raised = [_watch(inputs_per_false_alarm=rate).update(labels, scores).alarms[0].raised for rate in (100.0, 1e5, 1e9)]
    assert raised == sorted(set(raised))


def test_disagreement_equals_a_count_by_hand() -> None:
    labels = torch.randint(-1, 3, (300, 5), generator=generator(0, "labels"))
    for row, told in zip(labels.tolist(), disagreement(labels).tolist(), strict=True):
        for version, label in enumerate(row):
            votes = Counter(other for i, other in enumerate(row) if i != version and other != -1)
            leading = {answer for answer, count in votes.items() if count == max(votes.values())}
            assert told[version] == (bool(leading) and label not in leading)
    assert disagreement(torch.zeros(2, 1, dtype=torch.int64)).tolist() == [[False], [False]]
    assert disagreement(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize(
    ("versions", "scores", "disagreeing", "cause"),
    [
        (3, 1, 0, "versions"),
        (3, 1, 1, "versions"),
        (3, 2, 0, "inputs"),
        (4, 2, 2, "versions"),
        (5, 3, 0, "inputs"),
        (3, 1, 3, "versions"),
        (5, 0, 3, "unclear"),
        (2, 1, 2, "versions"),
        (3, 0, 2, "unclear"),
        (2, 1, 0, "versions"),
        (2, 2, 0, "inputs"),
        (2, 0, 2, "unclear"),
        (1, 1, 0, "unclear"),
        (3, 0, 0, "nothing"),
    ],
)
def test_the_cause_follows_from_who_changed(versions: int, scores: int, disagreeing: int, cause: str) -> None:
    rows = torch.arange(versions)
    changed = torch.stack([rows < disagreeing, rows < scores], dim=1)
    assert cause_of(changed, changed, True) == cause
