"""Objects as JSON and back, and hashes of JSON and tensors.

An object's description names its class and its constructor's arguments, in hydra's form::

    {"_target_": "mymodel.compact_resnet.CompactResNet", "channels": 1}

It works for everything whose constructor stores its arguments under their own names
(dataclasses do). A description can be hashed (`digest`) and, for trusted modules, rebuilt.
"""

import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError

__all__ = ["TARGET", "describe", "digest", "digest_tensors", "rebuild", "weights_fingerprint"]

TARGET = "_target_"


def describe(value: Any) -> Any:
    """The JSON description of a value.

    >>> from deepfailguard.types import Bounds
    >>> describe(Bounds(0.0, 1.0))
    {'_target_': 'deepfailguard.types.Bounds', 'low': 0.0, 'high': 1.0}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, functools.partial):
        if value.args:
            raise ConfigurationError(f"{value} cannot be described: give its arguments by name")
        return {**describe(value.func), **{key: describe(item) for key, item in value.keywords.items()}}
    if inspect.isfunction(value):
        return {TARGET: _importable_name(value)}
    if isinstance(value, (type, nn.Module, torch.dtype, torch.device)) or inspect.isroutine(value):
        raise ConfigurationError(f"{value!r} cannot be described: give its name or its settings instead")
    return _describe_object(value)


def _importable_name(value: Any) -> str:
    if "<" in value.__qualname__:
        raise ConfigurationError(
            f"{value.__qualname__} cannot be described: it could not be found again; define it at the top of a module"
        )
    return f"{value.__module__}.{value.__qualname__}"


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(kind).parameters
    except ValueError as error:
        raise ConfigurationError(
            f"a {kind.__qualname__} cannot be described: its constructor is not in Python"
        ) from error


def _describe_object(value: Any) -> dict[str, Any]:
    kind = type(value)
    description: dict[str, Any] = {TARGET: f"{kind.__module__}.{kind.__qualname__}"}
    for name, parameter in _parameters(kind).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(f"{kind.__qualname__} cannot be described: it takes *args or **kwargs; name them")
        if not hasattr(value, name):
            raise ConfigurationError(
                f"{kind.__qualname__} cannot be described: its constructor takes {name!r} but the object has no "
                f"attribute {name!r}; store the argument unchanged (self.{name} = {name})"
            )
        description[name] = describe(getattr(value, name))
    return description


def rebuild(description: Any, trusted: Iterable[str]) -> Any:
    """Build the value again from its description.

    Args:
        description: what `describe` returned.
        trusted: names of packages whose classes and functions may be called. A description comes from
            a file, and calling whatever a file names would be as unsafe as a pickle.

    Raises:
        ConfigurationError: a target lies outside the trusted packages or does not exist.
    """
    packages = tuple(trusted)
    if isinstance(description, list):
        return [rebuild(item, packages) for item in description]
    if not isinstance(description, dict):
        return description
    settings = {key: rebuild(item, packages) for key, item in description.items() if key != TARGET}
    if TARGET not in description:
        return settings
    target = _resolve(str(description[TARGET]), packages)
    if inspect.isclass(target):
        return target(**settings)
    return functools.partial(target, **settings) if settings else target


def _resolve(path: str, trusted: tuple[str, ...]) -> Any:
    if not any(path.startswith(f"{package}.") for package in trusted):
        raise ConfigurationError(
            f"refusing to build {path!r}: its package is not trusted (trusted: {', '.join(trusted) or 'none'}); "
            "add the package to trusted=(...) if you know the code"
        )
    module, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"cannot find {path!r}: {error}; is its package on the path?") from error
    # A re-exported builtin or foreign function would let a file reach code outside the trusted packages.
    home = getattr(target, "__module__", "")
    if not callable(target) or not any(f"{home}.".startswith(f"{package}.") for package in trusted):
        raise ConfigurationError(f"refusing to build {path!r}: it is defined in {home or 'no module'!r}")
    return target


def digest(description: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and every byte."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return sha.hexdigest()


def weights_fingerprint(model: nn.Module) -> str:
    """Hash of a model's parameters, of its buffers (saved or not) and of the kinds of its modules.

    It changes with any bit of them, and when a module is exchanged for one of another class. What a module
    keeps in plain attributes, or does in a changed `forward`, it cannot see.
    """
    kinds = [[name, f"{type(module).__module__}.{type(module).__qualname__}"] for name, module in model.named_modules()]
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    return digest([kinds, digest_tensors(tensors)])
