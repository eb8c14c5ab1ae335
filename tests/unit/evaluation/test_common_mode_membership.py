import json
from functools import partial

import pytest
import torch
from torch import Tensor

from deepfailguard.decision.rules import highest_posterior, majority_vote, single_version
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.evaluation.intervals import paired_difference
from deepfailguard.evaluation.measures import measure_ensemble
from deepfailguard.evaluation.membership import MemberChange, MemberChanges, membership_changes
from deepfailguard.evaluation.swap_gate import SwapLimits, gate_swap
from deepfailguard.evaluation.trial import TIE_AWARE_VOTE, cross_fitted_failure
from deepfailguard.seeding import generator
from deepfailguard.types import Decision


def _versions(accuracies: list[float], inputs: int, purpose: object) -> tuple[Tensor, Tensor]:
    """Answers (B, N) of versions that fail independently, and the truth, in ten classes."""
    random = generator(0, purpose)
    truth = torch.randint(10, (inputs,), generator=random)
    wrong = torch.rand(inputs, len(accuracies), generator=random) >= torch.tensor(accuracies)
    shift = torch.randint(1, 10, wrong.shape, generator=random)
    return (truth[:, None] + wrong * shift) % 10, truth


def _by_action(changes: MemberChanges) -> dict[str, MemberChange]:
    return {change.action: change for change in changes.changes}


def test_a_case_counted_by_hand() -> None:
    # Truth is 0; a, b and c vote, d is the candidate. The vote is wrong on the third and fourth input.
    labels = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 1, 0], [1, 1, 0]])
    candidate = torch.tensor([[0], [0], [0], [2]])
    changes = membership_changes(labels, torch.zeros(4, dtype=torch.int64), candidate, seed=0, names=list("abcd"))
    assert (changes.inputs, changes.accuracy, changes.headroom) == (4, 0.5, 0.5)
    by_action = _by_action(changes)
    assert set(by_action) == {"add d", "drop a", "drop b", "drop c", "swap a for d", "swap b for d", "swap c for d"}
    swap = by_action["swap b for d"]  # votes a, d, c: right on 1, 2 and 3; on 4 three answers tie
    assert (swap.kind, swap.leaving, swap.entering) == ("swap", "b", "d")
    assert swap.better - swap.worse == round(4 * swap.accuracy.estimate) >= 1
    without_c = by_action["swap c for d"]  # a, b, d: right on 1 and 2; d alone is right on 3, nobody on 4
    assert (without_c.better, without_c.worse, without_c.p_value) == (0, 0, 1.0)
    assert (without_c.accuracy.estimate, without_c.headroom.estimate) == (0.0, -0.25)


@pytest.mark.parametrize("rule", [TIE_AWARE_VOTE, majority_vote, highest_posterior])
def test_gains_agree_with_the_measures_of_both_ensembles(rule: partial[Decision]) -> None:
    answers, truth = _versions([0.6, 0.7, 0.5, 0.8, 0.4], 300, "measures")
    failure = torch.rand(300, 5, generator=generator(0, "failure"))
    changes = membership_changes(
        answers[:, :3], truth, answers[:, 3:], seed=0, rule=rule, failure_probability=failure, names=list("abcde")
    )

    def measured(columns: list[int]) -> tuple[float, float]:
        labels, probability = answers[:, columns], failure[:, columns]
        measures = measure_ensemble(
            labels, truth, rule(labels, probability), TIE_AWARE_VOTE(labels, probability), best_single=0
        )
        return measures.guard, measures.headroom

    before = measured([0, 1, 2])
    assert (changes.accuracy, changes.headroom) == pytest.approx(before)
    ensembles = {"add e": [0, 1, 2, 4], "drop b": [0, 2], "swap a for d": [3, 1, 2], "swap c for e": [0, 1, 4]}
    for action, columns in ensembles.items():
        change, after = _by_action(changes)[action], measured(columns)
        assert change.accuracy.estimate == pytest.approx(after[0] - before[0])
        assert change.headroom.estimate == pytest.approx(after[1] - before[1])
    assert len(changes.changes) == 2 + 3 + 6


def test_the_surest_gain_comes_first() -> None:
    answers, truth = _versions([0.8, 0.8, 0.3, 0.95], 400, "sorted")
    changes = membership_changes(answers[:, :3], truth, answers[:, 3:], seed=0)
    lows = [change.accuracy.low for change in changes.changes]
    assert lows == sorted(lows, reverse=True)
    assert changes.best is changes.changes[0]
    assert changes.best.is_gain
    assert changes.best.entering == "version 3"
    assert changes.recommendation.startswith(f"{changes.best.action}: accuracy +")
    assert f"Recommendation: {changes.recommendation}." in str(changes)


def test_a_version_that_spoils_the_vote_is_dropped() -> None:
    truth = torch.zeros(500, dtype=torch.int64)
    good = (torch.rand(500, 1, generator=generator(0, "good")) < 0.1).long()
    noise = (torch.rand(500, 1, generator=generator(0, "bad")) < 0.9).long()
    # Two copies of one bad version outvote the good one.
    changes = membership_changes(torch.cat([good, noise, noise], dim=1), truth, seed=0)
    assert changes.best is not None
    assert (changes.best.kind, changes.best.entering) == ("drop", None)
    assert changes.best.leaving in {"version 1", "version 2"}


def test_a_copy_gains_nothing() -> None:
    answers, truth = _versions([0.7], 300, "copy")
    changes = membership_changes(answers, truth, answers, seed=0)
    assert {(change.accuracy.low, change.accuracy.high, change.p_value) for change in changes.changes} == {(0, 0, 1)}
    assert changes.best is None
    assert changes.recommendation == "keep as it is: none of 2 single changes is shown to gain on 300 inputs"


def test_equally_good_versions_are_seldom_exchanged() -> None:
    exchanged = 0
    lucky = 0
    for run in range(12):
        answers, truth = _versions([0.8] * 11, 100, ("equal", run))
        changes = membership_changes(answers[:, :3], truth, answers[:, 3:], seed=0)
        swaps = [change for change in changes.changes if change.kind == "swap"]
        exchanged += any(swap.is_gain for swap in swaps)
        lucky += any(swap.accuracy.low > 0 for swap in swaps)
    assert exchanged <= 1
    assert lucky >= 3  # among 24 swaps, the plain interval of one often lies above zero by luck


def test_a_handful_of_changed_answers_is_no_proof() -> None:
    answers, truth = torch.zeros(100, 1, dtype=torch.int64), torch.zeros(100, dtype=torch.int64)
    truth[:5] = 1
    changes = membership_changes(answers, truth, truth[:, None], seed=0)
    swap = _by_action(changes)["swap version 0 for version 1"]
    assert (swap.better, swap.worse) == (5, 0)
    assert swap.accuracy.low > 0
    assert swap.p_value == pytest.approx(2 * 0.5**5)  # of two changes one changes nothing
    assert not swap.is_gain
    assert changes.best is None


def test_a_swapped_version_keeps_its_place() -> None:
    answers, truth = _versions([0.5, 0.9, 0.7, 0.2], 200, "place")
    first = partial(single_version, version=0)
    changes = _by_action(membership_changes(answers[:, :2], truth, answers[:, 2:], seed=0, rule=first))
    right = (answers == truth[:, None]).double().mean(0)
    assert changes["swap version 0 for version 2"].accuracy.estimate == pytest.approx(float(right[2] - right[0]))
    assert changes["swap version 1 for version 3"].accuracy.estimate == 0
    assert changes["add version 3"].accuracy.estimate == 0
    assert changes["drop version 0"].accuracy.estimate == pytest.approx(float(right[1] - right[0]))


def test_nothing_to_change() -> None:
    answers, truth = _versions([0.7], 20, "alone")
    for candidates in (None, answers[:, :0]):
        changes = membership_changes(answers, truth, candidates, seed=0)
        assert changes.changes == ()
        assert changes.recommendation == "keep as it is: there is nothing to change"
        assert json.loads(json.dumps(changes.as_dict())) == changes.as_dict()


@pytest.mark.parametrize("inputs", [1, 2, 30])
@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_all_wrong_and_all_right(inputs: int, accuracy: float) -> None:
    answers, truth = _versions([accuracy] * 4, inputs, "all")
    changes = membership_changes(answers[:, :3], truth, answers[:, 3:], seed=0)
    assert (changes.accuracy, changes.headroom) == (accuracy, 0)
    assert all(change.accuracy.estimate == 0 and not change.is_gain for change in changes.changes)


def test_missing_answers() -> None:
    truth = torch.zeros(50, dtype=torch.int64)
    silent, right = torch.full((50, 2), -1), truth[:, None]
    changes = membership_changes(silent, truth, right, seed=0)
    assert changes.accuracy == 0
    assert _by_action(changes)["add version 2"].accuracy.estimate == 1
    assert changes.best is not None


def test_twenty_versions() -> None:
    answers, truth = _versions([0.6] * 21, 50, "twenty")
    assert len(membership_changes(answers[:, :20], truth, answers[:, 20:], seed=0).changes) == 1 + 20 + 20


def test_changes_as_json() -> None:
    answers, truth = _versions([0.6, 0.7, 0.9], 60, "json")
    described = membership_changes(answers[:, :2], truth, answers[:, 2:], seed=0).as_dict()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert set(described["changes"][0]) >= {"kind", "accuracy", "accuracy_low", "headroom_high", "p_value", "is_gain"}


def test_failure_shares_come_from_other_folds() -> None:
    failed = torch.rand(53, 3, generator=generator(0, "folds")) < 0.3
    shares = cross_fitted_failure(failed, seed=0)
    assert float(shares.min()) > 0
    assert len(shares.unique(dim=0)) <= 5
    for i in range(0, 53, 7):
        turned = failed.clone()
        turned[i] = ~turned[i]
        others = cross_fitted_failure(turned, seed=0)
        assert torch.equal(others[i], shares[i])
        assert not torch.equal(others, shares)
    torch.testing.assert_close(shares.mean(0), failed.double().mean(0), atol=0.05, rtol=0)
    assert cross_fitted_failure(failed[:1], seed=0).tolist() == [[0.5] * 3]


def test_wrong_input() -> None:
    answers, truth = _versions([0.6, 0.7], 20, "wrong")
    with pytest.raises(DataFormatError, match=r"candidates must be int64 \(20, C\)"):
        membership_changes(answers, truth, answers[:10], seed=0)
    with pytest.raises(DataFormatError, match=r"failure probabilities must be \(20, 4\)"):
        membership_changes(answers, truth, answers, seed=0, failure_probability=torch.rand(20, 2))
    with pytest.raises(DataFormatError, match=r"labels must be int64 \(B, N\)"):
        membership_changes(answers[:, 0], truth, answers, seed=0)
    with pytest.raises(ConfigurationError, match="one name for each of 4 versions, got 2"):
        membership_changes(answers, truth, answers, seed=0, names=["a", "b"])


def test_a_good_newcomer_may_come_in() -> None:
    answers, truth = _versions([0.9, 0.9, 0.6, 0.9], 2000, "good")
    gate = gate_swap(answers[:, :3], truth, answers[:, 3], 2, seed=0, names=["a", "b", "c", "d"])
    assert gate.allowed
    assert gate.gain.low > 0
    assert str(gate).startswith("swap c for d: allowed; not shown to be worse: accuracy +")
    assert gate.closest in {"a", "b"}
    assert gate.shared is not None
    assert gate.shared < 0.2


def test_a_worse_newcomer_is_refused() -> None:
    answers, truth = _versions([0.9, 0.9, 0.9, 0.3], 2000, "worse")
    gate = gate_swap(answers[:, :3], truth, answers[:, 3], 0, seed=0)
    assert not gate.allowed
    assert len(gate.objections) == 1
    assert "the ensemble would be worse: accuracy −" in gate.reason


def test_a_loss_that_may_be_luck_is_no_objection() -> None:
    truth = torch.zeros(1000, dtype=torch.int64)
    old, slightly_worse, worse = truth.clone(), truth.clone(), truth.clone()
    old[:10] = slightly_worse[10:22] = worse[10:50] = 1
    gate = gate_swap(old[:, None], truth, slightly_worse, 0, seed=0)
    assert gate.gain.estimate == pytest.approx(-0.002)
    assert gate.allowed
    assert not gate_swap(old[:, None], truth, worse, 0, seed=0).allowed


def test_a_copy_of_a_version_that_stays_is_refused() -> None:
    answers, truth = _versions([0.9, 0.9, 0.9], 2000, "copy")
    gate = gate_swap(answers, truth, answers[:, 1], 0, seed=0, names=["a", "b", "c", "copy"])
    assert not gate.allowed
    assert (gate.closest, gate.shared) == ("b", 1.0)
    assert "copy fails where b does, which stays: both are wrong on 100 %" in gate.reason
    # A copy of the version that leaves changes nothing.
    assert gate_swap(answers, truth, answers[:, 0], 0, seed=0).allowed


def test_a_newcomer_that_fails_only_where_a_worse_version_does_is_welcome() -> None:
    answers, truth = _versions([0.7, 0.7, 0.7], 2000, "better")
    newcomer = answers[:, 1].clone()
    mended = (newcomer != truth).nonzero().flatten()[::2]
    newcomer[mended] = truth[mended]
    gate = gate_swap(answers, truth, newcomer, 0, seed=0)
    assert gate.allowed
    assert gate.shared == pytest.approx(0.5, abs=0.01)
    assert not gate_swap(answers, truth, newcomer, 0, seed=0, limits=SwapLimits(most_shared=0.4)).allowed


def test_too_few_inputs_are_refused_with_the_number_needed() -> None:
    answers, truth = _versions([0.8, 0.8, 0.8, 0.8], 4000, "few")
    few = gate_swap(answers[:60, :3], truth[:60], answers[:60, 3], 0, seed=0)
    assert not few.allowed
    assert (
        f"60 inputs are too few to see a loss of 2.0 % of accuracy; about {few.inputs_needed} are needed" in few.reason
    )
    many = gate_swap(answers[:, :3], truth, answers[:, 3], 0, seed=0)
    assert many.allowed
    # The interval narrows with the root of the number of inputs: at the number needed it is as narrow as asked for.
    half = (many.gain.high - many.gain.low) / 2
    assert half * (many.inputs / many.inputs_needed) ** 0.5 == pytest.approx(0.02, rel=0.05)
    assert many.inputs_needed / 2 < few.inputs_needed < many.inputs_needed * 2


def test_a_finer_loss_needs_more_inputs() -> None:
    answers, truth = _versions([0.8, 0.8], 500, "finer")
    coarse, fine = (
        gate_swap(answers[:, :1], truth, answers[:, 1], 0, seed=0, limits=SwapLimits(precision=precision))
        for precision in (0.04, 0.02)
    )
    assert fine.inputs_needed == pytest.approx(4 * coarse.inputs_needed, abs=4)


@pytest.mark.parametrize("right", [True, False])
def test_one_input_is_never_enough(right: bool) -> None:
    labels, truth = torch.tensor([[1]]), torch.tensor([0])
    gate = gate_swap(labels, truth, torch.tensor([0 if right else 1]), 0, seed=0)
    assert not gate.allowed
    assert gate.inputs_needed > 1000
    assert (gate.closest, gate.shared) == (None, None)


def test_versions_without_failures_are_not_compared() -> None:
    truth = torch.zeros(600, dtype=torch.int64)
    labels = truth[:, None].repeat(1, 3)
    gate = gate_swap(labels, truth, truth, 1, seed=0)
    assert gate.allowed
    assert gate.shared is None
    labels[:4], newcomer = 1, truth.clone()
    newcomer[:4] = 1
    assert gate_swap(labels, truth, newcomer, 1, seed=0).shared is None
    strict = gate_swap(labels, truth, newcomer, 1, seed=0, limits=SwapLimits(fewest_failures=4))
    assert strict.shared == 1
    assert not strict.allowed


def test_all_wrong_and_silent() -> None:
    truth = torch.zeros(600, dtype=torch.int64)
    gate = gate_swap(torch.ones(600, 2, dtype=torch.int64), truth, torch.full((600,), -1), 0, seed=0)
    assert not gate.allowed
    assert gate.shared == 1
    assert gate.gain.estimate == 0


def test_the_gate_asks_the_rule_it_is_given() -> None:
    answers, truth = _versions([0.9, 0.9, 0.2], 1000, "rule")
    follow = partial(single_version, version=0)
    args = (answers[:, :2], truth, answers[:, 2])
    assert gate_swap(*args, 1, seed=0, rule=follow).gain.estimate == 0
    assert gate_swap(*args, 0, seed=0, rule=follow).gain.high < -0.5
    trusted = torch.tensor([0.9, 0.1, 0.9]).expand(1000, 3)
    gate = gate_swap(*args, 0, seed=0, rule=highest_posterior, failure_probability=trusted)
    assert gate.gain.estimate == 0


def test_the_gain_is_the_paired_difference() -> None:
    answers, truth = _versions([0.7, 0.8], 300, "paired")
    gate = gate_swap(answers[:, :1], truth, answers[:, 1], 0, seed=5)
    assert gate.gain == paired_difference(answers[:, 1] == truth, answers[:, 0] == truth, seed=5)
    described = gate.as_dict()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert (described["allowed"], described["gain"]) == (gate.allowed, gate.gain.estimate)


def test_a_gate_for_what_does_not_fit() -> None:
    answers, truth = _versions([0.7, 0.8], 20, "fit")
    with pytest.raises(ConfigurationError, match=r"leaving must be in \[0, 2\), got 2"):
        gate_swap(answers, truth, truth, 2, seed=0)
    with pytest.raises(DataFormatError, match=r"newcomer's answers must be int64 \(20,\)"):
        gate_swap(answers, truth, truth[:5], 0, seed=0)
    with pytest.raises(DataFormatError, match="B, N >= 1"):
        gate_swap(answers[:0], truth[:0], truth[:0], 0, seed=0)
    for wrong in ({"most_shared": 0.0}, {"precision": 1.0}, {"level": 1.0}, {"fewest_failures": 0}):
        with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))} must be"):
            SwapLimits(**wrong)  # type: ignore[arg-type]
