"""The status of a runtime, gathered from its parts."""

from deepfailguard.identity import TARGET, describe
from deepfailguard.runtime.core import Core
from deepfailguard.runtime.member import Member
from deepfailguard.runtime.status import Status, VersionStatus

__all__ = ["status_of"]

_NOT_WATCHED = "not watched"


def status_of(core: Core, isolation: str, started: float) -> Status:
    """How the runtime stands.

    Args:
        core: of the runtime.
        isolation: where versions run.
        started: seconds since 1970.
    """
    roster, tally, report = core.roster, core.tally, core.report
    should = [member for member in roster.calibrated if not member.shadow]
    cause: str = "nothing" if report is None else report.cause
    text = "no input was watched yet" if report is None else str(report)
    if roster.quarantine is None:
        cause, text = _NOT_WATCHED, "versions are not watched: by the settings, or since this guard cannot be watched"
    return Status(
        versions=tuple(_version(member) for member in roster.members),
        ready=core.ready,
        degraded=any(member.state != "serving" for member in should),
        serving=core.serving,
        least_versions=core.settings.least_versions,
        inputs=tally.inputs,
        batches=tally.batches,
        abstained=tally.abstained,
        unanswered=tally.unanswered,
        bad_inputs=tally.bad_inputs,
        drift=cause,
        drift_text=text,
        started=started,
        isolation=isolation,
        predictor=type(roster.saved.predictor).__name__,
        decision=describe(roster.saved.decision)[TARGET].rpartition(".")[2],
        events=core.events.newest(),
    )


def _version(member: Member) -> VersionStatus:
    tally = member.tally
    return VersionStatus(
        name=member.name,
        state=member.state,
        since=member.since,
        reason=member.reason,
        fault=tally.fault,
        last_fault=tally.last_fault,
        faults=dict(tally.faults),
        asked=tally.asked,
        answered=tally.answered,
        restarts=tally.restarts,
        seconds_p50=tally.quantile(0.5),
        seconds_p99=tally.quantile(0.99),
        disagreement=tally.disagreement.value,
        failure_probability=tally.failure_probability.value,
        weight=tally.weight.value,
        accuracy=member.accuracy,
        memory=member.runner.memory(),
        fingerprint=member.fingerprint,
        shadow=member.shadow,
    )
