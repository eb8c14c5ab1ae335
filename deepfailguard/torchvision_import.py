"""torchvision, imported so that it also works beside a CPU-only torch.

The torchvision wheel on PyPI is built for CUDA. Beside a CPU build of torch its binary part cannot be
loaded, and its import then fails because two operators were never declared. Declaring their schemas
(not their kernels) lets the import pass; calling those detection operators would still fail, and we never do.
"""

import importlib
from types import ModuleType

import torch

__all__ = ["import_torchvision"]

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a Library takes its schemas with it when it is collected


def import_torchvision() -> ModuleType:
    """Return the torchvision package."""
    if torch.version.cuda is None and not _libraries:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name, schema in _SCHEMAS.items():
            if not _is_declared(name):
                library.define(schema)
        _libraries.append(library)
    return importlib.import_module("torchvision")


def _is_declared(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)
