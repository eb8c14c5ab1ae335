"""A small guard as a server sees it: what `GuardRuntime` promises, over a real guard, with switches for tests."""

import contextlib
import copy
import dataclasses
import functools
import math
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.intervals import Interval
from deepfailguard.evaluation.swap_gate import SwapGate
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.saved import GuardCard
from deepfailguard.guard.verdict import Verdict, VersionHealth, VersionState
from deepfailguard.runtime.status import Status, VersionStatus
from deepfailguard.serving.base import Runtime
from deepfailguard.serving.server import GuardServer
from deepfailguard.serving.settings import Listening, ServerSettings
from deepfailguard.types import NO_ANSWER
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.version import Version
from tests.examples import bars, template_model

CLASS_NAMES = ("top", "middle", "bottom")
VERSIONS = ("steady", "noisy", "odd")


@functools.cache
def _fitted() -> GuardedPredictor:
    models = {
        name: template_model(seed, noise)
        for seed, (name, noise) in enumerate(zip(VERSIONS, (0.0, 0.3, 0.6), strict=True))
    }
    return GuardedPredictor.fit(models, bars(200, seed=5), classes=CLASS_NAMES)


def small_guard() -> GuardedPredictor:
    """Three versions over three classes on images 1x8x8, fitted once per process; every call returns a copy."""
    return copy.deepcopy(_fitted())


def images_of(count: int, seed: int = 9) -> Tensor:
    """Images (B, 1, 8, 8) in [0, 1]."""
    return bars(count, seed=seed).images


class GuardDouble:
    """What a server uses of `GuardRuntime`, over a real guard, in this thread and without probing.

    Attributes:
        batches: sizes of the batches that it was given.
        gate: a batch waits for it; set at first. Clear it to hold the worker.
        started: set when a batch begins.
        poison: raises for a batch, if it is not None: how a test breaks the guard itself.
        closed: whether it was closed.
        crowd: how many batches it was given at the same time at most.
    """

    def __init__(self, guard: GuardedPredictor | None = None, least_versions: int = 1) -> None:
        self.guard = guard or small_guard()
        self.least_versions = least_versions
        self.batches: list[int] = []
        self.deadlines: list[float | None] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.poison: Callable[[Tensor], None] | None = None
        self.closed = False
        self.crowd = self._inside = 0
        self.drift = "nothing"
        self._lock = threading.Lock()
        self._born = time.time()
        self._apart: dict[str, tuple[VersionState, str, float]] = {}
        self._events: list[dict[str, Any]] = []
        self._counts = {"inputs": 0, "abstained": 0, "unanswered": 0, "bad_inputs": 0}

    @property
    def card(self) -> GuardCard:
        return self.guard.saved.card

    def __call__(self, images: Tensor, deadline: float | None = None) -> Verdict:
        self._inside += 1
        self.crowd = max(self.crowd, self._inside)
        try:
            return self._in_turn(images, deadline)
        finally:
            self._inside -= 1

    def _in_turn(self, images: Tensor, deadline: float | None) -> Verdict:
        with self._lock:
            self.batches.append(len(images))
            self.deadlines.append(deadline)
            self.started.set()
            assert self.gate.wait(60), "a test forgot to open the gate"
            if self.poison is not None:
                self.poison(images)
            verdict = self._answer(images)
            self._count(verdict)
            return verdict

    def status(self) -> Status:
        versions = tuple(self._version(column) for column in range(len(self.card.names)))
        serving = len(versions) - len(self._apart)
        return Status(
            versions=versions,
            ready=serving >= self.least_versions and not self.closed,
            degraded=any(state != "shadow" for state, *_ in self._apart.values()),
            serving=serving,
            least_versions=self.least_versions,
            batches=len(self.batches),
            drift=self.drift,
            drift_text="No statistic of any version changed.",
            started=self._born,
            isolation="in process",
            predictor="JointPredictor",
            decision="most_probable_class",
            events=tuple(self._events[-50:]),
            **self._counts,
        )

    def set_aside(self, name: str, reason: str) -> None:
        self._set(name, "quarantined", reason)

    def suspend(self, name: str, reason: str = "timeout: no answer within 0.5 s") -> None:
        """As if the version had been caught at a fault."""
        self._set(name, "suspended", reason)

    def release(self, name: str) -> None:
        self._known(name)
        self._apart.pop(name, None)
        self._tell("released", name, "")

    def swap(self, leaving: str, entering: str, force: bool = False) -> SwapGate:
        self._known(leaving)
        self._known(entering)
        if self._apart.get(entering, ("",))[0] != "shadow":
            raise ConfigurationError(f"{entering!r} is no shadow; only a version that runs as one can enter")
        self._apart.pop(entering)
        self._set(leaving, "shadow", f"replaced by {entering}")
        return SwapGate(leaving, entering, (), Interval(0.01, -0.01, 0.03, 0.95), 500, 400, "steady", 0.2)

    def make_shadow(self, name: str) -> None:
        """Let a version run without counting."""
        self._set(name, "shadow", "its answers are compared, and never count")

    def close(self) -> None:
        self.closed = True

    def _set(self, name: str, state: VersionState, reason: str) -> None:
        self._known(name)
        self._apart[name] = (state, reason, time.time())
        self._tell(state, name, reason)

    def _known(self, name: str) -> None:
        if name not in self.card.names:
            raise ConfigurationError(f"there is no version {name!r}; the guard has {', '.join(self.card.names)}")

    def _tell(self, event: str, name: str, detail: str) -> None:
        told = {"time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()), "event": event, "version": name}
        self._events.append({**told, "kind": "timeout" if event == "suspended" else None, "detail": detail})

    def _answer(self, images: Tensor) -> Verdict:
        names, apart = self.card.names, list(self._apart)
        if not apart:
            return self.guard(images)
        columns = [column for column, name in enumerate(names) if name not in apart]
        verdict = self.guard.without(apart)(images)
        health = dict(zip(columns, verdict.health, strict=True))
        for column in set(range(len(names))) - set(columns):
            state, reason, _ = self._apart[names[column]]
            health[column] = VersionHealth(names[column], 0, 0, reason, state=state)
        return dataclasses.replace(
            verdict,
            weights=_spread(verdict.weights, columns, len(names), 0.0),
            version_labels=_spread(verdict.version_labels, columns, len(names), NO_ANSWER),
            version_failure_probability=_spread(verdict.version_failure_probability, columns, len(names), 1.0),
            distance=_spread(verdict.distance, columns, len(names), 0.0),
            found=_spread(verdict.found, columns, len(names), False),
            health=tuple(health[column] for column in range(len(names))),
            ground="versions left",
        )

    def _count(self, verdict: Verdict) -> None:
        self._counts["inputs"] += len(verdict)
        self._counts["bad_inputs"] += len(verdict.problems)
        self._counts["abstained"] += int(verdict.abstained.sum())
        self._counts["unanswered"] += int((verdict.labels == NO_ANSWER).sum())

    def _version(self, column: int) -> VersionStatus:
        name, card, inputs = self.card.names[column], self.card, self._counts["inputs"]
        state, reason, since = self._apart.get(name, ("serving", "", self._born))
        ill = state == "suspended"
        return VersionStatus(
            name=name,
            state=state,
            since=since,
            reason=reason,
            fault="timeout" if ill else None,
            last_fault=since if ill else None,
            faults={"timeout": 1} if ill else {},
            asked=inputs,
            answered=inputs,
            restarts=0,
            seconds_p50=0.002 + 0.001 * column if inputs else math.nan,
            seconds_p99=0.004 + 0.001 * column if inputs else math.nan,
            disagreement=0.02 * (column + 1) if inputs else math.nan,
            failure_probability=0.05 if inputs else math.nan,
            weight=1 / len(card.names) if inputs else math.nan,
            accuracy=card.calibration_accuracy[column],
            memory=None,
            fingerprint=card.fingerprints[column],
            shadow=state == "shadow",
        )


def _spread(values: Tensor, places: Sequence[int], columns: int, otherwise: float) -> Tensor:
    whole = torch.full((len(values), columns), otherwise, dtype=values.dtype)
    whole[:, list(places)] = values
    return whole


@contextlib.contextmanager
def serving(
    runtime: Runtime, settings: ServerSettings | None = None, listening: Listening | None = None
) -> Iterator[GuardServer]:
    """A server in a thread of this process, on ports that are free; it has answered everything when this ends."""
    server = GuardServer(runtime, settings, listening or Listening(port=0, grpc_port=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.started.wait(60), "the server did not start"
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


OWN_PACKAGE = '''
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn


class Rows(nn.Module):
    """Waits, as long as there is a file "hold" where the program runs."""

    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        while Path("hold").exists():
            time.sleep(0.01)
        return self.linear(x.flatten(1))


@dataclass(frozen=True)
class OwnArchitecture:
    def build(self, classes):
        return Rows(classes)
'''
"""A user's package: it is imported from the folder where the server is started."""


def save_own_guard(work: Path) -> GuardedPredictor:
    """Write a guard into ``work/guard`` whose versions' code is in ``work/own_nets.py``, and return it."""
    (work / "own_nets.py").write_text(OWN_PACKAGE)
    here = types.ModuleType("own_nets")  # the name belongs to the fingerprint of what it makes
    sys.modules[here.__name__] = here
    exec(compile(OWN_PACKAGE, "own_nets.py", "exec"), here.__dict__)
    return _saved(work / "guard", here.Rows)


def _saved(folder: Path, rows: type[nn.Module]) -> GuardedPredictor:
    versions = []
    for seed, (name, noise) in enumerate(zip(VERSIONS, (0.0, 0.3, 0.6), strict=True)):
        model, template = rows(len(CLASS_NAMES)), template_model(seed, noise)
        model.load_state_dict({"linear.weight": template.weight, "linear.bias": template.bias})
        version = Version.of(model.eval(), name, len(CLASS_NAMES))
        versions.append(dataclasses.replace(version, card=_card_of(version)))
    guard = GuardedPredictor.fit(versions, bars(200, seed=5), classes=CLASS_NAMES)
    guard.save(folder)
    return guard


def _card_of(version: Version) -> IdentityCard:
    return IdentityCard(
        name=version.name,
        key=version.fingerprint,
        dataset="bars",
        source_fingerprint="source",
        train_fingerprint="train",
        classes=CLASS_NAMES,
        input_shape=(1, 8, 8),
        bounds=version.bounds,
        architecture={"_target_": "own_nets.OwnArchitecture"},
        recipe={},
        seed=0,
        receipts=(),
        outcome="completed",
        metrics={},
        curves={},
        fingerprint=version.fingerprint,
    )
