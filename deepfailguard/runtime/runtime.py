"""`GuardRuntime`: a guard that keeps answering while its versions fail."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from deepfailguard.data.base import ImageSet
from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.swap_gate import SwapGate
from deepfailguard.guard.enrolling import enrol
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.saved import GuardCard, SavedGuard, load_guard
from deepfailguard.guard.verdict import Verdict
from deepfailguard.runtime.assembling import Assembly, sources_of
from deepfailguard.runtime.base import Source
from deepfailguard.runtime.core import Core
from deepfailguard.runtime.events import EventLog
from deepfailguard.runtime.gathering import Clock
from deepfailguard.runtime.housing import Housing, Isolation
from deepfailguard.runtime.membership import (
    add_shadow,
    calibrate_shadow,
    exchange,
    remove_shadow,
    set_aside,
    set_free,
    set_roles,
    shadow_of,
)
from deepfailguard.runtime.settings import Settings
from deepfailguard.runtime.starting import start_members
from deepfailguard.runtime.state_folder import StateFolder
from deepfailguard.runtime.status import Status
from deepfailguard.runtime.telling import status_of
from deepfailguard.runtime.upkeep import Upkeep
from deepfailguard.types import NO_ANSWER
from deepfailguard.versions.pool import TRUSTED_PACKAGES
from deepfailguard.versions.version import Version

__all__ = ["GuardRuntime"]


class GuardRuntime:
    """Answers like the guard, within a deadline, whatever its versions do.

    A version that raises, hangs, dies, returns something else than logits, repeats itself, or whose weights changed
    is left out of the answer and of the next ones until it passes canary inputs again; where need be it is started
    anew from verified weights. The decision is derived anew for the versions that are left. Threads may call it
    together; batches are answered one after the other.

    Args:
        guard: fitted; it stays as it is, and may be used elsewhere: versions run as copies of their own.
        sources: where each version's sound weights are; copies of the guard's versions if None.
        isolation: "in process", "processes", or what makes runners.
        settings: what is allowed and demanded.
        state: folder of this runtime alone for the log of events and for what must survive a restart; None for none.
        clock: seconds from any start, never going back.
        upkeep: whether a thread probes, repairs and compares; if not, call `upkeep` often.

    Raises:
        ConfigurationError: no version could be started, or the settings do not fit the guard.

    Example:
        with GuardRuntime(guard, isolation="processes", state=Path("outputs/service")) as runtime:
            verdict = runtime(images, deadline=0.2)
            verdict.degraded, verdict.ground, runtime.status().ready
    """

    def __init__(
        self,
        guard: GuardedPredictor | SavedGuard,
        *,
        sources: Sequence[Source] | None = None,
        isolation: Isolation | Housing = "in process",
        settings: Settings | None = None,
        state: Path | None = None,
        clock: Clock = time.monotonic,
        upkeep: bool = True,
    ) -> None:
        self.settings = settings or Settings()
        self.isolation = isolation if isinstance(isolation, str) else "other machines"
        self.started = time.time()
        self._folder = StateFolder(state)
        self._assembly = Assembly(guard, isolation, self.settings)
        roster = self._assembly.roster(sources, self._folder.derived)
        self._core = Core(roster, self.settings, EventLog(self._folder.events), clock)
        self._upkeep = Upkeep(self._core, lambda: self._folder.save(self._core))
        self._closed = False
        self._start()
        if upkeep:
            self._upkeep.start()

    def _start(self) -> None:
        core = self._core
        core.events.write("starting", detail=f"{core.roster.saved.summary}; versions run {self.isolation}")
        try:
            start_members(core, core.roster.members)
            if not any(member.usable for member in core.roster.calibrated):
                why = "; ".join(f"{member.name}: {member.reason}" for member in core.roster.members)
                raise ConfigurationError(f"no version of the guard can answer: {why}")
            self._folder.restore(core)
            core.roster.derived.fit(core.roster.base)
        except BaseException:
            self.close()
            raise
        core.roster.derived.fit_ahead(core.roster.base)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        models: Sequence[nn.Module] | Mapping[str, nn.Module] | None = None,
        *,
        device: torch.device | str = "cpu",
        trusted: Sequence[str] = TRUSTED_PACKAGES,
        public_key: Path | str | None = None,
        isolation: Isolation | Housing = "in process",
        settings: Settings | None = None,
        state: Path | None = None,
    ) -> Self:
        """The runtime of a saved guard; its folder must stay: versions are loaded again from it.

        Args:
            folder: of the guard, verified like `GuardedPredictor.load` does.
            models: modules of the versions' architectures, for versions that deepfailguard did not train.
            device: where the versions shall run.
            trusted: packages whose classes the folder may name.
            public_key: file of the key by which the guard must be signed; it need not be if None.
            isolation: see the class.
            settings: see the class.
            state: see the class.
        """
        saved = load_guard(Path(folder), trusted, None if public_key is None else Path(public_key))
        sources = sources_of(Path(folder), saved.card, trusted, models, device)
        return cls(saved, sources=sources, isolation=isolation, settings=settings, state=state)

    def __call__(self, images: Tensor, deadline: float | None = None) -> Verdict:
        """Answer a batch.

        Args:
            images: (B, C, H, W) floating point on any device, of the calibration images' size, B >= 0.
            deadline: in seconds from now; the settings' if None. Versions that answer later are left out.

        Raises:
            DataFormatError: the batch has another shape or dtype.
            ConfigurationError: the runtime was closed.
        """
        if self._closed:
            raise ConfigurationError("this runtime was closed; make another one")
        if deadline is not None and not deadline > 0:
            raise ConfigurationError(f"a deadline must be a positive number of seconds, got {deadline}")
        with torch.no_grad():
            return self._core.answer(images, deadline)

    def predict(self, images: Tensor, deadline: float | None = None) -> Tensor:
        """Labels (B,) int64; -1 where the guard abstains."""
        verdict = self(images, deadline)
        return torch.where(verdict.abstained, NO_ANSWER, verdict.labels)

    @property
    def card(self) -> GuardCard:
        """What the guard is."""
        return self._core.roster.card

    def status(self) -> Status:
        """How the runtime and its versions stand."""
        return status_of(self._core, self.isolation, self.started)

    def upkeep(self) -> None:
        """Do what is due beside answering: for programs that want no thread for it."""
        self._upkeep.step()

    def set_aside(self, name: str, reason: str) -> None:
        """Ask a version no more until it is released.

        Raises:
            ConfigurationError: there is no such version.
        """
        set_aside(self._core, name, reason)
        self._folder.save(self._core)

    def release(self, name: str) -> None:
        """Let a version answer again that was set aside or apart; it is tried on canary inputs first.

        Raises:
            ConfigurationError: there is no such version, or it is not set aside.
        """
        set_free(self._core, name)
        self._folder.save(self._core)

    def swap(self, leaving: str, entering: str, force: bool = False) -> SwapGate:
        """Let a calibrated shadow take the place of a version that serves; no request waits for it.

        Args:
            leaving: becomes a shadow.
            entering: a shadow.
            force: whether to do it although the gate refuses.

        Raises:
            ConfigurationError: the gate refuses it, or the two cannot change places.
        """
        gate = exchange(self._core, leaving, entering, force)
        self._folder.save(self._core)
        return gate

    def admit(self, name: str) -> None:
        """Let a calibrated shadow serve beside the others.

        Raises:
            ConfigurationError: it is none.
        """
        set_roles(self._core, {shadow_of(self._core.roster, name): False})
        self._folder.save(self._core)

    def retire(self, name: str) -> None:
        """Let a version serve no more; it stays as a shadow.

        Raises:
            ConfigurationError: there is no such version, or none would be left.
        """
        set_roles(self._core, {self._core.roster.member(name): True})
        self._folder.save(self._core)

    def add(self, version: Version | nn.Module, name: str | None = None) -> None:
        """Start a further version as a shadow; nothing is known of it until it is calibrated. It goes with a restart.

        Args:
            version: trained for the same classes and inputs.
            name: for people; the version's own, or its class's, if None.

        Raises:
            ConfigurationError: the name is taken.
            WrongOutputError: it does not answer for the guard's classes.
        """
        core, card = self._core, self.card
        given = [version] if name is None else {name: version}
        newcomer = enrol(given, core.roster.canary[:1], len(card.classes), card.bounds)[0]  # type: ignore[arg-type]
        add_shadow(core, self._assembly.newcomer(newcomer))

    def calibrate(self, name: str, calibration: ImageSet | tuple[Tensor, Tensor]) -> None:
        """Learn when a shadow that was added is wrong, on the images that the guard was fitted on.

        It stays a shadow: `admit` it, or `swap` it for another.

        Args:
            name: of the shadow.
            calibration: the guard's calibration images (B, C, H, W) with their labels (B,), in the same order.

        Raises:
            ConfigurationError: other images, or it is calibrated already.
        """
        data = calibration if isinstance(calibration, ImageSet) else ImageSet(*calibration)
        calibrate_shadow(self._core, name, data, self._folder.derived)

    def remove(self, name: str) -> None:
        """End a shadow that was added and not calibrated.

        Raises:
            ConfigurationError: it belongs to the guard; `retire` it.
        """
        remove_shadow(self._core, name)

    def close(self) -> None:
        """Answer no more, save the state and end all versions."""
        if self._closed:
            return
        self._closed = True
        in_turn = self._core.turn.acquire(timeout=self.settings.deadline)  # what was accepted is answered
        self._upkeep.close()
        self._core.roster.derived.close()
        self._folder.save(self._core)
        for member in self._core.roster.members:
            member.runner.close()
        self._assembly.close()
        self._core.events.write("closed")
        self._core.events.close()
        if in_turn:
            self._core.turn.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()
