"""What the architectures of this folder share: their settings and their shallower mutant."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError

__all__ = ["Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """Settings of an architecture; a subclass adds ``build(classes)``.

    Attributes:
        channels: C of the images (B, C, H, W), >= 1.
        shallow: build the family's mutant with fewer layers, which a programmer who got the structure
            wrong would have written.
    """

    name: ClassVar[str]
    channels: int = 3
    shallow: bool = False

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ConfigurationError(f"{self.name}: channels must be at least 1, got {self.channels}")

    def shallower(self) -> Self:
        """The same architecture with fewer layers.

        Raises:
            FaultNotApplicableError: it is the shallow one already.
        """
        if self.shallow:
            raise FaultNotApplicableError(
                f"{self.name} is shallow already and has no shallower mutant; start from shallow=false"
            )
        return replace(self, shallow=True)
