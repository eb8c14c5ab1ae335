"""What everybody who asks a model wants of its output."""

from torch import Tensor

from deepfailguard.errors import WrongOutputError

__all__ = ["as_logits"]


def as_logits(output: object, batch: int) -> Tensor:
    """Return the output if it is logits (batch, K) with K >= 1, else say what it is.

    Raises:
        WrongOutputError: it is something else.
    """
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == batch and output.shape[1] > 0:
        return output
    came = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise WrongOutputError(f"the model returned {came}, expected logits ({batch}, classes); wrap it so that it does")
