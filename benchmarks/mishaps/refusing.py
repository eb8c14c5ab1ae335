"""Trials without load: a guard whose files were damaged must not be loaded, or not with the damaged part."""

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.mishaps.scenarios import REFUSED, Promise
from benchmarks.mishaps.service import Plan
from benchmarks.mishaps.spoiling import Spoil, marker_of, spoil
from benchmarks.mishaps.subjects import with_switches
from benchmarks.mishaps.trials import Limit, Outcome
from deepfailguard.errors import DeepfailguardError
from deepfailguard.guard.folders import MANIFEST_FILE, weights_file
from deepfailguard.guard.manifest import verify_guard, write_manifest
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.store import load_json, save_json

__all__ = ["LOADINGS", "Loading", "run_loading"]


@dataclass(frozen=True, slots=True)
class Loading:
    """A class of damage to the files of a guard.

    Attributes:
        name: of the class, unique.
        way: of damage; None where an entry of the manifest is changed.
        other: whether another file than a version's is damaged.
        fitting: whether the manifest is made anew to fit.
    """

    name: str
    way: Spoil | None
    other: bool = False
    fitting: bool = False

    group: Literal["on disk"] = "on disk"
    isolation: Literal["in process"] = "in process"
    promise: Promise = REFUSED
    share: float = 1.0


LOADINGS: Final = (
    *(Loading(f"load: {way}", way) for way in ("flipped bit", "truncated", "missing", "pickle", "other numbers")),
    Loading("load: flipped bit in another file", "flipped bit", other=True),
    Loading("load: manifest changed", None),
    Loading("load: other numbers, fitting manifest", "other numbers", fitting=True),
)


def run_loading(plan: Plan, loading: Loading, number: int, draw: random.Random) -> Outcome:
    """Damage a copy of the guard, and try to load it.

    Args:
        plan: of the campaign.
        loading: what is damaged.
        number: of the trial; versions take turns by it.
        draw: makes all choices.
    """
    column = number % len(plan.subject.names)
    folder = plan.folder / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(plan.subject.folder, folder)
    path = _damage(folder, plan, loading, column, draw)
    start = time.monotonic()
    fault = _refused(folder, plan, column)
    seconds = time.monotonic() - start
    sound = bool(fault) and not marker_of(path).exists()
    latency = seconds if sound else float("nan")
    kept = sound and Limit.of(loading.promise, 0.0).is_kept(latency, 0)
    return Outcome(number, (column,), (loading.name,), (fault,), kept, latency, 0.0, None)


def _damage(folder: Path, plan: Plan, loading: Loading, column: int, draw: random.Random) -> Path:
    """Damage the folder; the file that it was."""
    files = verify_guard(folder)
    path = folder / weights_file(column, plan.subject.names[column])
    if loading.way is None:
        path = folder / MANIFEST_FILE
        content = load_json(path)
        entry = content["files"][draw.choice(sorted(content["files"]))]
        entry["sha256"] = f"{int(entry['sha256'], 16) ^ (1 << draw.randrange(256)):064x}"
        save_json(path, content)
        return path
    if loading.other:
        path = folder / draw.choice([MANIFEST_FILE, *(file for file in files if Path(file).parent == Path())])
    spoil(path, loading.way, draw)
    if loading.fitting:
        write_manifest(folder, files)
    return path


def _refused(folder: Path, plan: Plan, column: int) -> str:
    """What loading raises, or why the version is left out; empty if the guard answers with it."""
    subject = plan.subject
    models = with_switches(subject.plans, plan.folder, subject.names)
    try:
        runtime = GuardRuntime.load(folder, models, settings=plan.settings, state=plan.folder / "state")
    except (DeepfailguardError, OSError) as error:
        return type(error).__name__
    with runtime:
        version = runtime.status().versions[column]
        return f"left out: {version.fault}" if version.state == "suspended" else ""
