"""What a server tells Prometheus."""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric

from deepfailguard.runtime.status import Status
from deepfailguard.serving.answers import Batch
from deepfailguard.serving.status_metrics import status_metrics

__all__ = ["Metrics"]

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PROBABILITIES: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


class Metrics:
    """Counts what passes, in a registry of its own.

    Args:
        images_waiting: tells the queue's length.
        requests: tells how many wait or are being computed.
        largest_batch: images.
    """

    def __init__(self, images_waiting: Callable[[], int], requests: Callable[[], int], largest_batch: int) -> None:
        self.registry = CollectorRegistry()
        seconds = "Seconds from a request's head to the end of its response."
        self._requests = self._histogram("request_seconds", seconds, _SECONDS, "route", "status")
        sizes = sorted({1 << power for power in range(largest_batch.bit_length())} | {largest_batch})
        self._batches = self._histogram("batch_images", "Images per batch.", sizes)
        self._inference = self._histogram("inference_seconds", "Seconds that the guard took for a batch.", _SECONDS)
        self._gauge("queue_images", "Images that wait.", images_waiting)
        self._gauge("open_requests", "Requests that wait or are being computed.", requests)
        self._probabilities = _Probabilities()
        self.registry.register(self._probabilities)
        self._request = lru_cache(1024)(self._requests.labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"deepfailguard_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        Gauge(f"deepfailguard_{name}", text, registry=self.registry).set_function(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._request(route, str(status)).observe(seconds)

    def batch(self, batch: Batch, seconds: float) -> None:
        """Count a batch."""
        self._batches.observe(len(batch.verdict))
        self._inference.observe(seconds)
        judged = np.ones(len(batch.verdict), dtype=bool)
        judged[list(batch.verdict.problems)] = False
        self._probabilities.observe(batch.outputs["failure_probability"][judged])

    def text(self, status: Status | None) -> bytes:
        """All metrics in Prometheus' text format.

        Args:
            status: the guard's; None while it is lost, for the server's own metrics and that the guard is not ready.
        """
        told = CollectorRegistry()
        told.register(_Told(status_metrics(status)))
        return generate_latest(self.registry) + generate_latest(told)


class _Probabilities:
    """A histogram that takes whole arrays, from any thread."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(_PROBABILITIES), dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> None:
        """Count values in [0, 1]."""
        places = np.searchsorted(_PROBABILITIES, values, side="left").clip(max=len(_PROBABILITIES) - 1)
        with self._lock:
            self._counts = self._counts + np.bincount(places, minlength=len(_PROBABILITIES))
            self._sum += float(values.sum())

    def collect(self) -> list[Metric]:
        """The histogram as it is."""
        with self._lock:
            counts, total = np.cumsum(self._counts), self._sum
        buckets = [(str(edge), float(count)) for edge, count in zip(_PROBABILITIES, counts, strict=True)]
        family = HistogramMetricFamily(
            "deepfailguard_failure_probability",
            "Probability that an answer is wrong, as the guard told it; one per judged image.",
            buckets=[*buckets, ("+Inf", float(counts[-1]))],
            sum_value=total,
        )
        return [family]


class _Told:
    """Metrics that were told already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """The metrics."""
        return self._metrics
