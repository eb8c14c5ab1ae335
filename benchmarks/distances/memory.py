"""Peak memory of one call, each in a fresh process, so that nothing that ran before counts.

A process that is started inherits its parent's `ru_maxrss` on Linux: the difference that one would read from it is
zero where the parent was larger. `VmHWM` starts anew with each program, and can be set back.

    python -m benchmarks.distances.memory REQUEST.safetensors      # what `measure` runs; prints the bytes
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.distances.ours import search
from benchmarks.distances.peers import foolbox_deepfool
from benchmarks.distances.subjects import Subject, build
from deepfailguard.store import load_tensors, save_tensors

__all__ = ["WORKS", "WorkName", "measure", "peak_bytes"]

WorkName = Literal["balanced", "foolbox", "training step"]
WORKS: Final[tuple[WorkName, ...]] = ("balanced", "foolbox", "training step")

ROOT: Final = Path(__file__).resolve().parents[2]
_BATCH: Final = 128
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(subject: Subject, work: WorkName) -> float | None:
    """Bytes that a call on 128 images takes at most, beyond what was there before and a call on one image.

    Returns:
        None where the system does not tell (neither CUDA nor Linux).
    """
    request = {
        "work": work,
        "subject": subject.name,
        "classes": subject.classes,
        "weights": str(subject.weights),
        "device": str(subject.test.device),
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request.safetensors"
        save_tensors(path, {"images": subject.test[:_BATCH]}, request)
        command = [sys.executable, "-m", "benchmarks.distances.memory", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {work!r} on {subject.name} failed:\n{done.stderr}")
    told = done.stdout.split()[-1]
    return None if told == "unknown" else float(told)


def peak_bytes(device: torch.device, call: Callable[[], Any]) -> int | None:
    """By how much the memory in use grew during a call, at its peak; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if not _STATUS.is_file():
        return None
    _set_back()
    before = _high_water()
    call()
    return _high_water() - before


def _set_back() -> None:
    """Let the high-water mark start from what is in use now."""
    try:
        _CLEAR.write_text("5")
    except OSError:  # not allowed here: then the mark before the call is what counts
        return


def _high_water() -> int:
    lines = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024


def _call_for(work: WorkName, model: nn.Module) -> Callable[[Tensor], Any]:
    if work == "training step":
        return _training_step(model)
    method = foolbox_deepfool() if work == "foolbox" else search("balanced")
    return lambda images: method.run(model, images)


def _training_step(model: nn.Module) -> Callable[[Tensor], Any]:
    """Forward, backward and plain gradient descent, which keeps no state: the least that a training step takes."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)

    def step(images: Tensor) -> None:
        model.train(len(images) > 1)  # one image alone has no batch statistics
        loss = F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.int64, device=images.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _serve(path: Path) -> int | None:
    request = load_tensors(path)
    told, device = request.metadata, torch.device(request.metadata["device"])
    torch.set_num_threads(told["threads"])
    images = request.tensors["images"].to(device)
    model = build(told["subject"], images.shape[1], told["classes"])
    model.load_state_dict(load_tensors(Path(told["weights"])).tensors)
    call = _call_for(told["work"], model.to(device).eval())
    call(images[:1])
    return peak_bytes(device, lambda: call(images))


if __name__ == "__main__":
    answer = _serve(Path(sys.argv[1]))
    print("unknown" if answer is None else answer)
