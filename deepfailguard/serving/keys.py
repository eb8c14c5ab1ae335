"""Who may ask, and who may change something."""

import hmac
from collections.abc import Mapping
from typing import Final

from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.settings import ServerSettings

__all__ = ["check_admin_key", "check_key", "client_of", "is_open"]

_OPEN: Final = frozenset(
    {"/", "/docs", "/openapi.json", "/metrics", "/v2/health/live", "/v2/health/ready", "/favicon.ico"}
)
_HOW: Final = "send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"


def is_open(path: str) -> bool:
    """Whether a path needs no key: probes, metrics, and pages that hold no data."""
    return path in _OPEN or path.startswith("/static/")


def check_key(headers: Mapping[str, str], settings: ServerSettings) -> None:
    """Refuse a request that lacks the key, if there is one; the admin key opens everything, too.

    Args:
        headers: by lower-case name.
        settings: of the server.
    """
    if settings.key is None:
        return
    given = _key_of(headers)
    if not given:
        raise RefusedError(401, f"this server needs a key; {_HOW}")
    if not any([_same(given, settings.key), _same(given, settings.admin_key)]):
        raise RefusedError(401, f"this is not the server's key; {_HOW}")


def check_admin_key(headers: Mapping[str, str], settings: ServerSettings) -> None:
    """Refuse a request to change something that lacks the admin key."""
    if settings.admin_key is None:
        raise RefusedError(
            403,
            "nobody may change versions of this server; start it with an admin key in the environment variable "
            "DEEPFAILGUARD_ADMIN_KEY, or with --admin-key-file",
        )
    given = _key_of(headers)
    if not given:
        raise RefusedError(401, f"changing versions needs the admin key; {_HOW}")
    if not _same(given, settings.admin_key):
        raise RefusedError(401, f"this is not the server's admin key; {_HOW}")


def client_of(address: str, headers: Mapping[str, str], settings: ServerSettings) -> str:
    """Who asks, as far as one can tell: an address, together with the key if it was checked: others are made up.

    Args:
        address: whence the request came.
        headers: by lower-case name; they passed `check_key`.
        settings: of the server.
    """
    return address if settings.key is None else f"{address} {_key_of(headers)}"


def _key_of(headers: Mapping[str, str]) -> str:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _same(given: str, key: str | None) -> bool:
    """Whether two keys are the same, in a time that does not tell how much of them is."""
    return key is not None and hmac.compare_digest(given.encode(), key.encode())
