"""What an estimator learned of several versions, found by a model's weights."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from deepfailguard.boundary.weights_check import WeightsMemo
from deepfailguard.errors import NotFittedError

__all__ = ["fingerprint_of", "only", "state_of"]

State = TypeVar("State")

_memo = WeightsMemo()  # of the process: estimators are records that are copied, and models are asked by several


def fingerprint_of(model: nn.Module) -> str:
    """The fingerprint of a model's weights; they are hashed again only after they changed."""
    return _memo.fingerprint(model)


def state_of(versions: Mapping[str, State], fingerprint: str, name: str) -> State:
    """What was learned of one version.

    Args:
        versions: states by fingerprint.
        fingerprint: of the version.
        name: of the estimator, for the message.

    Raises:
        NotFittedError: nothing was learned of it.

    Example:
        >>> state_of({"abc": 1}, "abc", "LearnedDistance")
        1
    """
    if fingerprint not in versions:
        known = ", ".join(known[:16] for known in versions) or "none"
        raise NotFittedError(
            f"this {name} was not fitted to the version {fingerprint[:16]} (fitted: {known}); "
            "use what its fit(model, calibration_images) returns, with the bounds that it shall have"
        )
    return versions[fingerprint]


def only(versions: Mapping[str, State], fingerprint: str, name: str) -> dict[str, State]:
    """The state of one version alone, by its fingerprint.

    Raises:
        NotFittedError: nothing was learned of it.
    """
    return {fingerprint: state_of(versions, fingerprint, name)}
