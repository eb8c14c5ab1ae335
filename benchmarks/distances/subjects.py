"""The models that are measured: trained here, seeded, and kept so that a second run starts at once."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.distances.compact_cnn import CompactCNN
from benchmarks.distances.images import DataName, in_colour, ten_classes, two_digit_numbers
from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.identity import digest
from deepfailguard.seeding import generator, seed_everything
from deepfailguard.store import load_tensors, save_tensors
from deepfailguard.torchvision_import import import_torchvision
from deepfailguard.versions.version import device_of
from mymodel.compact_resnet import CompactResNet

__all__ = ["SUBJECTS", "Recipe", "Subject", "build", "load_subject", "splits_for"]

SUBJECTS: Final = ("compact_cnn", "compact_resnet", "resnet18", "resnet18_43")
_BATCH: Final = 128
_DECAY: Final = 0.01


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a subject is made.

    Attributes:
        data: the data set of the subjects with ten classes.
        limit: training images of those subjects at most.
        epochs: passes over the training images.
        rate: highest learning rate.
        seed: of weights and order.
    """

    data: DataName = "digits"
    limit: int = 12500
    epochs: int = 6
    rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model with its images.

    Attributes:
        name: one of `SUBJECTS`.
        classes: K.
        model: in evaluation mode on the device, parameters as training leaves them (they require gradients).
        accuracy: on the test part.
        calibration: (B, C, H, W) images that it was not trained on, on the CPU.
        test: (B, C, H, W) others, on the device.
        weights: the file that they lie in.
    """

    name: str
    classes: int
    model: nn.Module = field(repr=False)
    accuracy: float
    calibration: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    weights: Path


def splits_for(name: str, recipe: Recipe, root: Path) -> Splits:
    """The images of a subject."""
    if name == "resnet18_43":
        return two_digit_numbers()
    splits = ten_classes(recipe.data, root, recipe.limit)
    return in_colour(splits) if name == "resnet18" else splits


def build(name: str, channels: int, classes: int) -> nn.Module:
    """An untrained subject; its first weights come from torch's global seed."""
    if name == "compact_cnn":
        return CompactCNN(channels, classes)
    if name == "compact_resnet":
        return CompactResNet(channels=channels).build(classes)
    network: nn.Module = import_torchvision().models.resnet18(num_classes=classes)
    return network


def load_subject(
    name: str, recipe: Recipe, device: torch.device, root: Path, folder: Path, say: Callable[[str], None]
) -> Subject:
    """A subject, from its file or trained anew.

    Args:
        name: one of `SUBJECTS`.
        recipe: how it is made.
        device: where it runs.
        root: of the data files.
        folder: of the weights.
        say: gets a line about a training.
    """
    splits = splits_for(name, recipe, root)
    seed_everything(recipe.seed, "distance benchmark", name)
    model = build(name, splits.input_shape[0], len(splits.classes)).to(device)
    made_of = {**asdict(recipe), "subject": name, "train": splits.train.fingerprint}
    path = folder / f"{name}-{digest(made_of)[:12]}.safetensors"
    if not path.is_file():
        say(f"training {name} on {len(splits.train)} images of {splits.name}")
        _train(model, splits.train, recipe)
        save_tensors(path, model.state_dict(), made_of)
    model.load_state_dict(load_tensors(path).tensors)
    model.eval()
    right = _accuracy(model, splits.test)
    test = splits.test.images.to(device)
    return Subject(name, len(splits.classes), model, right, splits.calibration.images, test, path)


def _train(model: nn.Module, images: ImageSet, recipe: Recipe) -> None:
    device, draw = device_of(model), generator(recipe.seed, "distance benchmark", "order")
    optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=_DECAY)
    steps = recipe.epochs * (len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps + 1)
    model.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=draw)
        for index in order[: len(order) // _BATCH * _BATCH].split(_BATCH):
            logits = model(images.images[index].to(device))
            loss = F.cross_entropy(logits, images.labels[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def _accuracy(model: nn.Module, images: ImageSet) -> float:
    device = device_of(model)
    answers = [model(chunk.to(device)).argmax(1).cpu() for chunk in images.images.split(_BATCH)]
    return float((torch.cat(answers) == images.labels).double().mean())
