"""Folders of guards: what is in one, what must not be overwritten, and where there are any."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from deepfailguard.errors import ConfigurationError, CorruptFileError
from deepfailguard.identity import TARGET
from deepfailguard.store import load_json

__all__ = [
    "CALIBRATION_FILE",
    "CARD_FILE",
    "PREDICTOR_FILE",
    "VERSIONS_FOLDER",
    "check_replaceable",
    "find_guards",
    "in_words",
    "standing_guard",
]

CARD_FILE, PREDICTOR_FILE, VERSIONS_FOLDER = "guard.json", "predictor.safetensors", "versions"
CALIBRATION_FILE = "calibration.safetensors"

_OURS: Final = frozenset({CARD_FILE, PREDICTOR_FILE, CALIBRATION_FILE, VERSIONS_FOLDER})
_DEEPEST: Final = 5
_MOST_FOLDERS: Final = 1000  # looked into: an error must not wait for a large disk
_MOST_GUARDS: Final = 8
_SHOWN: Final = 3


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
