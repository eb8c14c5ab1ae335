"""The rules of the decision benchmark."""

import torch
from torch import Tensor

from benchmarks.decisions.agreement import AgreementPosterior
from benchmarks.decisions.rules import (
    BEST_SINGLE,
    GUARD,
    GUARD_AMONG,
    LOG_POOL,
    MAJORITY,
    PAPER,
    POSTERIOR,
    RULES,
    SELECTIONS,
    SOFT_VOTE,
    STACKING,
    TIES_BY_ACCURACY,
    TUNED_STACKING,
    fit_guard,
    fit_guards,
    fit_rules,
)
from deepfailguard.predictor.joint.hearing import hear
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence, Rehearsed

CLASSES = 4
BY_CLASS = (SOFT_VOTE, LOG_POOL, STACKING, TUNED_STACKING)  # these may name a class that no version gave


def simulated(count: int, skills: tuple[float, ...], seed: int) -> tuple[Evidence, Tensor]:
    """Versions that are right with these probabilities and surer where they are right."""
    random = generator(seed, "simulated")
    truth = torch.randint(CLASSES, (count,), generator=random)
    columns = []
    for skill in skills:
        right = torch.rand(count, generator=random) < skill
        label = torch.where(right, truth, (truth + torch.randint(1, CLASSES, (count,), generator=random)) % CLASSES)
        sure = 1 + 2 * torch.rand(count, generator=random) + 2 * right
        columns.append(sure[:, None] * torch.nn.functional.one_hot(label, CLASSES))
    logits = torch.stack(columns, 1).float()
    distance = logits.amax(2) * (0.5 + torch.rand(count, len(skills), generator=random))
    features = tuple(logits[:, column] for column in range(len(skills)))
    return Evidence(logits.argmax(2), distance, torch.ones_like(distance, dtype=torch.bool), logits, features), truth


def with_silence(evidence: Evidence) -> Evidence:
    """The first version is silent on the first input, and all are on the second."""
    labels = evidence.labels.clone()
    labels[0, 0] = labels[1] = -1
    silent = labels == -1
    assert evidence.logits is not None
    logits = torch.where(silent[:, :, None], 0.0, evidence.logits)
    return Evidence(labels, evidence.distance, evidence.found & ~silent, logits, evidence.features)


def test_every_rule_answers_every_input() -> None:
    evidence, truth = simulated(300, (0.8, 0.7, 0.6), seed=0)
    asked, _ = simulated(100, (0.8, 0.7, 0.6), seed=1)
    told = {**fit_rules(evidence, truth, 200)(asked), **fit_guard(evidence, truth, None)(asked)}
    assert set(told) == set(RULES)
    for name, answers in told.items():
        assert answers.labels.shape == (100,), name
        assert bool(((answers.labels >= 0) & (answers.labels < CLASSES)).all()), name
        if answers.failure_probability is not None:
            assert bool(((answers.failure_probability >= 0) & (answers.failure_probability <= 1)).all()), name


def test_silent_versions_are_never_followed() -> None:
    evidence, truth = simulated(300, (0.8, 0.7, 0.6), seed=0)
    asked = with_silence(simulated(50, (0.8, 0.7, 0.6), seed=1)[0])
    told = {**fit_rules(evidence, truth, 200)(asked), **fit_guard(evidence, truth, None)(asked)}
    for name, answers in told.items():
        assert int(answers.labels[1]) == -1, name
        assert name in (GUARD, BEST_SINGLE, *BY_CLASS) or int(answers.labels[0]) in asked.labels[0, 1:].tolist(), name
    assert int(told[BEST_SINGLE].labels[0]) == -1


def test_the_paper_takes_part_where_there_are_distances() -> None:
    evidence, truth = simulated(200, (0.8, 0.7), seed=0)
    answer = fit_rules(evidence, truth, 100)
    assert PAPER in answer(evidence)
    bare = Evidence(evidence.labels, evidence.distance, torch.zeros_like(evidence.found), evidence.logits)
    assert PAPER not in answer(bare)
    assert PAPER not in fit_rules(evidence, truth, 0)(evidence)


def test_the_paper_learns_from_the_searched_inputs_alone() -> None:
    evidence, truth = simulated(200, (0.8, 0.7), seed=0)
    found = evidence.found.clone()
    found[100:] = False  # as where nobody searched
    partly = Evidence(evidence.labels, torch.where(found, evidence.distance, 0.0), found, evidence.logits)
    asked, _ = simulated(100, (0.8, 0.7), seed=1)
    alone = fit_rules(evidence[:100], truth[:100], 100)(asked)[PAPER]
    assert torch.equal(fit_rules(partly, truth, 100)(asked)[PAPER].labels, alone.labels)


def test_ties_go_to_the_smallest_label_or_to_the_better_version() -> None:
    evidence, truth = simulated(400, (0.4, 0.9), seed=0)
    told = fit_rules(evidence, truth, 0)(evidence)
    apart = evidence.labels[:, 0] != evidence.labels[:, 1]
    assert torch.equal(told[MAJORITY].labels, evidence.labels.amin(1))
    assert torch.equal(told[TIES_BY_ACCURACY].labels[apart], evidence.labels[apart, 1])
    assert torch.equal(told[BEST_SINGLE].labels, evidence.labels[:, 1])


def test_selections_break_ties_by_accuracy() -> None:
    """Versions that are right on all neighbours alike have equal votes; the better one of them is followed."""
    evidence, truth = simulated(400, (0.55, 0.95), seed=0)
    told = fit_rules(evidence, truth, 0)(evidence)
    for name in SELECTIONS:
        assert float((told[name].labels == truth).double().mean()) > 0.85, name


def test_agreement_is_believed() -> None:
    evidence, truth = simulated(2000, (0.6, 0.6, 0.6), seed=0)
    failure = AgreementPosterior().fit(evidence, truth).failure_probability(evidence)
    first, second, third = evidence.labels.unbind(1)
    alone, agreed = (first != second) & (first != third), (first == second) & (first == third)
    assert float(failure[agreed, 0].mean()) < 0.15 < 0.5 < float(failure[alone, 0].mean())
    wrong = (first != truth).double()
    assert abs(float(failure[:, 0].mean() - wrong.mean())) < 0.01


def test_agreement_posterior_of_who_was_always_right() -> None:
    evidence, truth = simulated(50, (1.0, 0.5), seed=0)
    failure = AgreementPosterior().fit(evidence, truth).failure_probability(with_silence(evidence))
    assert failure[2:, 0].tolist() == [1 - 51 / 52] * 48
    assert failure[:2, 0].tolist() == [1.0, 1.0]


def test_agreement_posterior_of_one_version_and_of_no_input() -> None:
    evidence, truth = simulated(100, (0.7,), seed=0)
    predictor = AgreementPosterior().fit(evidence, truth)
    assert bool(predictor.failure_probability(evidence).isfinite().all())
    assert predictor.failure_probability(evidence[:0]).shape == (0, 1)


def test_the_guard_may_give_an_answer_that_no_version_gave() -> None:
    """Two versions that always answer one class too high: what they show still tells the truth."""
    evidence, truth = simulated(600, (0.9, 0.9), seed=0)
    assert evidence.logits is not None
    turned = evidence.logits.roll(1, dims=2)
    shown = Evidence(turned.argmax(2), evidence.distance, evidence.found, turned, (turned[:, 0], turned[:, 1]))
    told = fit_guard(shown, truth, None)(shown)
    assert float((told[GUARD].labels == truth).double().mean()) > 0.9
    assert bool((told[GUARD_AMONG].labels[:, None] == shown.labels).any(1).all())


def test_rules_that_tell_no_probability_say_so() -> None:
    evidence, truth = simulated(100, (0.8, 0.7), seed=0)
    told = fit_rules(evidence, truth, 50)(evidence)
    assert told[MAJORITY].failure_probability is None
    assert told[POSTERIOR].failure_probability is not None


def test_guards_fitted_together_are_those_fitted_alone() -> None:
    evidence, truth = simulated(200, (0.8, 0.6), seed=0)
    asked, _ = simulated(50, (0.5, 0.5), seed=1)
    source, rehearsed = torch.arange(40), {}
    for number, kind in enumerate(("noise", "blur", "tilt")):
        changed, changed_truth = simulated(40, (0.6, 0.4), seed=2 + number)
        rehearsed[kind] = Rehearsed(changed, changed_truth, source)
    parts = {
        without: Rehearsed.concatenate([each for kind, each in rehearsed.items() if kind not in without])
        for without in (frozenset(), frozenset({"noise"}), frozenset({"blur", "tilt"}))
    }
    guards = fit_guards({without: hear(evidence, truth, part) for without, part in parts.items()})
    for without, guard in guards.items():
        alone = fit_guard(evidence, truth, parts[without])(asked)[GUARD]
        together = guard(asked)[GUARD]
        assert torch.equal(together.labels, alone.labels)
        torch.testing.assert_close(together.failure_probability, alone.failure_probability, rtol=0, atol=1e-6)
