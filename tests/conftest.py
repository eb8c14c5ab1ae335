"""Markers come from the path; every test starts from the same seed on one thread."""

import os
from pathlib import Path

# Also of all processes that tests start. Threads that wait for one another on busy cores made them 20 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

KINDS = ("unit", "contract", "property", "chaos", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for kind in KINDS:
            if kind in Path(item.path).parts:
                item.add_marker(getattr(pytest.mark, kind))


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
