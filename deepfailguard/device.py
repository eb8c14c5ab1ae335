"""Where computations run."""

import torch

from deepfailguard.errors import ConfigurationError

__all__ = ["resolve_device"]


def resolve_device(name: str) -> torch.device:
    """A device from its name; "auto" is the first accelerator that torch sees, else the CPU.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device {name!r} cannot be used here: {error}; try device=auto or device=cpu"
        ) from error
    return device
