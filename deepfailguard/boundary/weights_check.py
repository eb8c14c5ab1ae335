"""Knowing a model by its weights without hashing them at every call, and the check that it is the expected version."""

import weakref
from dataclasses import dataclass

from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.identity import weights_fingerprint

__all__ = ["WeightsCheck", "WeightsMemo"]


@dataclass(frozen=True, slots=True)
class _Stamp:
    """One tensor as it was seen: the object, how often it was written to, and where its data lie."""

    tensor: "weakref.ref[Tensor]"
    writes: int
    place: int

    def holds(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.writes == tensor._version and self.place == tensor.data_ptr()


@dataclass(frozen=True, slots=True)
class _Seen:
    """A model's tensors and modules as they were when their hash was taken."""

    stamps: tuple[_Stamp, ...]
    kinds: tuple[tuple[str, type[nn.Module]], ...]
    fingerprint: str

    def holds(self, tensors: tuple[Tensor, ...], kinds: tuple[tuple[str, type[nn.Module]], ...]) -> bool:
        if len(tensors) != len(self.stamps) or kinds != self.kinds:
            return False
        return all(stamp.holds(tensor) for stamp, tensor in zip(self.stamps, tensors, strict=True))


class WeightsMemo:
    """Remembers the fingerprints of models as long as they live.

    Hashing all weights takes milliseconds to a second, so it is done once per model object and again only
    after its tensors were exchanged or written to (torch counts the writes), or a module was exchanged for one of
    another class. A write through ``.data`` is not counted: copy the model instead, as faults do.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> WeightsMemo().fingerprint(model) == weights_fingerprint(model)
        True
    """

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[nn.Module, _Seen] = weakref.WeakKeyDictionary()

    def fingerprint(self, model: nn.Module) -> str:
        """`deepfailguard.identity.weights_fingerprint` of the model as it is now."""
        tensors = (*model.parameters(), *model.buffers())
        kinds = tuple((name, type(module)) for name, module in model.named_modules())  # a ReLU has no tensors
        seen = self._seen.get(model)
        if seen is not None and seen.holds(tensors, kinds):
            return seen.fingerprint
        fingerprint = weights_fingerprint(model)
        if not any(tensor.is_inference() for tensor in tensors):  # torch does not count writes to these
            stamps = tuple(_Stamp(weakref.ref(t), t._version, t.data_ptr()) for t in tensors)
            self._seen[model] = _Seen(stamps, kinds, fingerprint)
        return fingerprint


class WeightsCheck:
    """Refuses models whose weights are not the expected ones; they are hashed as seldom as `WeightsMemo` does.

    Args:
        fingerprint: `deepfailguard.identity.weights_fingerprint` of the version.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> WeightsCheck(weights_fingerprint(model)).check(model)
    """

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._memo = WeightsMemo()

    def check(self, model: nn.Module) -> None:
        """Return if the model holds the expected weights.

        Raises:
            ConfigurationError: it holds others.
        """
        came = self._memo.fingerprint(model)
        if came != self.fingerprint:
            raise ConfigurationError(
                f"expected a model of the version {self.fingerprint[:16]}, but the model's weights are {came[:16]}; "
                "give that version's model, or use the fingerprint of this model "
                "(deepfailguard.identity.weights_fingerprint) where a distance is cached or fitted"
            )
