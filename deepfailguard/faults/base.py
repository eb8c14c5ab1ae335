"""The protocol of faults, and the one way to apply them."""

from typing import ClassVar, Literal, Protocol, TypeVar

from deepfailguard.types import Receipt

__all__ = ["ActsOn", "Fault"]

ActsOn = Literal["training_data", "test_data", "program", "weights"]
T = TypeVar("T")


class Fault(Protocol[T]):
    """A named, parametrised change to T: `Splits` (data), `VersionSpec` (program) or `nn.Module` (weights).

    Attributes:
        name: as in ``fault=NAME``.
        acts_on: which kind of target; training data and test data are both in `Splits`.
        number: the paper's number, None for faults that are not in the paper.
    """

    name: ClassVar[str]
    acts_on: ClassVar[ActsOn]
    number: ClassVar[int | None]

    def apply(self, target: T, seed: int) -> tuple[T, Receipt]:
        """Return a changed copy, never the target itself changed, and the receipt of what was changed."""
        ...
