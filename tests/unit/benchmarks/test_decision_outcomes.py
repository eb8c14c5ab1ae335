"""Outcomes of the decision benchmark: measured once, kept, and never with the tested change rehearsed."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from benchmarks.decisions import outcomes
from benchmarks.decisions.ensembles import Ensemble
from benchmarks.decisions.images import shifted_part
from benchmarks.decisions.outcomes import ORACLE, Outcome, code_digest, measure_pool, some_of_each
from benchmarks.decisions.rules import (
    GUARD,
    MAJORITY,
    PAPER,
    POSTERIOR,
    RULES,
    SELECTIONS,
    STACKING,
    TUNED_STACKING,
    Answers,
)
from deepfailguard.predictor.joint.hearing import Hearing
from deepfailguard.types import Evidence
from tests.made_up_pool import pool_evidence

ROOT = Path(__file__).resolve().parents[3]
POOL = pool_evidence("parts", 3, (60, 20), others=(shifted_part("noise"), shifted_part("blur")))


def measure(folder: Path, code: str = "code", shifted: bool = True) -> list[Outcome]:
    ensembles = [Ensemble("sound", (0, 1)), Ensemble("sound", (0, 2))]
    return measure_pool(POOL, ensembles, ensembles[:1] if shifted else [], folder, code)


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """What each guard that was fitted had not rehearsed; guards that answer 0 in place of the real ones."""
    seen: list[frozenset[str]] = []

    def answer(asked: Evidence) -> Mapping[str, Answers]:
        return {GUARD: Answers(asked.labels[:, 0], torch.zeros(len(asked), dtype=torch.float64))}

    def fit(heard: Mapping[frozenset[str], Hearing]) -> object:
        seen.extend(sorted(heard, key=sorted))
        return dict.fromkeys(heard, answer)

    monkeypatch.setattr(outcomes, "fit_guards", fit)
    return seen


def test_all_rules_are_measured_on_usual_and_shifted_inputs(tmp_path: Path) -> None:
    usual, other, noise, blur = measure(tmp_path)
    assert set(usual.right) == {*RULES, ORACLE}
    assert set(noise.right) == {*RULES, ORACLE} - {PAPER, STACKING, TUNED_STACKING, POSTERIOR, *SELECTIONS}
    assert (usual.shift, other.shift, noise.shift, blur.shift) == (None, None, "noise", "blur")
    assert usual.members == ("family0", "family1")
    assert usual.versions == 2
    assert usual.accuracy(ORACLE) >= usual.accuracy(MAJORITY)
    assert set(usual.ece) >= {GUARD, PAPER}
    assert MAJORITY not in usual.ece


def test_what_was_measured_is_kept(tmp_path: Path, guards: list[frozenset[str]]) -> None:
    first = measure(tmp_path)
    fitted = len(guards)
    again = measure(tmp_path)
    assert len(guards) == fitted
    for one, other in zip(first, again, strict=True):
        assert (one.members, one.shift, one.ece) == (other.members, other.shift, other.ece)
        assert {rule: right.tolist() for rule, right in one.right.items()} == {
            rule: right.tolist() for rule, right in other.right.items()
        }


def test_other_code_measures_anew(tmp_path: Path, guards: list[frozenset[str]]) -> None:
    measure(tmp_path, "code", shifted=False)
    measure(tmp_path, "other code", shifted=False)
    assert len(guards) == 4


def test_a_damaged_file_is_measured_anew(tmp_path: Path, guards: list[frozenset[str]]) -> None:
    measure(tmp_path, shifted=False)
    next(tmp_path.iterdir()).write_bytes(b"torn")
    measure(tmp_path, shifted=False)
    assert len(guards) == 3


def test_the_tested_change_is_not_rehearsed(tmp_path: Path, guards: list[frozenset[str]]) -> None:
    measure(tmp_path)
    assert guards == [frozenset(), frozenset(), frozenset({"blur"}), frozenset({"noise"})]


def test_some_of_each_setting_and_size() -> None:
    ensembles = [Ensemble(setting, (0, other)) for setting in ("sound", "mixed") for other in (1, 2, 3)]
    ensembles += [Ensemble("sound", (0, 1, 2))]
    chosen = some_of_each(ensembles, 2)
    assert [(each.setting, each.members) for each in chosen] == [
        ("sound", (0, 1)),
        ("sound", (0, 2)),
        ("sound", (0, 1, 2)),
        ("mixed", (0, 1)),
        ("mixed", (0, 2)),
    ]


def test_the_digest_is_of_code_that_exists() -> None:
    missing = [pattern for pattern in outcomes._CODE if not list(ROOT.glob(pattern))]
    assert not missing
    assert code_digest() == code_digest()
