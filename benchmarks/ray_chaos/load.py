"""Clients that ask all the time, and what they got."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import httpx
import numpy as np
import torch
from torch import Tensor

from benchmarks.ray_chaos.versions import Sound

__all__ = ["Asked", "Load"]

_TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Attributes:
        start: when it was sent, by `time.monotonic`.
        seconds: to its answer.
        failure: why there was none; empty if it came.
        answered: the versions that took part.
        wrong: inputs for which a version said something else than it says without trouble, or the guard something else
            than the versions that answered decide.
        ground: what the answer rested on.
    """

    start: float
    seconds: float
    failure: str = ""
    answered: tuple[int, ...] = ()
    wrong: int = 0
    ground: str = ""


@dataclass(slots=True)
class Load:
    """Some clients in threads, each with one request under way at a time and a pause between two.

    Attributes:
        url: of the server.
        batch: (B, C, H, W), what is asked.
        sound: what must come out.
        clients: how many there are.
        pause: seconds.
        asked: all requests so far.
    """

    url: str
    batch: Tensor
    sound: Sound
    clients: int = 2
    pause: float = 0.02
    asked: list[Asked] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT)

    def since(self, start: float) -> Sequence[Asked]:
        """Requests that were sent since then."""
        return [each for each in tuple(self.asked) if each.start >= start]

    def wait_for(self, answered: Sequence[int], start: float, times: int, most: float) -> float:
        """Seconds from `start` until so many answers in a row rested on exactly these versions; NaN if never."""
        wanted, end = tuple(answered), start + most
        while time.monotonic() < end:
            recent = sorted(self.since(start), key=lambda each: each.start + each.seconds)
            for number in range(len(recent) - times + 1):
                if all(each.answered == wanted for each in recent[number : number + times]):
                    return recent[number].start + recent[number].seconds - start
            time.sleep(0.02)
        return float("nan")

    def _ask(self) -> None:
        raw = self.batch.numpy().astype(np.float32)
        tensor = {"name": "images", "datatype": "FP32", "shape": list(raw.shape), "data": raw.flatten().tolist()}
        question = {"inputs": [tensor], "outputs": [{"name": "labels"}, {"name": "version_labels"}]}
        with httpx.Client(timeout=_TIMEOUT) as client:
            while not self._stop.is_set():
                start = time.monotonic()
                try:
                    response = client.post(f"{self.url}/v2/models/guard/infer", json=question)
                    told = self._judged(start, response)
                except httpx.HTTPError as error:
                    told = Asked(start, time.monotonic() - start, f"{type(error).__name__}: {error}")
                self.asked.append(told)
                self._stop.wait(self.pause)

    def _judged(self, start: float, response: httpx.Response) -> Asked:
        seconds = time.monotonic() - start
        if response.status_code != 200:
            return Asked(start, seconds, f"{response.status_code}: {response.text[:200]}")
        told: dict[str, Any] = response.json()
        out = {each["name"]: torch.tensor(each["data"]).reshape(each["shape"]) for each in told["outputs"]}
        versions, labels = out["version_labels"], out["labels"]
        answered = tuple(int(column) for column in (versions >= 0).any(0).nonzero().flatten())
        ground = str(told["parameters"]["ground"])
        wrong = ((versions >= 0) & (versions != self.sound.versions)).any(1)
        if ground in ("all versions", "versions left"):
            wrong |= labels != self.sound.decided[answered]
        return Asked(start, seconds, "", answered, int(wrong.sum()), ground)
