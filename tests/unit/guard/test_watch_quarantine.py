from typing import Any

import pytest
import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.quarantine import Quarantine, most_in_quarantine
from deepfailguard.guard.statistics import disagreement
from deepfailguard.guard.watching import VersionWatch
from deepfailguard.seeding import generator

Batch = tuple[Tensor, dict[str, Tensor]]


def _batch(size: int, versions: int, purpose: object = "service") -> Batch:
    """Answers of versions that are each wrong on 10 % of the inputs, with a confidence."""
    random = generator(0, "quarantine", purpose)
    truth = torch.randint(10, (size, 1), generator=random)
    wrong = torch.rand(size, versions, generator=random) < 0.1
    labels = torch.where(wrong, torch.randint(10, (size, versions), generator=random), truth)
    return labels, {"confidence": torch.rand(size, versions, generator=random)}


def _quarantine(versions: int, **settings: Any) -> Quarantine:
    labels, scores = _batch(1000, versions, "calibration")
    return Quarantine(VersionWatch(**settings).fit(labels, scores), labels)


def _broken(batch: Batch, *versions: int) -> Batch:
    labels, scores = batch[0].clone(), {"confidence": batch[1]["confidence"].clone()}
    for version in versions:
        labels[:, version] = 3
        scores["confidence"][:, version] = 0.99
    return labels, scores


def _shifted(batch: Batch, versions: int, factor: float = 0.5) -> Batch:
    """The first versions show it at once, the others hardly."""
    factors = torch.ones(batch[0].shape[1]).masked_fill(torch.arange(batch[0].shape[1]) < versions, factor)
    return batch[0], {"confidence": batch[1]["confidence"] * factors}


def _apart(quarantine: Quarantine) -> list[tuple[int, int]]:
    return [(each.version, each.since) for each in quarantine.report().quarantined]


def test_a_version_that_breaks_is_set_apart_from_the_batch_on_in_which_it_is_noticed() -> None:
    quarantine = _quarantine(3)
    assert quarantine.see(*_batch(320, 3)).quarantined == ()
    report = quarantine.see(*_broken(_batch(32, 3, "later"), 1))
    assert _apart(quarantine) == [(1, 320)]
    assert (report.cause, report.changed.tolist()) == ("versions", [False, True, False])
    assert quarantine.active == [0, 2]
    assert "version 1 is in quarantine since input 320" in str(report)


def test_an_alarm_goes_on_to_tell_what_was_usual_in_calibration() -> None:
    labels, _ = _batch(1000, 3, "calibration")
    quarantine = Quarantine(VersionWatch(scores=()).fit(labels, {}), labels)
    usual = float(disagreement(labels)[:, 1].double().mean())
    service = _broken(_batch(64, 3), 1)[0]
    for batch in service.split(32):  # the second time it is in quarantine already
        (alarm,) = quarantine.see(batch, {}).of(1)
        assert alarm.usual == pytest.approx(usual)
    assert 0 < usual < 0.2
    assert _apart(quarantine) == [(1, 0)]


def test_whose_scores_changed_is_to_blame_and_not_whom_it_made_disagree() -> None:
    labels, scores = _batch(1000, 3, "calibration")
    labels[:, 2] = (labels[:, 0] + 1) % 10  # the third has an opinion of its own, the first two always agreed
    labels[:, 1] = labels[:, 0]
    quarantine = Quarantine(VersionWatch().fit(labels, scores), labels)
    service, confidence = labels[:64].clone(), {"confidence": scores["confidence"][:64].clone()}
    service[:, 0] = service[:, 2]
    confidence["confidence"][:, 0] += 5
    report = quarantine.see(service, confidence)
    assert (report.cause, _apart(quarantine)) == ("versions", [(0, 0)])
    assert report.changed.tolist() == [True, False, False]  # the alarm of the second one's disagreement is gone


def test_what_a_version_says_in_quarantine_does_not_matter() -> None:
    told = []
    for tail in (3, 7, -1):
        quarantine = _quarantine(3)
        quarantine.see(*_broken(_batch(32, 3), 1))
        labels, scores = _batch(2000, 3, "later")
        labels[:, 1] = tail
        scores["confidence"][:, 1] = torch.nan
        told.append(str(quarantine.see(labels, scores)))
    assert told[0] == told[1] == told[2]
    assert quarantine.active == [0, 2]
    assert quarantine.report().changed.tolist() == [False, True, False]  # the others agree as often as in calibration


@pytest.mark.parametrize("versions", [3, 5])
def test_nobody_is_set_apart_where_the_inputs_changed_for_all(versions: int) -> None:
    quarantine = _quarantine(versions)
    for number in range(20):
        quarantine.see(*_shifted(_batch(32, versions, number), versions))
    assert quarantine.report().cause == "inputs"
    assert _apart(quarantine) == []


def test_a_version_that_showed_changed_inputs_sooner_is_taken_back() -> None:
    quarantine = _quarantine(3)
    labels, scores = _batch(2000, 3)
    factors = torch.tensor([0.2, 0.65, 0.65])
    history = []
    for start in range(0, 960, 32):
        piece = slice(start, start + 32)
        quarantine.see(labels[piece], {"confidence": scores["confidence"][piece] * factors})
        history.append(len(_apart(quarantine)))
    assert history[0] == 1
    assert history[-1] == 0
    assert sorted(history, reverse=True) == history
    assert quarantine.report().cause == "inputs"


def test_a_broken_version_stays_in_quarantine_where_the_inputs_change_later() -> None:
    quarantine = _quarantine(3)
    quarantine.see(*_broken(_batch(64, 3), 2))
    quarantine.see(*_batch(640, 3, "usual"))
    for number in range(20):
        quarantine.see(*_shifted(_batch(32, 3, number), 3))
    assert quarantine.report().cause == "inputs"
    assert _apart(quarantine) == [(2, 0)]


def test_never_more_than_half_are_set_apart() -> None:
    quarantine = _quarantine(5)
    for number, version in enumerate((4, 0, 2)):
        broken = (4, 0, 2)[: number + 1]
        quarantine.see(*_batch(640, 5, ("usual", version)) if number == 0 else _broken(_batch(64, 5, number), *broken))
        quarantine.see(*_broken(_batch(64, 5, ("broken", version)), *broken))
    assert [version for version, _ in _apart(quarantine)] == [4, 0]
    assert quarantine.report().changed.tolist() == [True, False, True, False, True]
    assert most_in_quarantine(1) == 0


def test_the_last_version_is_never_set_apart() -> None:
    quarantine = _quarantine(1)
    report = quarantine.see(*_broken(_batch(64, 1), 0))
    assert report.changed.tolist() == [True]
    assert quarantine.active == [0]


def test_a_released_version_begins_anew_and_is_set_apart_again_if_it_is_still_broken() -> None:
    quarantine = _quarantine(3)
    quarantine.see(*_broken(_batch(32, 3), 1))
    quarantine.release([1])
    assert quarantine.report().alarms == ()
    assert quarantine.active == [0, 1, 2]
    quarantine.see(*_batch(1000, 3, "repaired"))
    assert quarantine.active == [0, 1, 2]
    quarantine.see(*_broken(_batch(32, 3, "again"), 1))
    assert _apart(quarantine) == [(1, 1032)]


def test_an_acknowledged_change_counts_as_usual_and_the_version_answers_again() -> None:
    quarantine = _quarantine(3)
    quarantine.see(*_broken(_batch(32, 3), 1))
    quarantine.acknowledge([0])
    assert _apart(quarantine) == [(1, 0)]
    quarantine.acknowledge()
    assert quarantine.report().alarms == ()
    assert quarantine.active == [0, 1, 2]


def _often_disagreeing(size: int, rate: float, purpose: object) -> Tensor:
    """Answers of five versions, of which the first is wrong at a rate of its own."""
    random = generator(0, "disagreeing", purpose)
    wrong = torch.rand(size, 5, generator=random) < torch.tensor([rate, 0.1, 0.1, 0.1, 0.1])
    return torch.where(wrong, torch.randint(1, 50, (size, 5), generator=random), 0)


def test_a_change_that_is_here_to_stay_alarms_again_a_few_times_at_most() -> None:
    labels = _often_disagreeing(500, 0.1, "calibration")
    quarantine = Quarantine(VersionWatch(scores=()).fit(labels, {}), labels)
    alarms = 0
    for number in range(200):
        report = quarantine.see(_often_disagreeing(32, 0.4, number), {})
        alarms += len(report.alarms)
        if report.alarms:
            assert [each.version for each in report.quarantined] == [0]
            quarantine.acknowledge()
    assert 1 <= alarms <= 5


def test_what_was_seen_of_a_repaired_version_is_forgotten_in_every_company() -> None:
    labels = _often_disagreeing(500, 0.1, "calibration")
    quarantine = Quarantine(VersionWatch(scores=()).fit(labels, {}), labels)
    fresh = quarantine.watch.state()
    for number in range(10):
        quarantine.see(_often_disagreeing(32, 0.9, number), {})
    assert quarantine.active == [1, 2, 3, 4]
    quarantine.release([0])
    for name in ("bets.counts", "bets.usual", "cells.edges", "cells.ties", "usual"):
        assert torch.equal(quarantine.watch.state()[name], fresh[name]), name


def test_state_goes_on_elsewhere_as_if_nothing_had_happened() -> None:
    quarantine = _quarantine(3)
    quarantine.see(*_broken(_batch(40, 3), 1))
    copy = _quarantine(3).with_state({name: value.clone() for name, value in quarantine.state().items()})
    assert _apart(copy) == [(1, 0)]
    rest = _batch(500, 3, "rest")
    assert str(copy.see(*rest)) == str(quarantine.see(*rest))
    for each in (copy, quarantine):
        each.acknowledge()
        each.see(*rest)
    assert copy.active == [0, 1, 2]
    assert all(torch.equal(copy.state()[name], value) for name, value in quarantine.state().items())


def test_a_state_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no state of a quarantine"):
        _quarantine(3).with_state(_quarantine(5).state())
    with pytest.raises(ConfigurationError, match="no state of a quarantine"):
        _quarantine(3).with_state(_quarantine(3).watch.state())


def test_versions_that_are_left_out_are_compared_with_nobody() -> None:
    labels, _ = _batch(500, 3, "calibration")
    watch = VersionWatch(scores=()).fit(labels, {})
    watch.watch_only([0, 2], labels)
    service, _ = _batch(300, 3)
    service[:, 1] = service[:, 0]  # who sides with version 0 all the time would make version 2 look bad
    assert watch.update(service, {}).alarms == ()
    service[:, 2] = (service[:, 0] + 1) % 10
    assert watch.update(service, {}).changed.tolist() == [True, False, True]


def test_a_watch_over_some_versions_needs_the_labels_of_calibration() -> None:
    labels, scores = _batch(500, 3, "calibration")
    watch = VersionWatch().fit(labels, scores)
    with pytest.raises(ConfigurationError, match="expected the labels of calibration"):
        watch.watch_only([0, 1], labels[1:])
    with pytest.raises(ConfigurationError, match="name at least one"):
        watch.watch_only([], labels)
