"""What a runtime must still know after a restart: who was set aside or apart, who serves, what the watch has seen."""

import logging
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from deepfailguard.errors import ConfigurationError, CorruptFileError
from deepfailguard.identity import digest
from deepfailguard.runtime.core import Core
from deepfailguard.runtime.roster import Roster
from deepfailguard.store import load_json, load_tensors, save_json, save_tensors

__all__ = ["StateFolder"]

_ROLES, _WATCH, _DERIVED, _EVENTS = "state.json", "watch.safetensors", "derived", "events.jsonl"

logger = logging.getLogger(__name__)


class StateFolder:
    """The files of a runtime's state; a save that fails is logged, and the guard answers on.

    Args:
        folder: of one runtime alone; None to keep nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._saved: Any = None
        self._saving = threading.Lock()  # taken before a core's lock, and after its turn
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def derived(self) -> Path | None:
        """Where fitted decisions are kept."""
        return None if self.folder is None else self.folder / _DERIVED

    @property
    def events(self) -> Path | None:
        """The file of events."""
        return None if self.folder is None else self.folder / _EVENTS

    def save(self, core: Core) -> None:
        """Write what changed since the last time; one thread after the other, so that what is newer is written last."""
        if self.folder is None:
            return
        with self._saving:
            try:
                self._write(self.folder, core)
            except OSError as error:
                logger.warning("the state could not be saved in %s: %s", self.folder, error)

    def _write(self, folder: Path, core: Core) -> None:
        with core.lock:
            roster = core.roster
            roles = _roles(roster)
            seen = {} if roster.quarantine is None else roster.quarantine.state()
        if seen:
            save_tensors(folder / _WATCH, seen, {"guard": roles["guard"]})
        if roles != self._saved:
            save_json(folder / _ROLES, roles)
            self._saved = roles

    def restore(self, core: Core) -> None:
        """Take back what was saved of the same guard; what is damaged, or another guard's, is told and left."""
        if self.folder is None or not (self.folder / _ROLES).is_file():
            return
        try:
            roles = load_json(self.folder / _ROLES)
            if roles["guard"] != _identity(core.roster):
                core.events.write("state ignored", detail=f"{self.folder} holds the state of another guard")
                return
            self._take_roles(core, roles["versions"])
            if core.roster.quarantine is not None and (self.folder / _WATCH).is_file():
                kept = load_tensors(self.folder / _WATCH)
                self._take_watch(core, kept.tensors, kept.metadata)
        except (CorruptFileError, ConfigurationError, KeyError, TypeError) as error:
            core.events.write("state ignored", detail=f"{type(error).__name__}: {error}")

    def _take_roles(self, core: Core, versions: dict[str, dict[str, Any]]) -> None:
        for member in core.roster.calibrated:
            told = versions[member.name]
            member.shadow, member.aside = bool(told["shadow"]), str(told["aside"])
            core.note_change(member)
        core.events.write("state restored", detail=f"from {self.folder}")

    def _take_watch(self, core: Core, seen: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        quarantine = core.roster.quarantine
        if quarantine is None or metadata.get("guard") != _identity(core.roster):
            return
        quarantine.with_state(seen)
        core.tell_watch(core.roster, quarantine.report())


def _roles(roster: Roster) -> dict[str, Any]:
    versions = {member.name: {"shadow": member.shadow, "aside": member.aside} for member in roster.calibrated}
    return {"guard": _identity(roster), "versions": versions}


def _identity(roster: Roster) -> str:
    card = roster.card
    return digest([card.calibration_fingerprint, list(card.names), list(card.fingerprints), list(roster.scores)])
