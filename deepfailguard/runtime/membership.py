"""Changing who belongs to a guard while it answers."""

from dataclasses import replace
from pathlib import Path

from deepfailguard.data.base import ImageSet
from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.swap_gate import SwapGate, gate_swap
from deepfailguard.runtime.core import Core
from deepfailguard.runtime.enlarging import enlarged
from deepfailguard.runtime.member import Member
from deepfailguard.runtime.roster import Roster
from deepfailguard.runtime.starting import start_members

__all__ = [
    "add_shadow",
    "calibrate_shadow",
    "exchange",
    "remove_shadow",
    "set_aside",
    "set_free",
    "set_roles",
    "shadow_of",
]


def exchange(core: Core, leaving: str, entering: str, force: bool) -> SwapGate:
    """Let a calibrated shadow take the place of a version that serves.

    Raises:
        ConfigurationError: the gate refuses it and nobody insists, or the two cannot change places.
    """
    roster = core.roster
    newcomer, gone = shadow_of(roster, entering), roster.member(leaving)
    if gone.shadow or gone not in roster.calibrated:
        raise ConfigurationError(f"{leaving!r} does not serve; name a version that does")
    base, column = roster.base, roster.members.index(newcomer)
    labels, truth = roster.saved.calibration.evidence.labels, roster.saved.calibration.truth
    position = base.index(roster.members.index(gone))
    names = [roster.members[each].name for each in (*base, column)]
    gate = gate_swap(labels[:, base], truth, labels[:, column], position, seed=0, names=names)
    if not gate.allowed and not force:
        raise ConfigurationError(f"the swap is refused: {gate.reason}; insist (force) if you know better")
    set_roles(core, {newcomer: False, gone: True})
    core.events.write("swapped", entering, detail=f"{gate}{'' if gate.allowed else '; forced by the operator'}")
    return gate


def shadow_of(roster: Roster, name: str) -> Member:
    """The calibrated, healthy shadow of this name.

    Raises:
        ConfigurationError: it is none.
    """
    member = roster.member(name)
    if member not in roster.calibrated:
        raise ConfigurationError(f"{name!r} was not calibrated yet: nothing is known of when it is wrong; calibrate it")
    if not member.shadow:
        raise ConfigurationError(f"{name!r} serves already; name a shadow")
    if not member.usable:
        raise ConfigurationError(f"{name!r} is not sound: {member.reason}")
    return member


def set_roles(core: Core, shadows: dict[Member, bool]) -> None:
    """Make members shadows or not, all at once; the decision for the new versions is fitted before.

    Raises:
        ConfigurationError: nobody would serve, or no decision can be had for those who would.
    """
    roster = core.roster
    after = [n for n, member in enumerate(roster.calibrated) if not shadows.get(member, member.shadow)]
    if not after or roster.derived.fit(after) is None:
        names = ", ".join(roster.members[n].name for n in after) or "nobody"
        raise ConfigurationError(f"no decision can be had for {names} alone; choose other versions")
    with core.turn, core.lock:
        for member, shadow in shadows.items():
            member.shadow = shadow
            core.note_change(member)
    roster.derived.fit_ahead(after)


def set_aside(core: Core, name: str, reason: str) -> None:
    """Ask a version no more until it is set free."""
    with core.lock:
        member = core.roster.member(name)
        member.aside = reason or "no reason was given"
        core.note_change(member)


def set_free(core: Core, name: str) -> None:
    """Let a version answer again that was set aside or apart, as soon as it passes the canary inputs.

    Raises:
        ConfigurationError: it is neither.
    """
    with core.lock:
        roster, member = core.roster, core.roster.member(name)
        if member.state != "quarantined":
            raise ConfigurationError(f"{name!r} is {member.state}, not set aside; there is nothing to release")
        if roster.quarantine is not None and member in roster.calibrated:
            roster.quarantine.release([roster.members.index(member)])
        member.aside = member.apart = ""
        member.breaker.open(core.clock(), "canary failed", "it was released, and is tried before it serves")
        member.breaker.next_probe, member.restart = core.clock(), True
        core.events.write("released", name, detail="it is tried before it serves")
        core.note_change(member)


def add_shadow(core: Core, member: Member) -> None:
    """Start a further version that is not calibrated.

    Raises:
        ConfigurationError: its name is taken.
    """
    if any(member.name == other.name for other in core.roster.members):
        member.runner.close()
        raise ConfigurationError(f"there is a version {member.name!r} already; give the new one another name")
    start_members(core, [member])
    with core.turn, core.lock:
        core.roster = replace(core.roster, members=(*core.roster.members, member))
    core.events.write("added", member.name, detail="it runs in shadow, not calibrated yet")


def calibrate_shadow(core: Core, name: str, data: ImageSet, folder: Path | None) -> None:
    """Learn when a shadow is wrong, see `GuardRuntime.calibrate`."""
    before = core.roster
    member = before.member(name)
    if member in before.calibrated:
        raise ConfigurationError(f"{name!r} is calibrated already")
    saved = enlarged(before.saved, member.source.load(), data)
    others = [each for each in before.members[len(before.calibrated) :] if each is not member]
    members = [*before.calibrated, member, *others]
    roster = Roster.of(saved, members, core.settings.watch, folder)
    roster.derived.fit(roster.base)
    with core.turn, core.lock:
        for each in before.calibrated:  # the new watch has seen nothing yet
            each.aside = each.aside or each.apart
            each.apart = ""
        member.accuracy = saved.card.calibration_accuracy[-1]
        core.roster, core.report = roster, None
    before.derived.close()
    roster.derived.fit_ahead(roster.base)
    core.events.write("calibrated", name, detail=f"right on {member.accuracy:.1%} of the calibration inputs")


def remove_shadow(core: Core, name: str) -> None:
    """End a shadow that was not calibrated.

    Raises:
        ConfigurationError: it belongs to the guard.
    """
    with core.turn, core.lock:
        member = core.roster.member(name)
        if member in core.roster.calibrated:
            raise ConfigurationError(f"{name!r} belongs to the guard; retire it, or fit a guard without it")
        left = tuple(each for each in core.roster.members if each is not member)
        core.roster = replace(core.roster, members=left)
    member.runner.close()
    core.events.write("removed", name)
