"""What a verdict tells of versions that gave no answer."""

import torch

from deepfailguard.guard.verdict import Verdict, VersionHealth

NAN = "logits of 1 of 3 inputs are NaN or infinite"


def _verdict(version_labels: list[list[int]], health: list[VersionHealth]) -> Verdict:
    labels = torch.tensor(version_labels)
    told = labels >= 0
    inputs = len(labels)
    return Verdict(
        labels=labels.amax(1),
        failure_probability=torch.full((inputs,), 0.25),
        abstained=~told.any(1),
        weights=told / told.sum(1, keepdim=True).clamp_min(1),
        probabilities=torch.eye(2)[labels.amax(1).clamp_min(0)],
        version_labels=labels,
        version_failure_probability=torch.where(told, 0.25, 1.0),
        distance=torch.zeros(labels.shape),
        found=told & False,
        health=tuple(health),
        problems={},
        classes=("cat", "dog"),
        measured=False,
    )


def test_in_a_cascade_a_failed_version_is_told_from_one_that_was_not_asked() -> None:
    # b was asked about inputs 0 to 2 and failed on one; c was asked about input 2 alone.
    health = [VersionHealth("a", 4, 4), VersionHealth("b", 2, 3, NAN), VersionHealth("c", 1, 1)]
    verdict = _verdict([[1, 1, -1], [0, 0, -1], [1, -1, 1], [0, -1, -1]], health)
    assert "2 of 2 versions gave it (1 not asked)." in verdict.explain(0)
    assert "c was not asked: the answer was sure enough without it" in verdict.explain(0)
    assert f"b gave no answer: {NAN}" in verdict.explain(2)  # c was asked, and so was b before it
    assert "2 of 3 versions gave it." in verdict.explain(2)
    assert f"b gave no answer, or was not asked: {NAN}" in verdict.explain(3)
    assert "1 of 2 versions gave it (1 not asked)." in verdict.explain(3)


def test_a_version_that_failed_throughout_is_asked_and_one_in_quarantine_does_not_count() -> None:
    quarantined = VersionHealth("c", 0, 0, "in quarantine since input 7: it disagrees", state="quarantined")
    health = [VersionHealth("a", 2, 2), VersionHealth("b", 0, 2, "RuntimeError: no"), quarantined]
    told = _verdict([[1, -1, -1], [0, -1, -1]], health).explain(1)
    assert "1 of 2 versions gave it (1 in quarantine)." in told
    assert "b gave no answer: RuntimeError: no" in told
    assert "c does not count: in quarantine since input 7: it disagrees" in told


def test_a_problem_beside_the_answers_puts_nobody_in_quarantine() -> None:
    beside = VersionHealth("b", 1, 1, "its stability is not known")
    verdict = _verdict([[1, 1], [0, -1]], [VersionHealth("a", 2, 2), beside])
    assert verdict.explain(1).endswith("b was not asked: the answer was sure enough without it")
    assert "1 of 1 versions gave it (1 not asked)." in verdict.explain(1)


def test_where_nobody_answered_who_was_not_asked_is_told_too() -> None:
    quarantined = VersionHealth("b", 0, 0, "in quarantine since input 0: it", state="quarantined")
    health = [VersionHealth("a", 0, 1, "RuntimeError: no"), quarantined]
    told = _verdict([[-1, -1]], health).explain(0)
    assert "no version answered, so the guard abstains (1 in quarantine)." in told
