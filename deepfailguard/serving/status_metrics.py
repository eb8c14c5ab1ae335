"""A runtime's status as metrics of Prometheus."""

import math
from typing import Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from deepfailguard.guard.verdict import VersionState
from deepfailguard.runtime.status import Status, VersionStatus

__all__ = ["status_metrics"]

_STATES: Final[tuple[VersionState, ...]] = get_args(VersionState)
_DRIFTS: Final = ("nothing", "versions", "inputs", "unclear", "not watched")

_VERSION_GAUGES: Final = {
    "disagreement": "Share of the version's answers that were not the guard's, over about the last 1000 inputs.",
    "failure_probability": "Mean probability that the version's answers are wrong, over about the last 1000 inputs.",
    "weight": "Mean weight of the version's answers, over about the last 1000 inputs.",
    "accuracy": "Accuracy of the version in calibration.",
}
_VERSION_COUNTERS: Final = {
    "asked": "Inputs that the version was asked.",
    "answered": "Inputs that the version answered.",
    "restarts": "How often the version was started anew.",
}


def status_metrics(status: Status | None) -> list[Metric]:
    """What a status tells, of the guard and of each version; values that are not known are left out.

    Args:
        status: None while the guard is lost; then nothing is known but that it is not ready.
    """
    if status is None:
        return [_ready(False)]
    return [*_of_guard(status), *_of_versions(status.versions)]


def _of_guard(status: Status) -> list[Metric]:
    return [
        _inputs(status),
        _drift(status),
        CounterMetricFamily("deepfailguard_batches", "Batches that the guard was asked.", value=status.batches),
        _ready(status.ready),
        _gauge("deepfailguard_degraded", "Whether a version that should serve does not.", status.degraded),
        _gauge("deepfailguard_versions_serving", "Versions whose answers count.", status.serving),
        _gauge("deepfailguard_versions_least", "Versions that must serve.", status.least_versions),
        _gauge("deepfailguard_start_time_seconds", "When the guard was started, since 1970.", status.started),
    ]


def _ready(ready: bool) -> Metric:
    return _gauge("deepfailguard_ready", "Whether as many versions serve as must.", ready)


def _inputs(status: Status) -> Metric:
    metric = CounterMetricFamily(
        "deepfailguard_inputs",
        "Images by what became of them: answered, abstained (the guard was not sure enough), unanswered (no version "
        "answered), bad (not finite or out of bounds).",
        labels=["outcome"],
    )
    outcomes = {
        "answered": status.inputs - status.abstained,
        "abstained": status.abstained - status.unanswered,
        "unanswered": status.unanswered - status.bad_inputs,
        "bad": status.bad_inputs,
    }
    for outcome, count in outcomes.items():
        metric.add_metric([outcome], max(0, count))
    return metric


def _drift(status: Status) -> Metric:
    metric = GaugeMetricFamily("deepfailguard_drift", "What the watch thinks changed; 1 for the one.", labels=["cause"])
    for cause in _DRIFTS:
        metric.add_metric([cause], status.drift == cause)
    return metric


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _of_versions(versions: tuple[VersionStatus, ...]) -> list[Metric]:
    metrics: list[Metric] = [_states(versions), _up(versions), _faults(versions), _seconds(versions), _memory(versions)]
    for name, text in _VERSION_GAUGES.items():
        gauge = GaugeMetricFamily(f"deepfailguard_version_{name}", text, labels=["version"])
        for version in versions:
            if math.isfinite(value := getattr(version, name)):
                gauge.add_metric([version.name], value)
        metrics.append(gauge)
    for name, text in _VERSION_COUNTERS.items():
        counter = CounterMetricFamily(f"deepfailguard_version_{name}", text, labels=["version"])
        for version in versions:
            counter.add_metric([version.name], getattr(version, name))
        metrics.append(counter)
    return metrics


def _states(versions: tuple[VersionStatus, ...]) -> Metric:
    metric = GaugeMetricFamily(
        "deepfailguard_version_state", "How the version stands; 1 for its state.", labels=["version", "state"]
    )
    for version in versions:
        for state in _STATES:
            metric.add_metric([version.name, state], version.state == state)
    return metric


def _up(versions: tuple[VersionStatus, ...]) -> Metric:
    metric = GaugeMetricFamily(
        "deepfailguard_version_up", "Whether the version is sound: it serves, or runs as a shadow.", labels=["version"]
    )
    for version in versions:
        metric.add_metric([version.name], version.state in ("serving", "shadow"))
    return metric


def _faults(versions: tuple[VersionStatus, ...]) -> Metric:
    metric = CounterMetricFamily(
        "deepfailguard_version_faults", "Faults at which the version was caught.", labels=["version", "kind"]
    )
    for version in versions:
        for kind, count in version.faults.items():
            metric.add_metric([version.name, kind], count)
    return metric


def _seconds(versions: tuple[VersionStatus, ...]) -> Metric:
    metric = GaugeMetricFamily(
        "deepfailguard_version_seconds",
        "Seconds that the version took for a batch, over its last 256 batches.",
        labels=["version", "quantile"],
    )
    for version in versions:
        for quantile, value in (("0.5", version.seconds_p50), ("0.99", version.seconds_p99)):
            if math.isfinite(value):
                metric.add_metric([version.name, quantile], value)
    return metric


def _memory(versions: tuple[VersionStatus, ...]) -> Metric:
    metric = GaugeMetricFamily(
        "deepfailguard_version_memory_bytes", "Bytes that the version's process occupies.", labels=["version"]
    )
    for version in versions:
        if version.memory is not None:
            metric.add_metric([version.name], version.memory)
    return metric
