"""Files that are whole or absent, and that notice when they were damaged. No pickle.

Every save writes a temporary file beside the target and moves it into place, so a killed process
leaves the old file or none. Every load recomputes the checksum.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepfailguard.errors import CorruptFileError
from deepfailguard.identity import digest, digest_tensors

__all__ = ["TensorFile", "atomic_path", "load_json", "load_tensors", "save_json", "save_tensors", "save_text"]

_CHECKSUM = "sha256"


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What `load_tensors` found: the tensors and the JSON that was saved with them."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path to write to; what stands there becomes `target` if the block ends well.

    Example:
        with atomic_path(Path("result.csv")) as temporary:
            temporary.write_text("a,b")
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that only their owner may read
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def save_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_json(path: Path, content: Any) -> None:
    """Write JSON with its checksum."""
    save_text(path, json.dumps({_CHECKSUM: digest(content), "content": content}, indent=1, allow_nan=False) + "\n")


def load_json(path: Path) -> Any:
    """Read what `save_json` wrote.

    Raises:
        CorruptFileError: the file was damaged or is of another kind.
        FileNotFoundError: there is no such file.
    """
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"))
        content, expected = envelope["content"], envelope[_CHECKSUM]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a file that deepfailguard wrote, or was damaged: {error}") from error
    if digest(content) != expected:
        raise CorruptFileError(
            f"{path} was changed after it was written (checksum differs); delete it and make it again"
        )
    return content


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named tensors and JSON metadata as one safetensors file with a checksum over both."""
    content = dict(metadata or {})
    cpu = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"metadata": json.dumps(content, sort_keys=True), _CHECKSUM: _tensor_checksum(cpu, content)}
    with atomic_path(path) as temporary:
        save_file(cpu, str(temporary), metadata=header)


def load_tensors(path: Path) -> TensorFile:
    """Read what `save_tensors` wrote, to the CPU.

    Raises:
        CorruptFileError: a bit of the file differs from what was written.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = json.loads(header["metadata"])
        expected = header[_CHECKSUM]
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        raise CorruptFileError(f"{path} is not a file that deepfailguard wrote, or was damaged: {error}") from error
    if _tensor_checksum(tensors, metadata) != expected:
        raise CorruptFileError(
            f"{path} was changed after it was written (checksum differs); delete it and make it again"
        )
    return TensorFile(tensors, metadata)


def _tensor_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    return digest([digest_tensors(tensors), metadata])
