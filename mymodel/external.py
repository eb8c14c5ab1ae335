"""Anybody's network class as an architecture, from one YAML file."""

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.torchvision_import import import_torchvision

__all__ = ["External"]


@dataclass(frozen=True)
class External:
    """Builds a network of any class that is on the path.

    Attributes:
        module: dotted name of a subclass of ``nn.Module``, e.g. ``mypackage.networks.MyNetwork``. Its forward
            maps images (B, C, H, W) in the data set's bounds to logits (B, classes).
        settings: its constructor's other arguments by name.
        classes_argument: the name of the argument that takes the number of classes.
        shallower_settings: what is different in `settings` for a network with fewer layers; empty if there is
            none, and then the fault `shallower` does not apply.

    >>> External("torch.nn.Linear", {"in_features": 4}, classes_argument="out_features").build(3)
    Linear(in_features=4, out_features=3, bias=True)
    """

    module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    classes_argument: str = "num_classes"
    shallower_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class's name in snake case, e.g. ``my_network``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.module.rpartition(".")[2]).lower()

    def build(self, classes: int) -> nn.Module:
        """A new network for this many classes.

        Raises:
            ConfigurationError: there is no such class, it is no network, or it takes other arguments.
        """
        network_class = self._network_class()
        arguments = {**self.settings, self.classes_argument: classes}
        try:
            inspect.signature(network_class).bind(**arguments)
        except TypeError as error:
            raise ConfigurationError(
                f"{self.module} cannot take the arguments {sorted(arguments)}: {error}. "
                f"Its signature is {network_class.__name__}{inspect.signature(network_class)}; correct settings or "
                f"classes_argument (now {self.classes_argument!r})"
            ) from error
        return network_class(**arguments)

    def shallower(self) -> "External":
        """The same class with `shallower_settings` in place of its own.

        Raises:
            FaultNotApplicableError: there are none.
        """
        if not self.shallower_settings:
            raise FaultNotApplicableError(
                f"{self.module} has no shallower form that we know of; name the settings that "
                "give it fewer layers in shallower_settings"
            )
        settings = {**self.settings, **self.shallower_settings}
        return External(self.module, settings, self.classes_argument)

    def _network_class(self) -> type[nn.Module]:
        module, _, name = self.module.rpartition(".")
        if not module:
            raise ConfigurationError(f"module must be a dotted name like package.file.Class, got {self.module!r}")
        if module.partition(".")[0] == "torchvision":
            import_torchvision()
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"cannot find {self.module!r}: {error}; put its folder on PYTHONPATH or correct the name"
            ) from error
        # An architecture may be rebuilt from a file: only networks may be called, whatever the file names.
        if not inspect.isclass(found) or not issubclass(found, nn.Module):
            raise ConfigurationError(f"{self.module!r} must be a subclass of torch.nn.Module, found {found!r}")
        return found
