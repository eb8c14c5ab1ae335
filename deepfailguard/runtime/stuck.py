"""A version that gives the same output whatever it is asked."""

import torch
from torch import Tensor

__all__ = ["StuckCheck", "keys_of"]


def keys_of(images: Tensor) -> Tensor:
    """A number for each image (B, C, H, W), (B,) int64 on the CPU, that seldom is the same for two different ones.

    It is the same for the same image in every batch; sums of floating point numbers would differ by their order.
    """
    bits = images.float().flatten(1).contiguous().view(torch.int32)
    odd = torch.arange(1, 2 * bits.shape[1], 2, dtype=torch.int32, device=bits.device)
    return (bits * odd).sum(1).cpu()


class StuckCheck:
    """Suspects a version whose logits are the same, to the bit, for different inputs.

    Each row is compared with the one before it, also across batches, and with the row of the batch before that had
    its place: a version may repeat one output, or a whole batch of them. It only suspects: blank images that differ
    in a pixel may get the same logits from a sound network too.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """The version was started anew."""
        self._keys: Tensor = torch.zeros(0, dtype=torch.int64)
        self._logits: Tensor = torch.zeros(0, 0, dtype=torch.float64)

    def suspects(self, keys: Tensor, logits: Tensor, answered: Tensor) -> bool:
        """Whether the version looks stuck after this batch.

        Args:
            keys: (B,) int64 of the images.
            logits: (B, K) float64 that it gave.
            answered: (B,) bool, whether it gave any.

        >>> check, same = StuckCheck(), torch.tensor([[1.0, 2.0]])
        >>> check.suspects(torch.tensor([3]), same, torch.tensor([True]))
        False
        >>> check.suspects(torch.tensor([4]), same, torch.tensor([True]))
        True
        """
        keys, logits = keys[answered], logits[answered]
        if self._logits.shape[1] != logits.shape[1]:
            self._keys, self._logits = keys[:0], logits[:0]
        both = min(len(keys), len(self._keys))
        in_place = _repeated(self._keys[:both], keys[:both], self._logits[:both], logits[:both])
        seen, told = torch.cat([self._keys[-1:], keys]), torch.cat([self._logits[-1:], logits])
        in_a_row = _repeated(seen[:-1], seen[1:], told[:-1], told[1:])
        if len(keys):
            self._keys, self._logits = keys, logits
        return in_place or in_a_row


def _repeated(keys: Tensor, other_keys: Tensor, logits: Tensor, other_logits: Tensor) -> bool:
    return bool(((logits == other_logits).all(1) & (keys != other_keys)).any())
