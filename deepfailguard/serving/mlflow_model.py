"""A guard as an MLflow model (flavour ``python_function``). Needs mlflow or mlflow-skinny.

The model's folder holds the guard's folder as it is, and names this module as its loader: it contains no pickle, and no
code but what the caller adds. What is loaded is a `GuardRuntime`, which keeps answering when versions fail.
"""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import deepfailguard
from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.saved import GuardCard, load_guard
from deepfailguard.guard.verdict import Verdict
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.runtime.settings import Settings
from deepfailguard.serving.answers import batch_of
from deepfailguard.versions.pool import TRUSTED_PACKAGES

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # MLflow is not content with its own type hints
    import mlflow.pyfunc  # `from mlflow import pyfunc` would put it off
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

__all__ = ["GuardModel", "log_guard", "save_guard_model"]

Arrays = dict[str, NDArray[Any]]

_CONFIG: Final[dict[str, Any]] = {
    "device": "cpu",
    "isolation": "in process",
    "public_key": None,
    "settings": {"deadline": 60.0},  # MLflow asks about whole tables at once
}
"""How the guard runs, unless `mlflow.pyfunc.load_model(..., model_config={...})` says otherwise."""


class GuardModel:
    """What MLflow asks: arrays of images in, arrays of answers out.

    Args:
        answer: the guard.
        card: of the guard.
    """

    def __init__(self, answer: Callable[[Tensor], Verdict], card: GuardCard) -> None:
        self.answer = answer
        self.card = card

    def predict(self, images: NDArray[Any]) -> Arrays:
        """The verdict on a batch as arrays, each with one row for each image.

        Args:
            images: (B, C, H, W) float32 in the guard's bounds.

        Returns:
            `labels` (B,) int64, -1 where no version answered; `abstained` (B,) bool; `failure_probability` (B,)
            float64; `probabilities` (B, K) float64; and of the N versions, in the order of the model's metadata,
            `version_labels` (B, N) int64, `version_failure_probability` and `weights` (B, N) float64, `distance` (B, N)
            float32, 0 where it was not `found` (B, N) bool. `degraded` (B,) bool and `ground` (B,) str tell of the
            whole batch; `problems` (B,) str what is wrong with an image, empty if nothing is.

        Raises:
            DataFormatError: the batch has another shape or is not floating point.
        """
        return _arrays(self.answer(torch.tensor(images)))  # a copy: a version that hangs may look at it later


def save_guard_model(
    folder: Path | str,
    path: Path | str,
    *,
    trusted: Sequence[str] = TRUSTED_PACKAGES,
    code_paths: Sequence[str] | None = None,
    pip_requirements: Sequence[str] | None = None,
) -> None:
    """Write a saved guard as an MLflow model.

    Args:
        folder: of the guard, as `GuardedPredictor.save` wrote it.
        path: where the model shall lie; must not exist or be empty.
        trusted: packages whose classes the guard may name.
        code_paths: folders of packages that whoever loads the model does not have: that of your architectures, say.
        pip_requirements: what must be installed there; if None this deepfailguard and the torch (and ONNX Runtime) that
            the guard runs with now.

    Raises:
        ConfigurationError: the guard has a version that cannot be built from its folder alone.
        CorruptFileError: the guard is damaged.

    Example:
        save_guard_model("guards/mnist", "models/mnist")
        model = mlflow.pyfunc.load_model("models/mnist")
        model.predict(images)["labels"]
    """
    mlflow.pyfunc.save_model(path=str(path), **_package(Path(folder), trusted, code_paths, pip_requirements))


def log_guard(
    folder: Path | str,
    name: str,
    *,
    registered_model_name: str | None = None,
    trusted: Sequence[str] = TRUSTED_PACKAGES,
    code_paths: Sequence[str] | None = None,
    pip_requirements: Sequence[str] | None = None,
) -> str:
    """Log a saved guard to MLflow's active run, and return the model's URI.

    Args:
        folder: of the guard, as `GuardedPredictor.save` wrote it.
        name: of the model in the run.
        registered_model_name: under which it is registered, if it shall be.
        trusted: as in `save_guard_model`.
        code_paths: as in `save_guard_model`.
        pip_requirements: as in `save_guard_model`.

    Raises:
        ConfigurationError: the guard has a version that cannot be built from its folder alone.
        CorruptFileError: the guard is damaged.
    """
    package = _package(Path(folder), trusted, code_paths, pip_requirements)
    logged = mlflow.pyfunc.log_model(name=name, registered_model_name=registered_model_name, **package)
    return str(logged.model_uri)


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> GuardModel:
    """What MLflow calls (the name is its own): the guard, every file verified, in a runtime."""
    config = dict(model_config)
    runtime = GuardRuntime.load(path, settings=Settings(**config.pop("settings")), **config)
    model = GuardModel(runtime, runtime.card)
    weakref.finalize(model, runtime.close)  # MLflow has no call for it; also runs when the process ends
    return model


def _package(
    folder: Path, trusted: Sequence[str], code_paths: Sequence[str] | None, pip_requirements: Sequence[str] | None
) -> dict[str, Any]:
    """What MLflow wants to know, of a guard that was seen to load."""
    card = load_guard(folder, trusted).card
    _check_known(card)
    GuardedPredictor.load(folder, trusted=trusted)
    middle = (card.bounds.low + card.bounds.high) / 2
    return {
        "loader_module": __name__,
        "data_path": str(folder),
        "model_config": _CONFIG | {"trusted": list(trusted)},
        "signature": _signature(card),
        "input_example": np.full((1, *card.input_shape), middle, np.float32),
        "code_paths": None if code_paths is None else list(code_paths),
        "pip_requirements": _requirements(card) if pip_requirements is None else list(pip_requirements),
        "metadata": {
            "classes": list(card.classes),
            "versions": list(card.names),
            "bounds": [card.bounds.low, card.bounds.high],
            "fingerprints": list(card.fingerprints),
        },
    }


def _check_known(card: GuardCard) -> None:
    unknown = [name for name, identity in zip(card.names, card.cards, strict=True) if identity is None]
    if unknown:
        raise ConfigurationError(
            f"{', '.join(unknown)}: not trained by deepfailguard, so that nobody could load it from the MLflow model; "
            "export it to ONNX, and fit the guard with deepfailguard.versions.onnx_model.onnx_version(...) in its place"
        )


def _requirements(card: GuardCard) -> list[str]:
    """What the guard's answers depend on; a local label (+cpu) of torch names no release."""
    runtimes = {c.made["onnxruntime"] for c in card.cards if c is not None and "onnxruntime" in c.made}
    ours, theirs = deepfailguard.__version__, torch.__version__.partition("+")[0]
    return [f"deepfailguard=={ours}", f"torch=={theirs}", *(f"onnxruntime>={version}" for version in sorted(runtimes))]


def _signature(card: GuardCard) -> ModelSignature:
    classes, versions = (-1, len(card.classes)), (-1, len(card.names))
    outputs: dict[str, tuple[type, tuple[int, ...]]] = {
        "labels": (np.int64, (-1,)),
        "abstained": (np.bool_, (-1,)),
        "failure_probability": (np.float64, (-1,)),
        "probabilities": (np.float64, classes),
        "version_labels": (np.int64, versions),
        "version_failure_probability": (np.float64, versions),
        "weights": (np.float64, versions),
        "distance": (np.float32, versions),
        "found": (np.bool_, versions),
        "degraded": (np.bool_, (-1,)),
        "ground": (np.str_, (-1,)),
        "problems": (np.str_, (-1,)),
    }
    given = TensorSpec(np.dtype(np.float32), (-1, *card.input_shape))
    told = (TensorSpec(np.dtype(kind), shape, name) for name, (kind, shape) in outputs.items())
    return ModelSignature(Schema([given]), Schema([*told]))


def _arrays(verdict: Verdict) -> Arrays:
    batch, rows = batch_of(verdict), range(len(verdict))
    found = np.isfinite(batch.outputs["distance"])
    return batch.outputs | {
        "distance": np.where(found, batch.outputs["distance"], np.float32(0)),  # JSON, which MLflow serves, has no NaN
        "found": found,
        "degraded": np.full(len(rows), batch.degraded),
        "ground": np.full(len(rows), verdict.ground),
        "problems": np.array([verdict.problems.get(row, "") for row in rows], dtype=np.str_),
    }
