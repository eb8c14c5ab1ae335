"""A version that gives the same output whatever it is asked."""

import torch
from torch import Tensor

__all__ = ["StuckCheck", "keys_of"]


def keys_of(images: Tensor) -> Tensor:
    """A number for each image (B, C, H, W), (B,) float64 on the CPU, that seldom is the same for two different ones."""
    flat = images.flatten(1)
    weights = torch.linspace(1.0, 2.0, flat.shape[1], dtype=flat.dtype, device=flat.device)
    return (flat @ weights).cpu().double()


class StuckCheck:
    """Suspects a version whose logits are the same, to the bit, for different inputs of a batch or of two in a row.

    It only suspects: blank images that differ in a pixel may get the same logits from a sound network too.
    """

    def __init__(self) -> None:
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._logits: Tensor | None = None

    def suspects(self, keys: Tensor, logits: Tensor, answered: Tensor) -> bool:
        """Whether the version looks stuck after this batch.

        Args:
            keys: (B,) float64 of the images.
            logits: (B, K) float64 that it gave.
            answered: (B,) bool, whether it gave any.

        >>> check, same = StuckCheck(), torch.tensor([[1.0, 2.0]])
        >>> check.suspects(torch.tensor([3.0]), same, torch.tensor([True]))
        False
        >>> check.suspects(torch.tensor([4.0]), same, torch.tensor([True]))
        True
        """
        keys, logits = keys[answered], logits[answered]
        if self._logits is None or self._logits.shape[1] != logits.shape[1]:
            self._logits = logits[:0]
        # The last ones seen suffice: who is stuck repeats itself at once.
        seen, told = torch.cat([self._keys[-1:], keys]), torch.cat([self._logits[-1:], logits])
        self._keys, self._logits = seen[-1:], told[-1:]
        repeated = (told[1:] == told[:-1]).all(1) & (seen[1:] != seen[:-1])
        return bool(repeated.any())

    def forget(self) -> None:
        """The version was started anew."""
        self._keys, self._logits = self._keys[:0], None
