import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.evaluation.coincidence import failures_of, holm_corrected, joint_failures, pair_failures
from deepfailguard.evaluation.common_mode import CommonMode, common_mode, effective_versions
from deepfailguard.seeding import generator

# Truth is 0 throughout. Both wrong 3 times (twice with the same answer), the first alone once, the second alone
# twice, once because it did not answer; both right 4 times.
LABELS = torch.tensor([[1, 1], [2, 2], [1, 2], [1, 0], [0, 1], [0, -1], [0, 0], [0, 0], [0, 0], [0, 0]])
TRUTH = torch.zeros(10, dtype=torch.int64)


def _answers(failed: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and truth that fail so; wrong answers differ from version to version."""
    return failed * torch.arange(1, failed.shape[1] + 1), torch.zeros(len(failed), dtype=torch.int64)


def _independent(inputs: int, rates: list[float], purpose: object) -> Tensor:
    return torch.rand(inputs, len(rates), generator=generator(0, purpose)) < torch.tensor(rates)


def test_a_pair_counted_by_hand() -> None:
    (pair,) = pair_failures(LABELS, TRUTH, names=["a", "b"])
    assert (pair.first, pair.second, pair.inputs, pair.failures) == ("a", "b", 10, (4, 5))
    assert (pair.both, pair.only_first, pair.only_second, pair.neither) == (3, 1, 2, 4)
    assert pair.same_wrong_answer == 2
    assert (pair.expected, pair.ratio) == (2.0, 1.5)
    # Of the C(10, 4) = 210 ways to fail 4 times, 50 share 3 failures with the other and 5 share 4.
    assert pair.p_value == pytest.approx(55 / 210)
    assert pair.correlation == pytest.approx(10 / math.sqrt(600))
    assert (pair.shared_of_fewer, pair.shared_of_either) == (3 / 4, 3 / 6)


def test_two_missing_answers_are_shared_failures_but_no_votes() -> None:
    (pair,) = pair_failures(torch.tensor([[-1, -1], [3, 3]]), torch.tensor([0, 0]))
    assert (pair.both, pair.same_wrong_answer) == (2, 1)


@pytest.mark.parametrize("inputs", [1, 2, 7, 60, 1000])
def test_pairs_agree_with_scipy_and_numpy(inputs: int) -> None:
    failed = _independent(inputs, [0.3, 0.2, 0.5, 0.05], ("pairs", inputs))
    failed[:, 3] |= failed[:, 0] & failed[:, 1]
    pairs = pair_failures(*_answers(failed))
    alone = [
        fisher_exact([[pair.both, pair.only_first], [pair.only_second, pair.neither]], alternative="greater").pvalue
        for pair in pairs
    ]
    assert [pair.p_value for pair in pairs] == pytest.approx(holm_corrected(alone), abs=1e-12)
    for pair, (i, j) in zip(pairs, itertools.combinations(range(4), 2), strict=True):
        one, other = failed[:, i].numpy(), failed[:, j].numpy()
        assert pair.failures == (one.sum(), other.sum())
        if one.std() > 0 and other.std() > 0:
            assert pair.correlation == pytest.approx(np.corrcoef(one, other)[0, 1])
        else:
            assert pair.correlation is None


def test_holm_by_hand() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.5 * 1; the third may not be smaller than the second.
    assert holm_corrected([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm_corrected([0.7, 0.6]) == [1.0, 1.0]
    assert holm_corrected([]) == []


def test_joint_failures_agree_with_an_enumeration() -> None:
    failed = _independent(200, [0.4, 0.25, 0.1, 0.3], "joint")
    rates = failed.double().mean(0).tolist()
    joint = joint_failures(*_answers(failed))
    assert [each.at_least for each in joint] == [2, 3, 4]
    for each in joint:
        chance = sum(
            math.prod(rate if bad else 1 - rate for rate, bad in zip(rates, pattern, strict=True))
            for pattern in itertools.product([False, True], repeat=4)
            if sum(pattern) >= each.at_least
        )
        assert each.observed == int((failed.sum(1) >= each.at_least).sum())
        assert each.expected == pytest.approx(200 * chance)
        assert each.z == pytest.approx((each.observed - 200 * chance) / math.sqrt(200 * chance * (1 - chance)))


def test_the_first_joint_test_is_that_of_knight_and_leveson() -> None:
    failed = _independent(500, [0.1, 0.2, 0.15], "knight")
    p = failed.double().mean(0)
    none_fails = (1 - p).prod()
    one_fails = (none_fails * p / (1 - p)).sum()
    more = float(1 - none_fails - one_fails)
    several = int((failed.sum(1) > 1).sum())
    assert joint_failures(*_answers(failed))[0].z == pytest.approx(
        (several - 500 * more) / math.sqrt(500 * more * (1 - more))
    )


def test_independent_versions_are_seldom_accused() -> None:
    accused, joint = 0, 0
    for run in range(120):
        report = pair_failures(*_answers(_independent(300, [0.1, 0.2, 0.3], ("sound", run))))
        accused += any(pair.p_value <= 0.05 for pair in report)
        joint += joint_failures(*_answers(_independent(300, [0.1, 0.2, 0.3], ("sound", run))))[0].p_value <= 0.05
    assert accused <= 0.05 * 120 + 5  # two standard deviations of a binomial count
    assert joint <= 0.05 * 120 + 5


def test_copies_are_found() -> None:
    failed = _independent(300, [0.1], "copies").expand(300, 5)
    report = common_mode(*_answers(failed), seed=0, names=list("abcde"))
    assert len(report.coincident) == 10
    assert report.effective is not None
    assert (report.effective.estimate, report.effective.low, report.effective.high) == pytest.approx((1, 1, 1))
    assert all(pair.shared_of_either == pair.correlation == 1 for pair in report.pairs)
    assert report.joint[-1].p_value < 1e-12


def test_the_one_bad_pair_is_named() -> None:
    failed = _independent(1500, [0.1] * 5, "pair")
    shared = _independent(1500, [0.08], "fault")[:, 0]
    failed[:, 1] |= shared
    failed[:, 3] |= shared
    report = common_mode(*_answers(failed), seed=0, names=list("abcde"))
    assert [(pair.first, pair.second) for pair in report.coincident] == [("b", "d")]
    text = str(report)
    assert "Wrong answers on 1500 inputs: a " in text
    assert "Pairs that fail together more often than by chance: 1 of 10.\n- b and d are both wrong on" in text


def test_on_hard_inputs_the_pair_with_a_common_fault_comes_first() -> None:
    random = generator(0, "hard inputs")
    difficulty = 2 * torch.randn(2000, 1, generator=random)
    failed = torch.rand(2000, 4, generator=random) < torch.sigmoid(difficulty - 3.5)
    fault = torch.rand(2000, generator=random) < 0.06
    failed[:, 0] |= fault
    failed[:, 3] |= fault
    report = common_mode(*_answers(failed), seed=0, names=list("abcd"))
    assert len(report.coincident) == 6  # hard inputs alone make all of them fail together
    assert (report.coincident[0].first, report.coincident[0].second) == ("a", "d")
    shared = [pair.shared_of_either or 0 for pair in report.coincident]
    assert shared == sorted(shared, reverse=True)
    assert shared[0] > 1.5 * shared[1]


def test_versions_that_fail_independently_are_worth_their_number() -> None:
    for versions in (2, 5, 20):
        worth = effective_versions(*_answers(_independent(4000, [0.3] * versions, versions)), seed=0)
        assert worth is not None
        assert worth.estimate == pytest.approx(versions, rel=0.1)
        assert worth.high <= versions


def test_four_groups_of_five_copies_are_worth_four() -> None:
    failed = _independent(5000, [0.2] * 4, "groups").repeat_interleave(5, dim=1)
    worth = effective_versions(*_answers(failed), seed=0)
    assert worth is not None
    assert worth.estimate == pytest.approx(4, rel=0.05)
    assert worth.low < 4 < worth.high or worth.high - worth.low < 0.4


def test_effective_number_by_hand() -> None:
    worth = effective_versions(LABELS, TRUTH, seed=0)
    assert worth is not None
    assert worth.estimate == pytest.approx(2 / (1 + 10 / math.sqrt(600)))
    # Where versions take turns in failing, the correlation is negative; they are not worth more than there are.
    turns = effective_versions(*_answers(torch.tensor([[True, False], [False, True]])), seed=0)
    assert turns is not None
    assert turns.estimate == 2
    # Two copies and one that never fails: correlations 1, 0, 0.
    copies = torch.tensor([[True, True, False], [False, False, False], [False, False, False]])
    spared = effective_versions(*_answers(copies), seed=0)
    assert spared is not None
    assert spared.estimate == pytest.approx(3 / (1 + 2 / 3))


def test_the_interval_of_the_effective_number_agrees_with_a_plain_bootstrap() -> None:
    failed = _independent(400, [0.3, 0.3, 0.3], "bootstrap")
    failed[:, 1] |= failed[:, 0] & _independent(400, [0.5], "common")[:, 0]
    worth = effective_versions(*_answers(failed), seed=0, resamples=2000, level=0.9)
    random, plain = np.random.default_rng(0), []
    for _ in range(2000):
        correlations = np.corrcoef(failed.numpy()[random.integers(400, size=400)].T)
        mean = correlations[np.triu_indices(3, 1)].mean()
        plain.append(min(3.0, max(1.0, 3 / (1 + 2 * mean))))
    assert worth is not None
    assert (worth.low, worth.high) == pytest.approx(tuple(np.quantile(plain, [0.05, 0.95])), abs=0.04)


def test_resampling_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = _answers(_independent(100, [0.3, 0.3, 0.3], "pieces"))
    whole = effective_versions(*answers, seed=1)
    monkeypatch.setattr("deepfailguard.evaluation.common_mode._DRAWS_AT_ONCE", 100 * 7)
    assert effective_versions(*answers, seed=1) == whole
    assert effective_versions(*answers, seed=2) != whole


def test_the_same_seed_gives_the_same_report() -> None:
    answers = _answers(_independent(80, [0.3, 0.2, 0.3], "seed"))
    assert common_mode(*answers, seed=3) == common_mode(*answers, seed=3)


CORNERS = {
    "one input": _answers(torch.tensor([[True, False, True]])),
    "one version": _answers(_independent(50, [0.3], "one")),
    "twenty versions": _answers(_independent(60, [0.2] * 20, "twenty")),
    "no failure of five": _answers(torch.zeros(30, 5, dtype=torch.bool)),
    "no failure": _answers(torch.zeros(30, 3, dtype=torch.bool)),
    "all wrong": _answers(torch.ones(30, 3, dtype=torch.bool)),
    "one always wrong": _answers(torch.tensor([[True, False], [True, True], [True, False]])),
    "nobody answers": (torch.full((5, 3), -1), torch.zeros(5, dtype=torch.int64)),
    "two inputs, turns": _answers(torch.tensor([[True, False], [False, True]])),
}


@pytest.mark.parametrize("name", CORNERS)
def test_every_corner_has_a_report(name: str) -> None:
    labels, truth = CORNERS[name]
    report = common_mode(labels, truth, seed=0)
    described = report.as_dict()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    versions = labels.shape[1]
    assert len(report.pairs) == versions * (versions - 1) // 2
    assert len(report.joint) == versions - 1
    if name != "twenty versions":
        assert report.coincident == ()
    assert all(0 <= each.p_value <= 1 for each in (*report.pairs, *report.joint))
    assert str(report).startswith(f"Wrong answers on {len(labels)} inputs: version 0 ")


@pytest.mark.parametrize("name", ["one input", "no failure", "all wrong", "one always wrong", "nobody answers"])
def test_what_cannot_be_told_is_none(name: str) -> None:
    report = common_mode(*CORNERS[name], seed=0)
    assert report.effective is None
    assert all(pair.correlation is None for pair in report.pairs)
    assert "cannot be told" in str(report)


def test_failures_without_room_for_chance() -> None:
    report = common_mode(*CORNERS["all wrong"], seed=0)
    assert [(each.observed, each.expected, each.z, each.p_value) for each in report.joint] == [(30, 30, None, 1.0)] * 2
    assert {(pair.both, pair.ratio, pair.p_value) for pair in report.pairs} == {(30, 1, 1)}
    report = common_mode(*CORNERS["no failure"], seed=0)
    assert {(pair.both, pair.ratio, pair.p_value, pair.shared_of_either) for pair in report.pairs} == {
        (0, None, 1.0, None)
    }
    assert {(each.observed, each.z, each.p_value) for each in report.joint} == {(0, None, 1.0)}


def test_a_single_version() -> None:
    report: CommonMode = common_mode(*CORNERS["one version"], seed=0)
    assert report.pairs == report.joint == ()
    assert report.effective is not None
    assert (report.effective.low, report.effective.estimate, report.effective.high) == (1, 1, 1)
    assert str(report).endswith("A single version has nothing to fail together with.")


def test_missing_answers_are_failures() -> None:
    labels = torch.tensor([[-1, 2], [2, -1]])
    assert failures_of(labels, torch.tensor([2, 2])).tolist() == [[True, False], [False, True]]


def test_wrong_input() -> None:
    with pytest.raises(DataFormatError, match=r"int64 \(B, N\) with B, N >= 1, got torch.float32"):
        common_mode(LABELS.float(), TRUTH, seed=0)
    with pytest.raises(DataFormatError, match=r"B, N >= 1, got torch.int64 \(0, 2\)"):
        common_mode(LABELS[:0], TRUTH[:0], seed=0)
    with pytest.raises(DataFormatError, match=r"truth must be int64 \(10,\)"):
        joint_failures(LABELS, TRUTH[:9])
    with pytest.raises(DataFormatError, match="true labels must be >= 0"):
        joint_failures(LABELS, TRUTH - 1)
    with pytest.raises(ConfigurationError, match="one name for each of 2 versions, got 1"):
        common_mode(LABELS, TRUTH, seed=0, names=["a"])
    with pytest.raises(ConfigurationError, match=r"level in \(0, 1\), got 1000 and 1.0"):
        common_mode(LABELS, TRUTH, seed=0, level=1.0)
    with pytest.raises(ConfigurationError, match="resamples >= 1"):
        effective_versions(LABELS, TRUTH, seed=0, resamples=0)
