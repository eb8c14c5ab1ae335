"""Requests that are not answered, and what their clients are told."""

from typing import Final

from deepfailguard.errors import DeepfailguardError

__all__ = ["CLIENT_GONE", "LOST_FOR", "SHUTTING_DOWN", "RefusedError"]

CLIENT_GONE: Final = 499
"""Stands for a status where nobody is left to read one."""

LOST_FOR: Final = 5
"""Seconds after which to ask again when the guard's process died: so long it takes to import torch and to load."""


class RefusedError(DeepfailguardError):
    """A request that is not answered; the text says what was expected, what came, and what to do.

    Attributes:
        status: HTTP's status code, >= 400; gRPC's is derived from it.
        text: for the client.
        retry_after: whole seconds after which to come again; None if that would not help.
    """

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry_after = retry_after


SHUTTING_DOWN: Final = "the server is shutting down; ask another one, or again in a few seconds"
