import json
from pathlib import Path

import pytest
import torch

from deepfailguard.errors import CorruptFileError
from deepfailguard.store import atomic_path, load_json, load_tensors, save_json, save_tensors


def test_tensors_and_metadata_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor([1, 2]), "half": torch.ones(2, dtype=torch.bfloat16)}
    save_tensors(tmp_path / "x.safetensors", tensors, {"k": [1, "ü"]})
    file = load_tensors(tmp_path / "x.safetensors")
    assert file.metadata == {"k": [1, "ü"]}
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("position", [-1, -9, -20])
def test_one_flipped_bit_is_noticed(tmp_path: Path, position: int) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.randn(30)})
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"x\.safetensors.*(checksum|damaged)"):
        load_tensors(path)


@pytest.mark.parametrize("keep", [0, 5, 40])
def test_a_torn_file_is_noticed(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.randn(30)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match="damaged"):
        load_tensors(path)


def test_an_edited_json_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    save_json(path, {"accuracy": 0.5})
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(CorruptFileError, match="changed after it was written"):
        load_json(path)


def test_foreign_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([1, 2]))
    with pytest.raises(CorruptFileError, match=r"not a file that deepfailguard wrote"):
        load_json(tmp_path / "x.json")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("stop")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
