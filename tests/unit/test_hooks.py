import logging

import pytest
import torch
from torch import nn

from deepfailguard.hooks import Hook, Hooks, StepContext


@pytest.fixture
def context() -> StepContext:
    model = nn.Linear(1, 1)
    return StepContext(model, torch.optim.SGD(model.parameters(), lr=0.1))


class Broken(Hook):
    def on_step(self, context: StepContext) -> None:
        raise RuntimeError("broken")


def test_an_observers_error_is_counted_and_shown_once(context: StepContext, caplog: pytest.LogCaptureFixture) -> None:
    hooks = Hooks([Broken()])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            hooks.call("on_step", context)
    assert hooks.failures == {"Broken": 3}
    assert len(caplog.records) == 1


def test_a_controllers_error_propagates(context: StepContext) -> None:
    hook = Broken()
    hook.role = "controller"
    with pytest.raises(RuntimeError, match="broken"):
        Hooks([hook]).call("on_step", context)


def test_an_error_in_on_error_does_not_hide_the_first(context: StepContext) -> None:
    class Clumsy(Hook):
        def on_error(self, context: StepContext, error: BaseException) -> None:
            raise ValueError("second")

    hooks = Hooks([Clumsy()])
    hooks.error(context, RuntimeError("first"))
    assert hooks.failures == {"Clumsy": 1}
