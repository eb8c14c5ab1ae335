"""A guard's own process: runs its runtime, and does what comes over two lines until they are closed."""

import io
import logging
import pickle
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.errors import DeepfailguardError
from deepfailguard.guard.verdict import Verdict
from deepfailguard.runtime.housing import Isolation
from deepfailguard.runtime.long_lived import freeze_objects
from deepfailguard.runtime.runners.worker import stand_apart
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.runtime.settings import Settings
from deepfailguard.versions.pool import TRUSTED_PACKAGES

__all__ = ["LOG_FORMAT", "PING", "GuardOrder", "packed", "run_guard"]

PING: Final = "are you there?"
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GuardOrder:
    """Which guard is to be run, and how: what `GuardRuntime.load` takes.

    Attributes:
        folder: of the guard.
        device: where the versions run.
        trusted: packages whose classes the folder may name.
        public_key: file of the key by which the guard must be signed; it need not be if None.
        isolation: of the versions from each other.
        settings: what is allowed and demanded.
        state: folder for what must survive a restart; None for none.
    """

    folder: Path
    device: str = "cpu"
    trusted: tuple[str, ...] = TRUSTED_PACKAGES
    public_key: Path | None = None
    isolation: Isolation = "in process"
    settings: Settings | None = None
    state: Path | None = None

    def carry_out(self) -> GuardRuntime:
        """The runtime that was ordered."""
        return GuardRuntime.load(
            self.folder,
            device=self.device,
            trusted=self.trusted,
            public_key=self.public_key,
            isolation=self.isolation,
            settings=self.settings,
            state=self.state,
        )


def run_guard(
    order: GuardOrder, questions: Connection, operator: Connection, status: Connection, log_level: int
) -> None:
    """Load the guard and answer until the lines are closed; if whoever started this process dies, so does it.

    Args:
        order: which guard.
        questions: brings images.
        operator: brings changes.
        status: brings questions how the guard stands, which wait for neither.
        log_level: of whoever started this process.
    """
    stand_apart()
    logging.basicConfig(level=log_level, format=LOG_FORMAT)
    logging.getLogger("deepfailguard.predictor").setLevel(logging.WARNING)  # it fits a decision for each subset
    try:
        runtime = order.carry_out()
    except Exception as error:
        questions.send_bytes(packed((_sendable(error), None)))
        return
    freeze_objects()
    with runtime, suppress(BrokenPipeError, ConnectionResetError):
        questions.send_bytes(packed((None, runtime.card)))
        for name, line in {"operator": operator, "status": status}.items():
            threading.Thread(target=_operate, args=(runtime, line), name=name, daemon=True).start()
        _answer(runtime, questions)


def _answer(runtime: GuardRuntime, line: Connection) -> None:
    """Give a verdict on each batch."""
    while (message := _received(line)) is not None:
        try:
            line.send_bytes(packed((None, None if message == PING else _verdict(runtime, *message))))
        except OSError:
            raise
        except Exception as error:
            line.send_bytes(packed((_sendable(error), None)))


def _verdict(runtime: GuardRuntime, images: NDArray[Any], deadline: float | None) -> Verdict:
    try:
        return runtime(torch.from_numpy(images), deadline)
    except DeepfailguardError:
        raise
    except Exception:
        logger.exception("the guard failed on a batch of %d images", len(images))
        raise


def _operate(runtime: GuardRuntime, line: Connection) -> None:
    """Do what an operator wants; his questions wait for no batch."""
    with suppress(BrokenPipeError, ConnectionResetError):
        while (message := _received(line)) is not None:
            name, arguments = message
            try:
                line.send_bytes(packed((None, getattr(runtime, name)(*arguments))))
            except Exception as error:
                line.send_bytes(packed((_sendable(error), None)))


def _received(line: Connection) -> Any:
    """The next message; None when the line was closed."""
    try:
        return line.recv()
    except (EOFError, ConnectionResetError):
        return None


def _sendable(error: Exception) -> Exception:
    """It, or its text where it would not survive the way, as anybody's errors may not."""
    try:
        ForkingPickler.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def packed(message: object) -> bytes:
    """A message as bytes for `Connection.recv`; tensors go as arrays, much faster than in torch's own way."""
    buffer = io.BytesIO()
    _Packer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


class _Packer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor:
            return _tensor, (value.detach().cpu().numpy(),)
        return NotImplemented


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)
