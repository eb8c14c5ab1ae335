"""What make installs for whom; nothing is run here, only told."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def commands(target: str) -> str:
    """All that a bare checkout would run for a target."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    told = subprocess.run(
        ["make", "-nB", target], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return told.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_demo_installs_the_plain_package_and_developers_get_the_rest() -> None:
    demo, test = commands("demo"), commands("test")
    assert "-e ." in demo
    assert "[dev]" not in demo
    assert "scripts/demo.py" in demo
    assert "-e ." in test
    assert '-e ".[dev]"' in test
    assert demo.index("Installing") < demo.index("pip install")  # people are told before they wait
    assert test.index("what developers need") < test.index("[dev]")
