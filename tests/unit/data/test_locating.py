"""Forms on disk, and what is said when none is complete."""

from pathlib import Path

import pytest

from deepfailguard.data.locating import Form, locate
from deepfailguard.errors import DataNotFoundError

PAIR = Form("a pair", ("sub/x", "sub/y"), (".npy", ".pth"))
PACKED = Form("packed", ("z",), ("", ".gz"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_first_complete_form_is_taken_with_the_first_ending_that_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "z.gz")
    assert locate("d", tmp_path, [PAIR, PACKED], "").files == (tmp_path / "z.gz",)
    touch(tmp_path, "z", "sub/x.npy")
    assert locate("d", tmp_path, [PAIR, PACKED], "").files == (tmp_path / "z",)
    touch(tmp_path, "sub/x.pth", "sub/y.pth")
    found = locate("d", tmp_path, [PAIR, PACKED], "")
    assert found.form is PAIR
    assert found.files == (tmp_path / "sub/x.npy", tmp_path / "sub/y.pth")


def test_the_whole_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "here/sub/y.npy")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path.resolve() / "here"
    with pytest.raises(DataNotFoundError, match="not on disk") as caught:
        locate("mine", "here", [PAIR, PACKED], "ask me.")
    assert str(caught.value).splitlines() == [
        f"data set mine is not on disk. Looked in {folder} for one of these (there is only sub/y.npy):",
        "  - a pair: sub/x, sub/y, each ending in .npy or .pth",
        "  - packed: z (plain or .gz)",
        "To get it: ask me.",
        "If it lies elsewhere, set the data set's root (dataset.root=FOLDER).",
    ]


def test_the_error_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        locate("mine", tmp_path / "no", [PACKED], "")
    with pytest.raises(FileNotFoundError, match="none of them is there"):
        locate("mine", tmp_path, [PACKED], "")
