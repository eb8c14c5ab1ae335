"""Picture files of all kinds, and files that are none."""

import asyncio
import dataclasses
import io
import struct
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepfailguard.guard.saved import GuardCard
from deepfailguard.serving import pictures
from deepfailguard.serving.pictures import Decoder, Picture, decoded
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.settings import ServerSettings
from deepfailguard.types import Bounds
from tests.serving_examples import GuardDouble

GREY = GuardDouble().card
COLOUR = dataclasses.replace(GREY, input_shape=(3, 8, 8))
RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
MOST = 1_000_000


def file_of(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **more)
    return stream.getvalue()


def read(content: bytes, card: GuardCard = GREY) -> Picture:
    return decoded(content, card, MOST)


def test_a_grey_picture_is_read_to_the_pixel() -> None:
    picture = read(file_of(Image.fromarray(RAMP)))
    assert picture.resized_from is None
    assert picture.image.shape == (1, 1, 8, 8)
    assert picture.image.dtype == np.float32
    assert np.allclose(picture.image[0, 0], RAMP / 255, atol=1e-7)


def test_a_colour_picture_is_read_to_the_pixel() -> None:
    pixels = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2)
    picture = read(file_of(Image.fromarray(pixels)), COLOUR)
    assert np.allclose(picture.image[0], pixels.transpose(2, 0, 1) / 255, atol=1e-7)


def test_values_are_scaled_into_the_guards_bounds() -> None:
    card = dataclasses.replace(GREY, bounds=Bounds(-1.0, 1.0))
    image = read(file_of(Image.fromarray(RAMP)), card).image
    assert image.min() == -1.0
    assert image.max() == 1.0
    assert np.allclose(image[0, 0], RAMP / 127.5 - 1, atol=1e-6)


def test_another_size_is_resized_and_told() -> None:
    picture = read(file_of(Image.new("L", (20, 10), 128)))
    assert picture.resized_from == (20, 10)
    assert np.allclose(picture.image, 128 / 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_each_format_gives_the_same_pixels(kind: str) -> None:
    more = {"lossless": True} if kind == "WEBP" else {}
    colour = Image.fromarray(np.stack([RAMP] * 3, axis=2))
    assert np.allclose(read(file_of(colour, kind, **more)).image[0, 0], RAMP / 255, atol=0.005)


def test_a_jpeg_is_near_enough() -> None:
    smooth = Image.fromarray(RAMP)
    assert np.allclose(read(file_of(smooth, "JPEG", quality=95)).image[0, 0], RAMP / 255, atol=0.05)


def test_colours_become_grey_and_grey_becomes_colours() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert np.allclose(read(file_of(red)).image, 76 / 255, atol=0.005)
    grey = read(file_of(Image.new("L", (8, 8), 77)), COLOUR).image
    assert np.allclose(grey, 77 / 255)
    assert grey.shape == (1, 3, 8, 8)


def test_cmyk_is_no_negative() -> None:
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert read(file_of(white, "JPEG"), COLOUR).image.min() > 0.95


def test_what_is_transparent_becomes_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    half = Image.new("LA", (8, 8), (0, 128))
    assert read(file_of(clear), COLOUR).image.min() == 1.0
    assert np.allclose(read(file_of(half)).image, 127 / 255, atol=0.01)


def test_a_transparent_colour_of_a_palette_becomes_white() -> None:
    picture = Image.new("P", (8, 8), 3)
    picture.putpalette([0, 0, 0] * 256)
    assert read(file_of(picture, transparency=3), COLOUR).image.min() == 1.0
    assert read(file_of(picture), COLOUR).image.max() == 0.0


def test_sixteen_bits_become_eight() -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert np.allclose(read(file_of(deep)).image[0, 0], RAMP / 255, atol=1e-6)


def test_bilevel_pictures_are_black_and_white() -> None:
    image = read(file_of(Image.fromarray(RAMP > 127))).image
    assert set(np.unique(image)) == {0.0, 1.0}


def test_floating_pixels_are_refused() -> None:
    with pytest.raises(RefusedError, match="save it with 8 or 16 bits") as error:
        read(file_of(Image.fromarray(RAMP.astype(np.float32)), "TIFF"))
    assert error.value.status == 400


def test_a_picture_is_turned_as_its_camera_was_held() -> None:
    picture = Image.fromarray(np.repeat(RAMP, 4, 0).repeat(4, 1)).resize((8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = read(file_of(picture, "PNG", exif=exif)).image[0, 0]
    assert np.allclose(turned, np.rot90(np.asarray(picture), -1) / 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_picture_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("L", (8, 8), value).convert("RGB") for value in (0, 120, 250)]
    more = {"lossless": True} if kind == "WEBP" else {}
    image = read(file_of(frames[0], kind, save_all=True, append_images=frames[1:], **more)).image
    assert image.max() == 0.0


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and little more."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1001, 1000), (10_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(RefusedError, match=f"at most {MOST} pixels") as error:
        read(header_of_png(*size))
    assert error.value.status == 413


WHOLE = {
    "png": file_of(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))),
    "jpeg": file_of(Image.new("RGB", (64, 64), "red"), "JPEG"),
    "gif": file_of(Image.new("RGB", (64, 64), "red"), "GIF"),
    "webp": file_of(Image.new("RGB", (64, 64), "red"), "WEBP"),
    "tiff": file_of(Image.new("RGB", (64, 64), "red"), "TIFF"),
    "bmp": file_of(Image.new("RGB", (64, 64), "red"), "BMP"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_that_is_cut_off_is_refused(kind: str) -> None:
    for share in (0.02, 0.1, 0.5, 0.9):
        with pytest.raises(RefusedError) as error:
            read(WHOLE[kind][: int(len(WHOLE[kind]) * share)])
        assert error.value.status == 400, share


@pytest.mark.parametrize("kind", WHOLE)
def test_a_damaged_file_is_refused_or_read_and_never_an_error_of_ours(kind: str) -> None:
    random = np.random.default_rng(1)
    for _ in range(60):
        content = bytearray(WHOLE[kind])
        for place in random.integers(0, len(content), 4):
            content[place] = random.integers(0, 256)
        try:
            told: object = read(bytes(content)).image.shape
        except RefusedError as error:
            told = error.status
        assert told in ((1, 1, 8, 8), 400, 413)


@pytest.mark.parametrize("content", [b"x", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", bytes(1000)])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(RefusedError, match=r"expected a picture|damaged") as error:
        read(content)
    assert error.value.status == 400


def test_a_guard_of_other_channels_takes_no_pictures() -> None:
    card = dataclasses.replace(GREY, input_shape=(4, 8, 8))
    with pytest.raises(RefusedError, match="images of 4 channels") as error:
        read(WHOLE["png"], card)
    assert error.value.status == 422


def test_no_more_pictures_wait_than_can_soon_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def slow(*_: Any) -> str:
        assert gate.wait(60)
        return "done"

    monkeypatch.setattr(pictures, "decoded", slow)

    async def work() -> None:
        decoder = Decoder(ServerSettings(decoders=1))
        tasks = [asyncio.create_task(decoder.decode(b"", GREY)) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="16 pictures wait") as error:
            await decoder.decode(b"", GREY)
        assert error.value.status == 503
        assert error.value.retry_after == 1
        gate.set()
        assert await asyncio.gather(*tasks) == ["done"] * 16
        assert await decoder.decode(b"", GREY) == "done"
        decoder.close()

    asyncio.run(work())
