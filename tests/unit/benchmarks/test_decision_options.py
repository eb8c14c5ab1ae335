"""The command lines of the benchmarks on these pools: who may see the evaluation data."""

import sys
from types import ModuleType

import pytest

from benchmarks import cascade, decision, failures, risk
from benchmarks.decisions.options import settings
from benchmarks.decisions.pools import DEVELOPMENT, FAULTS


def options(monkeypatch: pytest.MonkeyPatch, *words: str, module: ModuleType = decision) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    return vars(module.arguments())


def test_the_evaluation_has_three_seeds_and_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    told = options(monkeypatch)
    assert told["seeds"] == [0, 1, 2]
    assert told["versions"] == [2, 3, 4, 5]
    assert told["faults"] == tuple(FAULTS)
    assert told["data"] == ["digits", "fashion_mnist", "cifar10"]


@pytest.mark.parametrize("module", [decision, failures, cascade, risk], ids=lambda module: module.__name__)
@pytest.mark.parametrize("word", ["--quick", "--development"])
def test_trying_never_sees_the_evaluation(monkeypatch: pytest.MonkeyPatch, word: str, module: ModuleType) -> None:
    seeds = options(monkeypatch, word, module=module)["seeds"]
    assert isinstance(seeds, list)
    assert min(seeds) >= DEVELOPMENT


def test_a_quick_run_keeps_its_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(monkeypatch, "--quick")["kept"] != options(monkeypatch, "--development")["kept"]


@pytest.mark.parametrize("module", [failures, cascade, risk], ids=lambda module: module.__name__)
def test_benchmarks_without_shifts_ask_for_none(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    told, usual = options(monkeypatch, module=module), options(monkeypatch)
    assert told["shifts"] == []
    shared = ("images", "searched", "rehearsed", "kept", "faults", "data_root")  # so that evidence is asked for once
    assert {name: told[name] for name in shared} == {name: usual[name] for name in shared}


@pytest.mark.parametrize("words", [["--seeds", "100"], ["--seeds", "-1"], ["--quick", "--development"]])
def test_what_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit):
        options(monkeypatch, *words)
    assert "--development" in capsys.readouterr().err


def test_settings_hold_no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["decision.py", "--json", "here.json"])
    told = settings(decision.arguments(), "digest")
    assert told["seeds"] == [0, 1, 2]
    assert not {"json", "plot", "data_root", "kept"} & set(told)
