"""Making versions of whatever models a user brings, and checking that they fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError, WrongOutputError
from deepfailguard.types import Bounds
from deepfailguard.versions.version import Version, run

__all__ = ["Models", "enrol"]

Models = Sequence[Version] | Sequence[nn.Module] | Mapping[str, nn.Module] | Mapping[str, Version]


def enrol(models: Models, example: Tensor, classes: int | None, bounds: Bounds) -> list[Version]:
    """Return the models as versions that answer for the same number of classes.

    Args:
        models: versions, or modules, or modules by name.
        example: (1, C, H, W), an input to try each on.
        classes: K; None to take it from the first model's output.
        bounds: range of the input values.

    Raises:
        ConfigurationError: no models, two of the same name, or a version for inputs in other bounds.
        WrongOutputError: a model returns something else than logits (1, K).
    """
    named = _named(models)
    if not named:
        raise ConfigurationError("a guard needs at least one version, got none")
    versions = []
    for name, model in named.items():
        width = _output_width(name, model if isinstance(model, nn.Module) else model.model, example)
        classes = width if classes is None else classes
        if width != classes:
            raise WrongOutputError(
                f"version {name!r} answers for {width} classes, but {classes} are expected; "
                "leave it out, give it an output layer for the same classes in the same order, or correct classes=[...]"
            )
        version = model if isinstance(model, Version) else Version.of(model, name, classes, bounds)
        versions.append(_named_so(version, name, bounds))
    return versions


def _named_so(version: Version, name: str, bounds: Bounds) -> Version:
    """The version under the name that the guard gives it."""
    if version.bounds != bounds:
        low, high = version.bounds.low, version.bounds.high
        raise ConfigurationError(
            f"version {name!r} takes inputs in [{low}, {high}], the guard in [{bounds.low}, {bounds.high}]; "
            f"pass bounds=Bounds({low}, {high}) if all versions do, or leave it out"
        )
    return replace(version, name=name)


def _named(models: Models) -> dict[str, Version | nn.Module]:
    if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
        raise ConfigurationError(f"expected a list or a dict of models, got one {type(models).__name__}; write [model]")
    if isinstance(models, Mapping):
        for name, model in models.items():
            _module_name(model, name)
        return dict(models)
    names = [model.name if isinstance(model, Version) else _module_name(model, i) for i, model in enumerate(models)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigurationError(f"versions need different names, several are called {', '.join(sorted(twice))}")
    return dict(zip(names, models, strict=True))


def _module_name(model: object, position: int | str) -> str:
    if not isinstance(model, (nn.Module, Version)):
        raise ConfigurationError(f"expected a torch module as version {position!r}, got a {type(model).__name__}")
    return f"{type(model).__name__}-{position}"


def _output_width(name: str, model: nn.Module, example: Tensor) -> int:
    try:
        output = run(model, example)
    except Exception as error:
        raise WrongOutputError(
            f"version {name!r} cannot take an input of shape {tuple(example.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise WrongOutputError(f"version {name!r} returned {came}, expected logits of shape (1, classes)")
    return int(output.shape[1])
