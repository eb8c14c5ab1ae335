"""Settings that cannot work are refused, with what to do."""

from pathlib import Path
from typing import Any

import pytest

from deepfailguard.errors import ConfigurationError
from deepfailguard.serving.settings import Listening, ServerSettings

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_batch": 0}, "max_batch must be >= 1"),
    ({"queue": 10, "max_batch": 20}, "shorter than a batch"),
    ({"deadline": 0.0}, r"deadline must be in \(0, 3600\]"),
    ({"deadline": float("nan")}, "deadline must be"),
    ({"max_wait": 2.0}, "shorter than the deadline of 1.0 s"),
    ({"max_wait": -0.1}, "max_wait must be >= 0"),
    ({"largest_body": 1 << 30}, "do not hold the largest"),
    ({"model_name": "a/b"}, "'guard' is usual"),
    ({"model_name": ""}, "model_name must be"),
    ({"key": "short"}, "at least 16 printable"),
    ({"admin_key": "with space " * 3}, "openssl rand -hex 24"),
    ({"key": "schlüssel" * 3}, "ASCII"),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG)
def test_what_cannot_work_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        ServerSettings(**wrong)


def test_keys_are_not_shown() -> None:
    settings = ServerSettings(key="k" * 20, admin_key="a" * 20)
    assert "kkk" not in repr(settings)
    assert "aaa" not in repr(settings)


def test_where_one_cannot_listen(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot both listen on port 8000"):
        Listening(port=8000, grpc_port=8000)
    with pytest.raises(ConfigurationError, match=r"in \[0, 65535\], got 70000"):
        Listening(port=70000)
    pem = tmp_path / "a.pem"
    pem.touch()
    with pytest.raises(ConfigurationError, match="both a certificate and its private key"):
        Listening(certificate=pem)
    with pytest.raises(ConfigurationError, match="there is no file"):
        Listening(certificate=pem, private_key=tmp_path / "b.pem")
    assert Listening(port=0, grpc_port=0).grpc_port == 0
