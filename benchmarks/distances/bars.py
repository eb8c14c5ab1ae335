"""What the searches and estimates have to reach, each with its figure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.distances.figures import Quality, Row
from benchmarks.distances.ours import BALANCED, ESTIMATES, FAST, LEARNED, TIGHT
from benchmarks.distances.peers import FOOLBOX_DEFAULT, PATIENT
from benchmarks.reporting import Bar

__all__ = ["Measured", "bars_for", "best_reference"]


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures of one subject.

    Attributes:
        subject: its name.
        classes: K.
        accuracy: of the model on test images.
        rows: on all images, by method.
        patient: on few images, beside the references that take long; empty if they did not run.
        memory: peak bytes by what was called; empty if not measured.
    """

    subject: str
    classes: int
    accuracy: float
    rows: Mapping[str, Row]
    patient: Mapping[str, Row]
    memory: Mapping[str, float]


def bars_for(measured: Measured) -> list[Bar]:
    """All requirements on one subject, reached or not."""
    return [*_balanced(measured), *_fast(measured), *_tight(measured), *_estimates(measured), *_memory(measured)]


def best_reference(patient: Mapping[str, Row]) -> Row | None:
    """The reference with the smallest median distance among those that failed on fewer than half of the images."""
    there = [(row.quality, row) for name, row in patient.items() if name in PATIENT and row.quality is not None]
    usable = [(quality.median, row) for quality, row in there if quality.failures < quality.images]
    return min(usable, key=lambda each: each[0])[1] if usable else None


def _balanced(measured: Measured) -> Iterator[Bar]:
    name, row, many = measured.subject, measured.rows[BALANCED], measured.classes > 10
    quality = _quality(row)
    spread = f"{row.faster.low:.0f} to {row.faster.high:.0f} over the chunks"
    against = f"foolbox with {'all' if many else 'its default of 10'} candidates"
    yield Bar(name, f"balanced: times as fast as {against}", row.faster.middle, 60 if many else 20, True, spread)
    if many and FOOLBOX_DEFAULT in measured.rows:
        other = row.faster.middle / measured.rows[FOOLBOX_DEFAULT].faster.middle
        yield Bar(name, "balanced: times as fast as foolbox with 10 candidates", other, 20, True)
    limit = 0.80 if name.startswith("resnet18") else 0.96
    yield Bar(name, "balanced: median distance ratio to foolbox", quality.median, limit)
    yield Bar(name, "balanced: 95th percentile of the ratio", quality.p95, 1.05)
    yield Bar(name, "balanced: failures where foolbox succeeds", quality.failures, 0)


def _fast(measured: Measured) -> Iterator[Bar]:
    row = measured.rows[FAST]
    yield Bar(measured.subject, "fast: FPE", row.fpe.middle, 6)
    yield Bar(measured.subject, "fast: median distance ratio to foolbox", _quality(row).median, 1.05)


def _tight(measured: Measured) -> Iterator[Bar]:
    best = best_reference(measured.patient)
    distance = "tight: median distance ratio, over that of the best patient reference"
    cost = "tight: cost, over that of the best patient reference"
    if best is None:
        why = "no patient reference ran"
        yield Bar(measured.subject, distance, float("nan"), 1.01, note=why)
        yield Bar(measured.subject, cost, float("nan"), 0.1, note=why)
        return
    ours, absent = measured.patient[TIGHT], [name for name in PATIENT if name not in measured.patient]
    note = f"best: {best.method}" + (f"; did not run: {', '.join(absent)}" if absent else "")
    yield Bar(measured.subject, distance, _quality(ours).median / _quality(best).median, 1.01, note=note)
    yield Bar(measured.subject, cost, ours.fpe.middle / best.fpe.middle, 0.1, note=note)


def _estimates(measured: Measured) -> Iterator[Bar]:
    others = [f"{name} {_spearman(measured.rows[name]):.3f}" for name in ESTIMATES if name != LEARNED]
    row, text = measured.rows[LEARNED], f"{LEARNED}: Spearman correlation with tight"
    yield Bar(measured.subject, text, _spearman(row), 0.98, True, "; ".join(others))
    yield Bar(measured.subject, f"{LEARNED}: FPE", row.fpe.middle, 1.15)


def _memory(measured: Measured) -> Iterator[Bar]:
    memory, nothing = measured.memory, float("nan")
    step = memory.get("training step", nothing)
    ratio = memory.get("balanced", nothing) / step if step else nothing
    text = "balanced: peak memory, over that of a training step"
    yield Bar(measured.subject, text, ratio, 3)


def _quality(row: Row) -> Quality:
    if row.quality is None:
        raise ValueError(f"{row.method} is an estimate: it has no distance ratio")
    return row.quality


def _spearman(row: Row) -> float:
    return float("nan") if row.spearman is None else row.spearman
