"""`OnnxModel`: a version that ONNX Runtime runs, as a module like any other. Needs onnxruntime."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError, WrongOutputError
from deepfailguard.identity import describe, weights_fingerprint
from deepfailguard.types import Bounds
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.probing import writes_of
from deepfailguard.versions.version import Version, check_logits, run

__all__ = ["OnnxArchitecture", "OnnxModel", "onnx_version"]

_LARGEST: Final = 2**31 - 1  # bytes; protobuf reads no more
_FLOATS: Final = ("tensor(float)", "tensor(float16)", "tensor(double)")
_ROUNDING: Final = 1e-3  # by which a probability may miss [0, 1]
_NOWHERE: Final = str(Path(os.devnull, "no external data"))  # a folder that cannot exist
_QUIET: Final = 3  # errors only


@dataclass(frozen=True, slots=True)
class _Opened:
    """A session and what it was made of."""

    session: ort.InferenceSession
    source: tuple[object, ...]
    given: str
    asked: str
    batch: int | None
    probabilities: bool


class OnnxModel(nn.Module):
    """A classifier in ONNX form, from images (B, C, H, W) to logits (B, K) float32.

    Its whole state is two buffers of bytes: the file, and the settings below. So its fingerprint covers every bit, a
    guard saves it without pickle, and loading into `OnnxModel.empty()` gives the model back. It can be copied and sent
    to another process. The session of ONNX Runtime is made from these bytes, and made anew when they change. It has as
    many threads as torch has then, and runs on a CUDA device if the module is on one and ONNX Runtime can, else on the
    CPU; either way images and logits pass through the CPU's memory. A model for a fixed number of images is given
    pieces of that size, the last one filled up with copies.

    There are no gradients and no features. Bits that flip in the session's own memory do not show in the buffers:
    answers to known inputs tell of them, checksums cannot.

    Args:
        source: path of a file, or its bytes; None for a module that waits for `load_state_dict`.
        output: name of the output to take; may be None if there is one only.
        probabilities: whether the output is a softmax; its logarithm is taken.

    Raises:
        ConfigurationError: not an ONNX model, one of more than one file, or not of one float32 input (B, C, H, W) and
            one floating point output (B, K).

    Example:
        model = OnnxModel("classifier.onnx")
        guard = GuardedPredictor.fit({"a": torch_model, "b": model}, (images, labels))
    """

    onnx: Tensor
    settings: Tensor

    def __init__(
        self, source: Path | str | bytes | None, output: str | None = None, probabilities: bool = False
    ) -> None:
        super().__init__()
        settings = json.dumps({"output": output, "probabilities": probabilities}, sort_keys=True)
        self.register_buffer("onnx", _as_tensor(b"" if source is None else _read(source)))
        self.register_buffer("settings", _as_tensor(settings.encode()))
        self._opened: _Opened | None = None
        if source is not None:
            self._open()

    @classmethod
    def empty(cls) -> Self:
        """A module without a model, for `load_state_dict`."""
        return cls(None)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) float32 of images (B, C, H, W), on the device of the images."""
        opened = self._open()
        given = images.detach().to("cpu", torch.float32).contiguous()
        parts = [_answer(opened, piece.numpy()) for piece in _pieces(given, opened.batch)]
        return torch.cat(parts)[: len(images)].to(images.device)

    def _open(self) -> _Opened:
        """The session of the bytes as they are."""
        # A process that was forked has none of the session's threads.
        tensors = self.onnx, self.settings
        source = (os.getpid(), *((t.device, t.data_ptr(), writes_of(t)) for t in tensors))
        if self._opened is None or self._opened.source != source:
            self._opened = _open(_as_bytes(self.onnx), json.loads(_as_bytes(self.settings)), self.onnx.device, source)
        return self._opened

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Take bytes of any length."""
        self._opened = None  # also where the new bytes lie at the place of older ones
        for name, buffer in list(self.named_buffers(recurse=False)):
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.dtype == torch.uint8 and given.ndim == 1:
                setattr(self, name, buffer.new_empty(len(given)))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def extra_repr(self) -> str:
        """Size and settings."""
        return f"{len(self.onnx)} bytes, {_as_bytes(self.settings).decode()}"


@dataclass(frozen=True, slots=True)
class OnnxArchitecture:
    """What the identity card of an ONNX version names, so that a saved guard is loaded without help."""

    def build(self, classes: int) -> nn.Module:
        """A module that waits for its bytes, whatever the number of classes."""
        return OnnxModel.empty()


def onnx_version(
    model: OnnxModel,
    name: str,
    classes: Sequence[str],
    input_shape: tuple[int, int, int],
    bounds: Bounds | None = None,
) -> Version:
    """A version with an identity card, so that a guard that has it can be loaded without ``models=[...]``.

    Of how it was trained the card says nothing.

    Args:
        model: the model.
        name: for people.
        classes: K class names in label order.
        input_shape: (C, H, W) of its images.
        bounds: range of the input values; [0, 1] if None.

    Raises:
        WrongOutputError: it does not answer such an image with K logits.
    """
    bounds = bounds or Bounds()
    check_logits(run(model, torch.full((1, *input_shape), bounds.low)), 1, len(classes), name)
    fingerprint = weights_fingerprint(model)
    card = IdentityCard(
        name=name,
        key=fingerprint,
        dataset="",
        source_fingerprint="",
        train_fingerprint="",
        classes=tuple(classes),
        input_shape=input_shape,
        bounds=bounds,
        architecture=describe(OnnxArchitecture()),
        recipe={},
        seed=0,
        receipts=(),
        outcome="completed",
        metrics={},
        curves={},
        fingerprint=fingerprint,
        made={"onnxruntime": ort.__version__},
    )
    return Version(name, model, len(classes), bounds, fingerprint, card)


def _read(source: Path | str | bytes) -> bytes:
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not content:
        raise ConfigurationError("expected an ONNX model, got nothing; for a module that is loaded later use empty()")
    if len(content) > _LARGEST:
        raise ConfigurationError(
            f"expected an ONNX model of at most 2 GB in one file, got {len(content) / 2**30:.1f} GB; quantise it, or "
            "wrap it in a module of your own"
        )
    return content


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def _open(content: bytes, settings: dict[str, Any], device: torch.device, source: tuple[object, ...]) -> _Opened:
    if not content:
        raise ConfigurationError("this OnnxModel holds no model yet; load_state_dict() one, or make it from a file")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # Threads that wait for the next batch by spinning take the cores from the versions that are asked next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in another file would be neither in the fingerprint nor in what a guard saves.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    try:
        session = ort.InferenceSession(content, options, providers=_providers(device, ort.get_available_providers()))
    except Exception as error:  # its classes have no other common base
        raise ConfigurationError(_refusal(str(error))) from error
    given, batch = _input_of(session)
    return _Opened(session, source, given, _output_of(session, settings["output"]), batch, settings["probabilities"])


def _providers(device: torch.device, available: Sequence[str]) -> list[str | tuple[str, dict[str, str]]]:
    """Where to run, the first choice first; the CPU is always there."""
    cuda = "CUDAExecutionProvider"
    if device.type != "cuda" or cuda not in available:
        return ["CPUExecutionProvider"]
    return [(cuda, {"device_id": str(device.index or 0)}), "CPUExecutionProvider"]


def _refusal(error: str) -> str:
    if "external data" in error.lower():
        return (
            "expected an ONNX model in one file, got one whose weights lie in others; export it with "
            "torch.onnx.export(..., external_data=False), or join what there is by "
            "onnx.save_model(onnx.load('model.onnx'), 'one.onnx'). Above 2 GB that cannot be: wrap it in a module of "
            f"your own. ONNX Runtime said: {error}"
        )
    return f"expected an ONNX model, got what ONNX Runtime {ort.__version__} cannot open: {error}"


def _input_of(session: ort.InferenceSession) -> tuple[str, int | None]:
    """The input's name, and the number of images if it is fixed."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise ConfigurationError(
            f"expected an ONNX model of one input (B, C, H, W) of type tensor(float), got {_in_words(inputs)}; "
            "export it for float32 images alone"
        )
    batch = inputs[0].shape[0]
    return inputs[0].name, batch if isinstance(batch, int) else None


def _output_of(session: ort.InferenceSession, name: str | None) -> str:
    outputs = {each.name: each for each in session.get_outputs()}
    if len(outputs) != 1 if name is None else name not in outputs:
        wanted = "one output" if name is None else f"an output {name!r}"
        raise ConfigurationError(
            f"expected an ONNX model of {wanted}, got {_in_words(outputs.values())}; name one: output='...'"
        )
    chosen = outputs[next(iter(outputs)) if name is None else name]
    if chosen.type not in _FLOATS or len(chosen.shape) not in (0, 2):  # 0: the file does not tell
        raise ConfigurationError(
            f"expected logits (B, K) of floating point, got the output {_in_words([chosen])}; choose another by "
            "output='...', or export the model up to its logits"
        )
    return str(chosen.name)


def _in_words(values: Any) -> str:
    return ", ".join(f"{each.name!r} {each.type} {tuple(each.shape)}" for each in values) or "none"


def _pieces(images: Tensor, batch: int | None) -> list[Tensor]:
    """Images in pieces of the size that the model wants, at least one; what is too much comes last."""
    size = batch or max(1, len(images))
    missing = -len(images) % size if len(images) else size
    if not missing:
        return list(images.split(size))
    # A copy of an image, not zeros: a model that is quantised as it runs takes its scale from all images of the batch.
    filling = images[-1:] if len(images) else images.new_zeros(1, *images.shape[1:])
    return list(torch.cat([images, filling.expand(missing, *images.shape[1:])]).split(size))


def _answer(opened: _Opened, images: np.ndarray[Any, Any]) -> Tensor:
    """Logits of one piece."""
    output = torch.from_numpy(opened.session.run([opened.asked], {opened.given: images})[0]).float()
    if output.ndim != 2 or len(output) != len(images):
        raise WrongOutputError(
            f"the ONNX model returned {tuple(output.shape)}, expected logits ({len(images)}, classes); was it exported "
            "for another number of images? Export it with a dynamic batch dimension"
        )
    if not opened.probabilities:
        return output
    if bool(((output < -_ROUNDING) | (output > 1 + _ROUNDING)).any()):
        raise WrongOutputError(
            f"the ONNX model returned values from {float(output.min()):.3g} to {float(output.max()):.3g}, expected "
            "probabilities; leave out probabilities=True if these are logits"
        )
    return output.clamp_min(torch.finfo(torch.float32).tiny).log()
