from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepfailguard.guard.quarantine import Quarantine, most_in_quarantine
from deepfailguard.guard.statistics import disagreement
from deepfailguard.guard.watching import VersionWatch
from deepfailguard.seeding import generator


def _answers(size: int, broken_from: int, purpose: object) -> tuple[Tensor, Tensor]:
    random = generator(0, "watching", purpose)
    labels = (torch.rand(size, 3, generator=random) < 0.2).long()
    labels[broken_from:, 0] = 2
    confidence = torch.rand(size, 3, generator=random, dtype=torch.float64)
    confidence[broken_from:, 1] *= 0.5
    return labels, confidence


def _calibrated() -> VersionWatch:
    labels, confidence = _answers(150, 150, "calibration")
    return VersionWatch().fit(labels, {"confidence": confidence})


@given(cuts=st.lists(st.integers(0, 600), max_size=8), broken_from=st.integers(0, 600))
@settings(deadline=None, max_examples=25, derandomize=True, database=None)
def test_batches_of_any_size_lead_to_the_same_alarms(cuts: list[int], broken_from: int) -> None:
    labels, confidence = _answers(600, broken_from, "service")
    whole, parts = _calibrated(), _calibrated()
    whole.update(labels, {"confidence": confidence})
    ends = [0, *sorted(cuts), 600]
    for start, end in pairwise(ends):
        parts.update(labels[start:end], {"confidence": confidence[start:end]})
    one, other = whole.report(), parts.report()
    assert torch.equal(one.changed, other.changed)
    assert one.cause == other.cause
    keys = [[(a.version, a.statistic, a.raised, a.since) for a in report.alarms] for report in (one, other)]
    assert keys[0] == keys[1]
    for name, value in whole.state().items():
        torch.testing.assert_close(parts.state()[name], value, msg=name)


@given(power=st.floats(0.2, 5), scale=st.floats(0.01, 100), offset=st.floats(-10, 10))
@settings(deadline=None, max_examples=25, derandomize=True, database=None)
def test_only_the_order_of_scores_counts(power: float, scale: float, offset: float) -> None:
    def changed(confidence: Tensor) -> dict[str, Tensor]:
        # Rounded to a grid first, so that no two different values become equal.
        return {"confidence": ((confidence * 1000).round() + 1) ** power * scale + offset}

    states = []
    for transform in (changed, lambda confidence: {"confidence": (confidence * 1000).round()}):
        calibration, service = _answers(150, 150, "calibration"), _answers(300, 200, "service")
        watch = VersionWatch().fit(calibration[0], transform(calibration[1]))
        watch.update(service[0], transform(service[1]))
        states.append(watch.state())
    for name in ("bets.counts", "bets.log_sum", "raised", "since"):
        assert torch.equal(states[0][name], states[1][name]), name


@given(data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_disagreement_does_not_depend_on_the_order_of_versions(data: st.DataObject) -> None:
    inputs, versions = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 6))
    size = inputs * versions
    values = data.draw(st.lists(st.integers(-1, 3), min_size=size, max_size=size))
    labels = torch.tensor(values, dtype=torch.int64).reshape(inputs, versions)
    order = data.draw(st.permutations(range(versions)))
    assert torch.equal(disagreement(labels[:, order]), disagreement(labels)[:, order])


@given(data=st.data())
@settings(deadline=None, max_examples=25, derandomize=True, database=None)
def test_whatever_versions_do_at_most_half_are_set_apart(data: st.DataObject) -> None:
    versions = data.draw(st.integers(1, 5))
    random = generator(0, "quarantine", versions)
    labels = torch.randint(3, (150, versions), generator=random)
    scores = {"confidence": torch.rand(150, versions, generator=random)}
    quarantine = Quarantine(VersionWatch(inputs_per_false_alarm=10.0).fit(labels, scores), labels)
    for number in range(data.draw(st.integers(1, 6))):
        size = data.draw(st.integers(0, 60))
        factors = torch.tensor(data.draw(st.lists(st.sampled_from([0.1, 1.0]), min_size=versions, max_size=versions)))
        service = torch.randint(-1, 3, (size, versions), generator=generator(number, "service"))
        report = quarantine.see(service, {"confidence": torch.rand(size, versions, generator=random) * factors})
        apart = [each.version for each in report.quarantined]
        assert len(apart) <= most_in_quarantine(versions)
        assert sorted([*apart, *quarantine.active]) == list(range(versions))
        assert all(report.of(version) for version in apart)
