"""Where guards are, and what saving one must not touch."""

import logging
import os
from pathlib import Path

import pytest

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.folders import check_replaceable, find_guards
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from tests.examples import bars, template_model


def _guard(seed: int = 0) -> GuardedPredictor:
    models = {"ann": template_model(seed, 0.5), "bob": template_model(seed + 1, 0.5)}
    return GuardedPredictor.fit(models, bars(120, seed=3), predictor=SoftVotePredictor())


@pytest.fixture(scope="module")
def guard() -> GuardedPredictor:
    return _guard()


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("foreign", ["thesis.tex", "versions/mine.safetensors", "versions/0-ann.txt"])
@pytest.mark.parametrize("guarded", [False, True], ids=["no guard", "a guard"])
def test_a_folder_with_foreign_files_is_refused_and_left_as_it_was(
    guard: GuardedPredictor, foreign: str, guarded: bool, tmp_path: Path
) -> None:
    if guarded:
        guard.save(tmp_path)
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("years of work")
    before = _content(tmp_path)
    with pytest.raises(ConfigurationError, match=f"other things than a guard: {foreign}; save .* a folder of its own"):
        _guard(seed=7).save(tmp_path)
    assert _content(tmp_path) == before


def test_a_file_is_no_folder_of_a_guard(guard: GuardedPredictor, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("years of work")
    with pytest.raises(ConfigurationError, match="mine is a file; save the guard in a folder of its own"):
        guard.save(tmp_path / "mine")


def test_folders_that_one_may_not_enter_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("private", "public"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "guard.json").write_text("{}")
    stat, listed = os.stat, Path.iterdir

    def refusing(path: object, *others: object, **settings: object) -> os.stat_result:
        if "private/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *others, **settings)  # type: ignore[arg-type]

    def closed(folder: Path) -> object:
        if folder.name == "private":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "stat", refusing)  # the tests may run as somebody who may enter everywhere
    monkeypatch.setattr(Path, "iterdir", closed)
    assert find_guards(tmp_path) == [tmp_path / "public"]


def test_many_foreign_files_are_counted(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"0\.png, 1\.png, 2\.png and 2 more;"):
        check_replaceable(tmp_path)


def test_a_guard_and_what_a_killed_save_left_of_one_are_replaced(guard: GuardedPredictor, tmp_path: Path) -> None:
    other = _guard(seed=7)
    other.save(tmp_path)
    (tmp_path / "guard.json").unlink()  # the first thing that replacing removes
    (tmp_path / ".new.x1").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "versions" / ".DS_Store").write_bytes(b"")
    for _ in range(2):
        guard.save(tmp_path)
        models = [template_model(5), template_model(6)]
        assert GuardedPredictor.load(tmp_path, models).saved.card == guard.saved.card


def test_what_is_replaced_is_logged_once(
    guard: GuardedPredictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    guard.save(tmp_path)
    guard.save(tmp_path)  # the same
    assert not caplog.messages
    guard.without(["bob"]).save(tmp_path)
    told = "2 versions (ann, bob), SoftVotePredictor, most_probable_class"
    assert caplog.messages == [f"replacing the guard in {tmp_path}: {told}"]
    (tmp_path / "guard.json").write_text("{}")  # damaged: there is nothing to tell
    guard.save(tmp_path)
    assert len(caplog.messages) == 1


def test_guards_are_found_near_and_not_too_far(tmp_path: Path) -> None:
    near, far, hidden, deep = "b", "a/b/c/d", ".cache/a", "1/2/3/4/5/6"
    for folder in (near, far, hidden, deep, f"{near}/inside"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "guard.json").write_text("{}")
    assert find_guards(tmp_path) == [tmp_path / near, tmp_path / far]
    assert find_guards(tmp_path / near) == [tmp_path / near]
    assert find_guards(tmp_path / "nowhere") == []


def test_the_search_for_guards_is_bounded(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}").mkdir()
        (tmp_path / f"{number:02}" / "guard.json").write_text("{}")
    assert find_guards(tmp_path) == [tmp_path / f"{number:02}" for number in range(8)]


def test_a_missing_guard_is_told_with_those_beside_it(guard: GuardedPredictor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no guard \(no guard.json\); make one with"):
        GuardedPredictor.load(tmp_path / "mine")
    guard.save(tmp_path / "yours")
    with pytest.raises(FileNotFoundError, match=f"there are guards in {tmp_path / 'yours'}; or make one with"):
        GuardedPredictor.load(tmp_path / "mine")
