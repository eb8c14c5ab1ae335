"""What a benchmark worked out, kept until what it was made of changes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.decisions.evidence import PoolEvidence
from deepfailguard.errors import CorruptFileError
from deepfailguard.identity import digest
from deepfailguard.store import TensorFile, load_tensors, save_tensors

__all__ = ["JOINT", "ensemble_of", "kept_or_made"]

JOINT: Final = (  # what makes class probabilities of evidence
    "deepfailguard/predictor/joint/*.py",
    *(f"deepfailguard/predictor/{name}.py" for name in ("checks", "class_posterior", "states")),
    *(f"benchmarks/decisions/{name}.py" for name in ("evidence", "judging")),
)


def ensemble_of(pool: PoolEvidence, members: tuple[int, ...]) -> dict[str, Any]:
    """What answers of an ensemble are made of: weights and images."""
    parts = {name: part.images.fingerprint for name, part in pool.parts.items()}
    return {"versions": [pool.fingerprints[number] for number in members], "parts": parts}


def kept_or_made(folder: Path, made_of: Mapping[str, Any], make: Callable[[], TensorFile]) -> TensorFile:
    """What an earlier run kept of the same origin; else made now and kept.

    Args:
        folder: of what is kept.
        made_of: everything that the result depends on, as JSON.
        make: works it out.
    """
    path = folder / f"{digest(dict(made_of))[:24]}.safetensors"
    try:
        return load_tensors(path)
    except (FileNotFoundError, CorruptFileError):
        made = make()
        save_tensors(path, made.tensors, made.metadata)
        return made
