"""What benchmarks keep: made once, anew where it is damaged or comes from something else."""

from pathlib import Path

import pytest
import torch

from benchmarks import reporting
from benchmarks.bounds import thresholds
from benchmarks.cascade import CODE
from benchmarks.decisions.keeping import JOINT, kept_or_made
from benchmarks.reporting import digest_of_code
from deepfailguard.store import TensorFile


class Maker:
    """Counts how often something is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> TensorFile:
        self.made += 1
        return TensorFile({"value": torch.tensor([float(self.made)])}, {"note": "made"})


def test_what_was_made_is_kept(tmp_path: Path) -> None:
    make = Maker()
    first = kept_or_made(tmp_path, {"versions": ["a"]}, make)
    again = kept_or_made(tmp_path, {"versions": ["a"]}, make)
    assert make.made == 1
    assert torch.equal(first.tensors["value"], again.tensors["value"])
    assert again.metadata == {"note": "made"}


def test_another_origin_is_made_anew(tmp_path: Path) -> None:
    make = Maker()
    for origin in ({"versions": ["a"]}, {"versions": ["b"]}, {"versions": ["a"], "code": "new"}):
        kept_or_made(tmp_path, origin, make)
    assert make.made == 3


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    make = Maker()
    kept_or_made(tmp_path, {}, make)
    next(tmp_path.iterdir()).write_bytes(b"torn")
    assert kept_or_made(tmp_path, {}, make).tensors["value"].item() == 2
    assert kept_or_made(tmp_path, {}, make).tensors["value"].item() == 2


@pytest.mark.parametrize("pattern", [*JOINT, *CODE])
def test_the_code_that_is_known_exists(pattern: str) -> None:
    assert list(reporting._ROOT.glob(pattern))
    assert digest_of_code(pattern) != digest_of_code()


def test_mapie_takes_part_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds.importlib.util, "find_spec", lambda name: None)
    assert set(thresholds.thresholds()) == {thresholds.OURS, thresholds.NAIVE}
