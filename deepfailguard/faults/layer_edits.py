"""Edits of single layers: no activation where one should be, another kernel size than intended."""

from dataclasses import dataclass
from typing import Final

from torch import nn

from deepfailguard.errors import FaultNotApplicableError
from deepfailguard.types import Change

__all__ = ["OtherKernelSize", "WithoutActivations", "is_activation", "takes_kernel_size"]

_ACTIVATIONS: Final = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
)


def is_activation(module: nn.Module) -> bool:
    """Whether the module is an element-wise activation; softmax is not one."""
    return isinstance(module, _ACTIVATIONS)


def takes_kernel_size(module: nn.Module, size: int) -> bool:
    """Whether the module can get the kernel size, keep its output's shape and be another filter than before.

    Such are square 2d convolutions with stride 1 and an odd kernel above 1: strided ones shape the network's
    pyramid, and a 1x1 convolution mixes channels and has no filter size to get wrong.
    """
    # Subclasses may compute with their weight in ways that another shape breaks.
    if type(module) is not nn.Conv2d or module.stride != (1, 1):
        return False
    height, width = module.kernel_size
    if height != width or height == 1 or height % 2 == 0 or height == size:
        return False
    padding = _adjusted_padding(module, size)
    return isinstance(padding, str) or min(padding) >= 0


@dataclass(frozen=True, slots=True)
class WithoutActivations:
    """Puts an identity where activations should be.

    Attributes:
        layers: dotted names of activation modules.
    """

    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # a list when it comes from JSON

    def apply(self, network: nn.Module) -> tuple[Change, ...]:
        """Change the network in place.

        Raises:
            FaultNotApplicableError: the network has no activation under one of the names.
        """
        changes = []
        for name in self.layers:
            old = _layer(network, name)
            if not is_activation(old):
                raise FaultNotApplicableError(f"layer {name!r} must be an activation module, found {old}")
            network.set_submodule(name, nn.Identity())
            changes.append(Change(name, str(old), "Identity()"))
        return tuple(changes)


@dataclass(frozen=True, slots=True)
class OtherKernelSize:
    """Gives convolutions another kernel size: really other weight tensors, drawn anew, with the padding to match.

    Attributes:
        layers: dotted names of convolutions.
        size: their new kernel size, odd.
    """

    layers: tuple[str, ...]
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # a list when it comes from JSON

    def apply(self, network: nn.Module) -> tuple[Change, ...]:
        """Change the network in place; new weights come from torch's global random numbers, as in any build.

        Raises:
            FaultNotApplicableError: the network has no convolution under one of the names that fits the size.
        """
        changes = []
        replaced: dict[nn.Module, nn.Conv2d] = {}  # a convolution with two names stays one convolution
        for name in self.layers:
            old = _layer(network, name)
            if not isinstance(old, nn.Conv2d) or not takes_kernel_size(old, self.size):
                raise FaultNotApplicableError(
                    f"layer {name!r} must be a square convolution with stride 1 and an odd kernel above 1 "
                    f"that is not {self.size}, found {old}"
                )
            if old not in replaced:
                replaced[old] = _resized(old, self.size)
            new = replaced[old]
            network.set_submodule(name, new)
            changes.append(Change(name, _summary(old), _summary(new), new.weight.numel()))
        return tuple(changes)


def _layer(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise FaultNotApplicableError(
            f"the network has no layer {name!r} to edit ({error}); was the architecture changed after the fault?"
        ) from error


def _adjusted_padding(old: nn.Conv2d, size: int) -> str | tuple[int, int]:
    """The padding that gives a kernel of this size the output shape of the old one; negative if there is none."""
    if old.padding == "same":
        return "same"
    before = (0, 0) if isinstance(old.padding, str) else old.padding
    reach = (size - old.kernel_size[0]) // 2
    return before[0] + reach * old.dilation[0], before[1] + reach * old.dilation[1]


def _resized(old: nn.Conv2d, size: int) -> nn.Conv2d:
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        kernel_size=size,
        padding=_adjusted_padding(old, size),
        dilation=(old.dilation[0], old.dilation[1]),
        groups=old.groups,
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    # The fault is the size: a good initial scale keeps it from being a fault of initialisation as well.
    nn.init.kaiming_normal_(new.weight, nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _summary(layer: nn.Conv2d) -> str:
    height, width = layer.kernel_size
    return f"kernel {height}x{width}, weight {tuple(layer.weight.shape)}"
