"""Picture folders against torchvision's ImageFolder and PIL."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepfailguard.data.pictures import LabelledFile, PictureReader, class_folders, labelled_files
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.torchvision_import import import_torchvision
from tests.unit.mydataset.made_data import made, write_pictures


def test_files_and_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    import_torchvision()
    oracle = importlib.import_module("torchvision.datasets").ImageFolder
    write_pictures(tmp_path, made(12, (6, 6, 3), 0), ("cat", "ape", "dog", "bee", "eel"))
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    classes = class_folders(tmp_path)
    assert list(classes) == oracle(str(tmp_path)).classes
    ours = [(str(file.path), file.label) for file in labelled_files(tmp_path, classes)]
    assert ours == oracle(str(tmp_path)).samples


def test_folders_named_by_numbers_keep_their_values(tmp_path: Path) -> None:
    for name in ("10", "9", "0", ".hidden"):
        (tmp_path / name).mkdir()
    assert class_folders(tmp_path) == ("0", "9", "10")


def test_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    pixels, labels = made(10, (5, 5, 3), 0)
    write_pictures(tmp_path, (pixels, labels), ("a", "b", "c", "d", "e"))
    part = PictureReader(5).read(tmp_path, labelled_files(tmp_path, class_folders(tmp_path)))
    places = [next(i for i in range(10) if np.array_equal(image, pixels[i])) for image in part.images]
    assert sorted(places) == list(range(10))
    assert part.labels.tolist() == labels[places].tolist()
    assert part.labels.tolist() != sorted(part.labels)


def test_a_limit_reads_no_more_files_than_it_needs(tmp_path: Path) -> None:
    write_pictures(tmp_path, made(10, (5, 5, 3), 0), ("a", "b", "c", "d", "e"))
    files = labelled_files(tmp_path, class_folders(tmp_path))
    kept = PictureReader(5).read(tmp_path, files, limit=3)
    whole = PictureReader(5).read(tmp_path, files)
    np.testing.assert_array_equal(kept.images, whole.images[:3])


def test_pictures_are_turned_upright_converted_and_resized(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 4, 4))  # left half blue
    turned = picture.getexif()
    turned[0x0112] = 6  # to be shown turned right by 90 degrees: the left half becomes the top
    picture.save(tmp_path / "x.png", exif=turned)
    image = PictureReader(8).read(tmp_path, [LabelledFile(tmp_path / "x.png", 0)]).images[0]
    assert image[0, 0].tolist() == [0, 0, 255]
    assert image[-1, -1].tolist() == [255, 0, 0]
    grey = PictureReader(8, 1).read(tmp_path, [LabelledFile(tmp_path / "x.png", 0)]).images
    assert grey.shape == (1, 8, 8, 1)
    assert grey[0, -1, -1, 0] == 76  # red is 0.299 of luma


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(made(1, (40, 40, 3), 0)[0][0]).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000).save(tmp_path / "deep.png")
    for name, message in (("text", "cannot identify"), ("cut", "truncated"), ("deep", "more than 8 bits")):
        with pytest.raises(
            DataFormatError, match=rf"{name}\.png: expected a picture, but it cannot be used: .*{message}"
        ):
            PictureReader(4).read(tmp_path, [LabelledFile(tmp_path / f"{name}.png", 0)])


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="expected one folder of pictures for each class"):
        class_folders(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataFormatError, match=r"no picture files \(\.bmp, \.jpeg.*in its class folders"):
        labelled_files(tmp_path, ["a"])
    with pytest.raises(DataFormatError, match="the folders a stand for none of the 1 classes"):
        labelled_files(tmp_path, ["b"])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="size >= 1 and 1 or 3 channels, got size=0, channels=3"):
        PictureReader(0)
    with pytest.raises(ConfigurationError, match="channels=2"):
        PictureReader(8, 2)  # type: ignore[arg-type]
