"""Folders of guards: what is in one, what must not be overwritten, and where there are any."""

import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from deepfailguard.errors import ConfigurationError, CorruptFileError
from deepfailguard.identity import TARGET, digest_tensors
from deepfailguard.store import load_json, load_tensors

__all__ = [
    "CALIBRATION_FILE",
    "CANARY_FILE",
    "CARD_FILE",
    "MANIFEST_FILE",
    "PREDICTOR_FILE",
    "SIGNATURE_FILE",
    "VERSIONS_FOLDER",
    "check_guard",
    "check_replaceable",
    "find_guards",
    "in_words",
    "put_in_place",
    "standing_guard",
    "verified_part",
    "weights_file",
]

CARD_FILE, PREDICTOR_FILE, VERSIONS_FOLDER = "guard.json", "predictor.safetensors", "versions"
CALIBRATION_FILE, CANARY_FILE = "calibration.safetensors", "canary.safetensors"
MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"

_NOT_IN_EVERY_GUARD: Final = (CANARY_FILE, MANIFEST_FILE, SIGNATURE_FILE)
_OURS: Final = frozenset({CARD_FILE, PREDICTOR_FILE, CALIBRATION_FILE, VERSIONS_FOLDER, *_NOT_IN_EVERY_GUARD})
_DEEPEST: Final = 5
_MOST_FOLDERS: Final = 1000  # looked into: an error must not wait for a large disk
_MOST_GUARDS: Final = 8
_SHOWN: Final = 3

logger = logging.getLogger(__name__)


def check_guard(folder: Path) -> None:
    """Refuse a folder without a guard.

    Raises:
        FileNotFoundError: it is one, or there is no such folder; the message names guards that are near.
    """
    if not (folder / CARD_FILE).is_file():
        beside = ", ".join(map(str, find_guards(folder.parent)))
        there = f"there are guards in {beside}; or " if beside else ""
        raise FileNotFoundError(
            f"{folder} holds no guard (no {CARD_FILE}); {there}make one with scripts/train_guard.py or save()"
        )


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds other things than a guard, or than what a killed save left of one.

    Hidden files do not count.

    Raises:
        ConfigurationError: it does, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; save the guard in a folder of its own")
    foreign = sorted(_foreign(folder)) if folder.is_dir() else []
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise ConfigurationError(
            f"{folder} holds other things than a guard: {', '.join(foreign[:_SHOWN])}{more}; "
            "save the guard in a folder of its own"
        )


def put_in_place(new: Path, folder: Path, files: Sequence[str]) -> None:
    """Move files in place of all that was there; the card comes last, so a folder without one is not a guard."""
    (folder / CARD_FILE).unlink(missing_ok=True)
    if (folder / SIGNATURE_FILE).is_file():
        logger.warning("the guard in %s was signed; the one that replaces it is not: sign it again", folder)
    for name in _NOT_IN_EVERY_GUARD:
        (folder / name).unlink(missing_ok=True)
    for old in (folder / VERSIONS_FOLDER).glob("*.safetensors"):
        old.unlink()
    (folder / VERSIONS_FOLDER).mkdir(exist_ok=True)
    for name in sorted(files, key=lambda name: name == CARD_FILE):
        (new / name).replace(folder / name)


def weights_file(position: int, name: str) -> Path:
    """A version's file in a guard's folder; the number keeps apart names that differ only in what it cannot hold."""
    safe = re.sub(r"[^\w.+@-]", "_", name)
    return Path(VERSIONS_FOLDER, f"{position}-{safe}.safetensors")


def find_guards(root: Path) -> list[Path]:
    """The first few folders of guards below a folder, the nearest first; a bounded search."""
    found: list[Path] = []
    waiting, seen = deque([(root, 0)]), 0
    while waiting and seen < _MOST_FOLDERS and len(found) < _MOST_GUARDS:
        folder, depth = waiting.popleft()
        seen += 1
        if os.path.isfile(folder / CARD_FILE):  # noqa: PTH113 (pathlib's raises where one may not look)
            found.append(folder)
        elif depth < _DEEPEST:
            waiting.extend((each, depth + 1) for each in _subfolders(folder))
    return found


def standing_guard(folder: Path) -> Any:
    """The content of the card in a folder, unverified otherwise; None if there is none or it is damaged."""
    try:
        return load_json(folder / CARD_FILE)
    except (FileNotFoundError, CorruptFileError):
        return None


def verified_part(path: Path, digest: str) -> dict[str, Tensor]:
    """The tensors in a file of a guard, which must be those that its card knows by their digest.

    Raises:
        CorruptFileError: they are not, or the file is lost or damaged.
    """
    if not path.is_file():
        raise CorruptFileError(f"the guard has lost a part: no file {path}; save the guard again")
    tensors = load_tensors(path).tensors
    if digest_tensors(tensors) != digest:
        raise CorruptFileError(f"{path} belongs to another guard than {CARD_FILE}; save the guard again")
    return tensors


def in_words(content: Any) -> str:
    """A card's content in a line."""
    names = ", ".join(version["name"] for version in content["versions"])
    parts = (content[part][TARGET].rpartition(".")[2] for part in ("predictor", "decision"))
    return f"{len(content['versions'])} versions ({names}), {', '.join(parts)}"


def _foreign(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.name not in _OURS and not path.name.startswith("."):
            yield path.name
    versions = folder / VERSIONS_FOLDER
    for path in versions.iterdir() if versions.is_dir() else ():
        ours = path.suffix == ".safetensors" and path.name.partition("-")[0].isdigit()
        if not ours and not path.name.startswith("."):
            yield f"{VERSIONS_FOLDER}/{path.name}"


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:  # somebody else's, or gone
        return []
