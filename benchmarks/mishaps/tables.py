"""The tables of a campaign."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from benchmarks.mishaps.figures import ClassRun, Figures, figures_of
from benchmarks.mishaps.judging import TOLERANCE
from benchmarks.reporting import aligned, percent

__all__ = ["UNNOTICED", "coverage_lines", "service_lines", "sum_lines", "unnoticed_lines"]

UNNOTICED: Final = (
    (
        "class order swapped before the guard was fitted",
        "canary inputs and checksums compare a version with what it was then",
        "labels: its calibration accuracy, which the guard's summary shows, is that of guessing or worse; look at it",
    ),
    (
        "several versions wrong together (common mode)",
        "each version does what it was trained to do",
        "diverse data and architectures (docs/study.md measures it), abstention by a promised risk, prediction sets",
    ),
    (
        "a version that answers the canary inputs soundly and others wrongly",
        "by design it looks sound wherever the runtime looks; measured above as 'permuted but for canary inputs'",
        "the watch without labels (docs/watching.md): it disagrees too often; labelled checks",
    ),
    (
        "preprocessing that changed for all versions upstream",
        "all versions answer what they are asked",
        "the watch tells that the inputs changed (cause: inputs); labelled checks",
    ),
    (
        "state outside of parameters and buffers (plain attributes, code)",
        "no checksum holds it",
        "canary inputs, as far as it changes their logits by more than 1 % of the largest",
    ),
    (
        "a changed guard with a manifest that was changed to fit, all of it",
        "the manifest alone tells damage, not who wrote it",
        "a signature: GuardRuntime.load(folder, public_key=...)",
    ),
    (
        "the machine that runs the guard",
        "the guard, its upkeep and the decision run in one process",
        "two runtimes behind a load balancer; ECC memory",
    ),
)
"""What nothing notices at run time: what, why, and what would."""


def coverage_lines(runs: Sequence[ClassRun]) -> list[str]:
    """What was noticed, how soon, and what it cost until then."""
    head = ("class", "where", "trials", "detected", "missed", "rate at most", "latency p50", "p95", "max", "promise")
    cost = ("verdicts", "answers", "labels", "wrong after")
    return [
        "seconds; rate of misses in % at 95 % confidence; verdicts, false answers, other labels before it was noticed",
        *aligned([(*head, *cost), *map(_coverage, runs)], left=(0, 1, 9)),
    ]


def service_lines(runs: Sequence[ClassRun]) -> list[str]:
    """How the guard served meanwhile."""
    head = ("class", "requests", "lost", "late", "overshoot", "unanswered", "not degraded", "sound left out")
    told = [run for run in runs if any(outcome.tale for outcome in run.outcomes)]
    return [
        f"requests under fault; late: more than {TOLERANCE:g} s beyond the deadline; seconds",
        *aligned([(*head, "recovered", "p50", "max", "said to be"), *map(_service, told)], left=(0, 11)),
    ]


def sum_lines(runs: Sequence[ClassRun]) -> list[str]:
    """The sums over all classes of which something must be noticed."""
    figures = [figures_of(run) for run in runs if run.promise]
    tales = [each.tale for each in map(figures_of, runs)]
    faults = sum(len(outcome.columns) for run in runs for outcome in run.outcomes)
    told = (
        f"{sum(f.trials for f in figures)} trials, in all {faults} faults",
        f"{sum(f.missed for f in figures)} missed",
        f"{sum(t.wrong for t in tales)} wrong answers of faults that were noticed",
        f"{sum(t.lost for t in tales)} of {sum(t.requests for t in tales)} requests lost",
        f"{sum(t.late for t in tales)} late",
        f"{sum(t.undegraded for t in tales)} not told to be degraded",
        f"{sum(len(run.failures) for run in runs)} failures inside of the guard",
    )
    return [", ".join(told)]


def unnoticed_lines() -> list[str]:
    """What nothing notices at run time."""
    lines = ["not noticed at run time, and what would:"]
    for what, why, remedy in UNNOTICED:
        lines += [f"  - {what}: {why}", f"    -> {remedy}"]
    return lines


def _coverage(run: ClassRun) -> tuple[str, ...]:
    figures = figures_of(run)
    tale = figures.tale
    within = run.promise if math.isnan(run.limit) else f"{run.promise} ({run.limit:.3g} s)"
    missed = str(figures.missed) if run.promise else "by design"
    return (
        run.name,
        run.group,
        str(figures.trials),
        str(figures.detected),
        missed,
        percent(figures.rate, 2) if run.promise else "-",
        *map(_seconds, figures.latency),
        within or "none",
        *(str(count) for count in (tale.exposed, tale.exposed_answers, tale.exposed_labels, tale.wrong)),
    )


def _service(run: ClassRun) -> tuple[str, ...]:
    figures = figures_of(run)
    tale = figures.tale
    counts = (tale.requests, tale.lost, tale.late)
    return (
        run.name,
        *map(str, counts),
        _seconds(tale.overshoot),
        *(str(count) for count in (tale.unanswered, tale.undegraded, len(tale.bystanders))),
        str(figures.recovered),
        _seconds(figures.recovery[0]),
        _seconds(figures.recovery[2]),
        _faults(figures),
    )


def _faults(figures: Figures) -> str:
    return ", ".join(f"{fault or 'nothing'} {count}" for fault, count in Counter(figures.faults).most_common())


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
