"""Small data sets in every accepted form; the same seed gives the same pixels in each form."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deepfailguard.seeding import generator

TRAIN, TEST, CLASSES = 50, 20, 5
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Part = tuple[Pixels, Labels]
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def made(count: int, shape: tuple[int, ...], seed: int) -> Part:
    """Random bytes, so that no two images are alike, and labels that go round."""
    pixels = torch.randint(256, (count, *shape), generator=generator(seed, "made"), dtype=torch.uint8)
    return pixels.numpy(), np.arange(count, dtype=np.int64) % CLASSES


def made_parts(shape: tuple[int, ...]) -> tuple[Part, Part]:
    return made(TRAIN, shape, seed=1), made(TEST, shape, seed=2)


def write_idx(folder: Path, packed: bool = False) -> None:
    (x_train, y_train), (x_test, y_test) = made_parts((28, 28))
    folder.mkdir(parents=True)
    for name, values in zip(IDX, (x_train, y_train, x_test, y_test), strict=True):
        header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        content = header + values.astype(np.uint8).tobytes()
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


def write_cifar_npz(path: Path) -> None:
    (x_train, y_train), (x_test, y_test) = made_parts((32, 32, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def write_cifar_binary(root: Path) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (x_train, y_train), (x_test, y_test) = made_parts((32, 32, 3))
    pieces = [*zip(np.split(x_train, 5), np.split(y_train, 5), strict=True), (x_test, y_test)]
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    for name, (pixels, labels) in zip(names, pieces, strict=True):
        rows = [
            bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(pixels, labels, strict=True)
        ]
        (folder / name).write_bytes(b"".join(rows))


def write_cifar10_1(root: Path, version: str) -> None:
    folder = root / "CIFAR10_1"
    folder.mkdir(parents=True)
    pixels, labels = made(TEST, (32, 32, 3), seed=3)
    np.save(folder / f"cifar10.1_{version}_data.npy", pixels)
    np.save(folder / f"cifar10.1_{version}_labels.npy", labels.astype(np.int32))


def write_arrays(
    folder: Path, ending: str = ".npy", scaled: bool = False, shape: tuple[int, ...] = (3, 32, 32)
) -> None:
    """The published files: bytes, or floats in [0, 1]."""
    folder.mkdir(parents=True)
    for part, (pixels, labels) in zip(("train", "test"), made_parts(shape), strict=True):
        images = pixels.astype(np.float32) / 255 if scaled else pixels
        for name, values in ((f"x_{part}", images), (f"y_{part}", labels)):
            if ending == ".npy":
                np.save(folder / f"{name}.npy", values)
            else:
                torch.save(torch.from_numpy(values), folder / f"{name}.pth")


def write_pictures(folder: Path, part: Part, names: tuple[str, ...], ending: str = ".png") -> None:
    """One folder per class name."""
    pixels, labels = part
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / names[label] / f"{number:03d}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def write_folders(root: Path, names: tuple[str, ...] = ("a", "b", "c", "d", "e"), test: bool = True) -> None:
    train_part, test_part = made_parts((40, 48, 3))
    write_pictures(root / "train", train_part, names)
    if test:
        write_pictures(root / "test", test_part, names)


def write_gtsrb(root: Path) -> None:
    """As torchvision writes it: folders for training, a table for testing."""
    train_part, (pixels, labels) = made_parts((40, 48, 3))
    write_pictures(root / "gtsrb/GTSRB/Training", train_part, tuple(f"{label:05d}" for label in range(CLASSES)), ".ppm")
    folder = root / "gtsrb/GTSRB/Final_Test/Images"
    folder.mkdir(parents=True)
    rows = ["Filename;Width;Height;ClassId"]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(folder / f"{number:05d}.ppm")
        rows.append(f"{number:05d}.ppm;48;40;{label}")
    (root / "gtsrb/GT-final_test.csv").write_text("\n".join(rows) + "\n")
