"""The same task by other libraries, called as their documentation has it.

foolbox comes with this package. adversarial-library, the Adversarial Robustness Toolbox and numba (for one attack of
foolbox) are optional. torchattacks is left out: it pins other versions of what we need.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.distances.timing import Method
from deepfailguard.torchvision_import import import_torchvision

__all__ = [
    "FOOLBOX",
    "FOOLBOX_DEFAULT",
    "PATIENT",
    "foolbox_deepfool",
    "missing",
    "patient_references",
]

FOOLBOX: Final = "foolbox DeepFool"
FOOLBOX_DEFAULT: Final = "foolbox DeepFool, 10 candidates"
SUPER_DEEPFOOL: Final = "adv-lib SuperDeepFool"
ALMA: Final = "adv-lib ALMA-500"
FAB: Final = "adv-lib FAB-100"
BRENDEL_BETHGE: Final = "foolbox Brendel-Bethge 300"
ART: Final = "ART DeepFool"
PATIENT: Final = (SUPER_DEEPFOOL, ALMA, FAB, BRENDEL_BETHGE)
"""Those that `tight` is held against."""

_STEPS, _OVERSHOOT, _CANDIDATES = 50, 0.02, 10
_MANY_CLASSES: Final = 20  # above, what takes a backward pass for each class and step would take hours
_OPTIONAL: Final = {
    "adv_lib": "SuperDeepFool, ALMA and FAB (adversarial-library)",
    "art": "DeepFool of the Adversarial Robustness Toolbox",
    "numba": "foolbox's Brendel-Bethge attack (numba)",
}


def missing() -> list[str]:
    """A line for each library that is not installed."""
    how = "pip install --no-deps -r benchmarks/requirements.txt"
    return [f"left out: {what}; to have it: {how}" for name, what in _OPTIONAL.items() if not _installed(name)]


def foolbox_deepfool(name: str = FOOLBOX, candidates: int = _CANDIDATES) -> Method:
    """L2 DeepFool by foolbox as a user calls it: parameters as they are, through the attack's `__call__`."""
    attack = _foolbox().attacks.L2DeepFoolAttack(steps=_STEPS, candidates=candidates, overshoot=_OVERSHOOT)

    def run(model: nn.Module, images: Tensor) -> Tensor:
        answers = _answers(model, images)
        victim = _foolbox().PyTorchModel(model, bounds=(0, 1), device=images.device)
        moved: Tensor = attack(victim, images, answers, epsilons=None)[0]
        return moved

    return Method(name, run)


def patient_references(classes: int, bank: Tensor, one_by_one: bool) -> list[Method]:
    """All others that are installed and can be waited for.

    Args:
        classes: K.
        bank: (N, C, H, W) images in which Brendel and Bethge's attack looks for starting points.
        one_by_one: whether Brendel and Bethge's attack, which works image by image, is to run.
    """
    few = classes <= _MANY_CLASSES
    methods = _adversarial_library(few) if _installed("adv_lib") else []
    if one_by_one and _installed("numba"):
        methods.append(_brendel_bethge(bank))
    if few and _installed("art"):
        methods.append(_art(classes))
    return methods


def _adversarial_library(few: bool) -> list[Method]:
    library = _adv_lib()

    def super_deepfool(model: nn.Module, images: Tensor) -> Any:
        return library.sdf(model, images, _answers(model, images))

    def alma(model: nn.Module, images: Tensor) -> Any:
        return library.alma(model, images, _answers(model, images), num_steps=500)

    def fab(model: nn.Module, images: Tensor) -> Any:
        return library.fab(model, images, _answers(model, images), norm=2, n_iter=100)

    others = [Method(FAB, fab)] if few else []
    return [Method(SUPER_DEEPFOOL, super_deepfool), Method(ALMA, alma), *others]


def _brendel_bethge(bank: Tensor) -> Method:
    foolbox = _foolbox()

    def run(model: nn.Module, images: Tensor) -> Tensor:
        answers = _answers(model, images)
        start, started = _nearest_others(images, answers, bank, _answers(model, bank))
        victim = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        attack = foolbox.attacks.L2BrendelBethgeAttack(steps=300)
        moved = images.clone()
        # It asserts that every start is answered otherwise, so those without one stay out and count as failures.
        wrong = foolbox.criteria.Misclassification(answers[started])
        moved[started] = attack.run(victim, images[started], wrong, starting_points=start[started])
        return moved

    return Method(BRENDEL_BETHGE, run)


def _nearest_others(images: Tensor, answers: Tensor, bank: Tensor, bank_answers: Tensor) -> tuple[Tensor, Tensor]:
    """For each image the nearest of the bank that is answered otherwise, and whether there is one."""
    apart = torch.cdist(images.flatten(1), bank.flatten(1))
    apart = apart.masked_fill(answers[:, None] == bank_answers, torch.inf)
    nearest = apart.min(1)
    return bank[nearest.indices], nearest.values.isfinite()


def _art(classes: int) -> Method:
    estimators = importlib.import_module("art.estimators.classification")
    evasion = importlib.import_module("art.attacks.evasion")

    def run(model: nn.Module, images: Tensor) -> Tensor:
        wrapped = estimators.PyTorchClassifier(
            model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(images.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="cpu" if images.device.type == "cpu" else "gpu",
        )
        attack = evasion.DeepFool(
            wrapped,
            max_iter=_STEPS,
            epsilon=_OVERSHOOT,
            nb_grads=_CANDIDATES,
            batch_size=len(images),
            verbose=False,
        )
        return torch.from_numpy(attack.generate(images.cpu().numpy()))

    return Method(ART, run)


def _foolbox() -> Any:
    return importlib.import_module("foolbox")  # half a second, and untyped


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _adv_lib() -> ModuleType:
    import_torchvision()  # it imports torchvision, which may need our help
    # Its loggers import visdom, whose source package does not build with a current setuptools; we plot nothing.
    if not _installed_or_stood_in("visdom"):
        stand_in = ModuleType("visdom")
        stand_in.Visdom = object  # type: ignore[attr-defined]
        sys.modules["visdom"] = stand_in
    return importlib.import_module("adv_lib.attacks")


def _installed_or_stood_in(name: str) -> bool:
    return name in sys.modules or _installed(name)


@torch.no_grad()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    answers: Tensor = model(images).argmax(1)
    return answers
