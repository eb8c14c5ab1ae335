"""The check that a model is the version whose distances are asked for."""

import weakref
from dataclasses import dataclass

from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.identity import weights_fingerprint

__all__ = ["WeightsCheck"]


@dataclass(frozen=True, slots=True)
class _Stamp:
    """One tensor as it was seen: the object, how often it was written to, and where its data lie."""

    tensor: "weakref.ref[Tensor]"
    writes: int
    place: int

    def holds(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.writes == tensor._version and self.place == tensor.data_ptr()


class WeightsCheck:
    """Refuses models whose weights are not the expected ones.

    Hashing all weights takes milliseconds to a second, so it is done once per model object and again only
    after its tensors were exchanged or written to (torch counts the writes). A write through ``.data`` is
    not counted: copy the model instead, as faults do.

    Args:
        fingerprint: `deepfailguard.identity.weights_fingerprint` of the version.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> WeightsCheck(weights_fingerprint(model)).check(model)
    """

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._model: weakref.ref[nn.Module] | None = None
        self._stamps: tuple[_Stamp, ...] = ()

    def check(self, model: nn.Module) -> None:
        """Return if the model holds the expected weights.

        Raises:
            ConfigurationError: it holds others.
        """
        tensors = (*model.parameters(), *model.buffers())
        if self._is_known(model, tensors):
            return
        came = weights_fingerprint(model)
        if came != self.fingerprint:
            raise ConfigurationError(
                f"this cache keeps distances of the version {self.fingerprint[:16]}, but the model's weights are "
                f"{came[:16]}; make a CachedDistance with the fingerprint of this model"
            )
        self._remember(model, tensors)

    def _is_known(self, model: nn.Module, tensors: tuple[Tensor, ...]) -> bool:
        if self._model is None or self._model() is not model or len(tensors) != len(self._stamps):
            return False
        return all(stamp.holds(tensor) for stamp, tensor in zip(self._stamps, tensors, strict=True))

    def _remember(self, model: nn.Module, tensors: tuple[Tensor, ...]) -> None:
        if any(tensor.is_inference() for tensor in tensors):
            return  # torch does not count writes to these: hash them every time
        self._model = weakref.ref(model)
        self._stamps = tuple(_Stamp(weakref.ref(t), t._version, t.data_ptr()) for t in tensors)
