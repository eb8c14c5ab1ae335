"""Keys, signatures and verification from the command line."""

import argparse
from pathlib import Path

import pytest

from deepfailguard.cli.signing import add_signing
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from tests.examples import bars, template_model


def _run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_signing(parser.add_subparsers(required=True))
    arguments = parser.parse_args([str(word) for word in words])
    status = arguments.run(arguments)
    assert isinstance(status, int)
    return status


@pytest.fixture
def guard(tmp_path: Path) -> Path:
    models = {"ann": template_model(0, 0.5), "bob": template_model(1, 0.5)}
    GuardedPredictor.fit(models, bars(120, seed=3), predictor=SoftVotePredictor()).save(tmp_path / "guard")
    return tmp_path / "guard"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    assert _run("keys", "--private", private, "--public", public) == 0
    return private, public


def test_a_guard_is_signed_and_verified(
    guard: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys
    assert _run("sign", guard, "--key", private) == 0
    assert _run("verify", guard, "--public-key", public) == 0
    assert f"{guard} is whole (6 files) and signed by the key {public}" in capsys.readouterr().out
    assert _run("verify", guard) == 0
    assert "its signature is not looked at: give --public-key" in capsys.readouterr().out


def test_a_guard_that_is_not_signed_is_refused_where_a_key_is_given(
    guard: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("verify", guard, "--public-key", keys[1]) == 1
    assert "error: the guard is not signed: no file" in capsys.readouterr().err


def test_damage_is_told_and_is_not_signed(
    guard: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (guard / "predictor.safetensors").write_bytes(b"no weights")
    for words in (("verify", guard), ("sign", guard, "--key", keys[0])):
        assert _run(*words) == 1
        told = capsys.readouterr()
        assert "predictor.safetensors was changed" in told.err
        assert not told.out
    assert not (guard / "manifest.sig").exists()


def test_a_guard_without_manifest_is_not_called_whole(guard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (guard / "manifest.json").unlink()
    assert _run("verify", guard) == 1
    assert "has no manifest to compare it with; load and save the guard" in capsys.readouterr().err


def test_keys_that_exist_stay(keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = [key.read_bytes() for key in keys]
    assert _run("keys", "--private", keys[0], "--public", keys[1]) == 1
    assert "keys are never overwritten" in capsys.readouterr().err
    assert [key.read_bytes() for key in keys] == before


def test_a_folder_without_a_guard_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("verify", tmp_path / "nowhere") == 1
    assert "holds no guard" in capsys.readouterr().err
