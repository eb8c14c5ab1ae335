"""Picture files as images that a guard can be asked about."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from deepfailguard.guard.saved import GuardCard
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.settings import ServerSettings

__all__ = ["FORMATS", "Decoder", "Picture", "decoded"]

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MODES: Final = {1: "L", 3: "RGB"}
_PAPER: Final = {"RGBA": (255, 255, 255, 255), "LA": (255, 255)}
_WAITING: Final = 16  # pictures per thread
_TOO_LARGE: Final = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture as an image for the guard.

    Attributes:
        image: (1, C, H, W) float32 in the guard's bounds.
        resized_from: width and height before it was resized; None if it fitted.
    """

    image: NDArray[np.float32]
    resized_from: tuple[int, int] | None


class Decoder:
    """Decodes pictures in a few threads, and refuses more than can soon be done.

    Args:
        settings: how large a picture may be, and how many threads there are.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(settings.decoders, "decoder")
        self._pending = 0

    async def decode(self, content: bytes, card: GuardCard) -> Picture:
        """A picture from its file's content.

        Raises:
            RefusedError: it is none, too large, or too many wait.
        """
        if self._pending >= _WAITING * self.settings.decoders:
            raise RefusedError(503, f"{self._pending} pictures wait to be decoded; ask again", 1)
        self._pending += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, decoded, content, card, self.settings.largest_pixels)
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Let the threads end once they are done."""
        self._threads.shutdown(wait=False)


def decoded(content: bytes, card: GuardCard, largest: int) -> Picture:
    """A picture as the guard expects images: of its size and channels, scaled from black and white into its bounds.

    It is turned as its EXIF data say; of an animation, the first frame counts; what is transparent becomes white; 16
    bits become 8; and it is resized (bilinear, without keeping its aspect) as pictures of a data set are.

    Args:
        content: of the file.
        card: of the guard.
        largest: width times height that it may have; they are read before anything is decoded.

    Raises:
        RefusedError: it is no picture, damaged, or too large, or the guard takes no pictures.
    """
    channels, height, width = card.input_shape
    if channels not in _MODES:
        raise RefusedError(
            422, f"the guard takes images of {channels} channels, and pictures have 1 or 3; send tensors to /v2"
        )
    upright = _upright(content, largest).convert(_MODES[channels])
    size = upright.size
    if size != (width, height):
        upright = upright.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(upright, dtype=np.float32).reshape(height, width, channels) / np.float32(255)
    scaled = np.float32(card.bounds.low) + pixels * np.float32(card.bounds.width)
    image = np.clip(scaled, card.bounds.low, card.bounds.high).transpose(2, 0, 1)[None]
    return Picture(np.ascontiguousarray(image, dtype=np.float32), size if size != (width, height) else None)


def _upright(content: bytes, largest: int) -> Image.Image:
    """The picture, decoded and turned, in 8 bits and without transparency."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > largest:
                raise _too_large(f"{width} x {height}", largest)
            picture.load()
            return _opaque(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as error:
        raise RefusedError(
            400, f"expected a picture ({', '.join(FORMATS)}), but these {len(content)} bytes are none"
        ) from error
    except _TOO_LARGE as error:
        raise _too_large("more", largest) from error
    except RefusedError:
        raise
    except Exception as error:  # decoders raise all sorts of errors for damaged files
        raise RefusedError(400, f"the picture is damaged or cut off: {error}; send all of the file") from error


def _too_large(came: str, largest: int) -> RefusedError:
    return RefusedError(413, f"expected a picture of at most {largest} pixels, got {came}; make it smaller")


def _opaque(picture: Image.Image) -> Image.Image:
    picture = _in_8_bits(picture)
    if "transparency" in picture.info and picture.mode in ("L", "P", "RGB", "1"):
        picture = picture.convert("LA" if picture.mode in ("L", "1") else "RGBA")
    if picture.mode in ("PA", "La", "RGBa"):
        picture = picture.convert("RGBA")
    if picture.mode in _PAPER:
        return Image.alpha_composite(Image.new("RGBA", picture.size, _PAPER["RGBA"]), picture.convert("RGBA"))
    return picture


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits per channel: converting would cut off what is above 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values: NDArray[Any] = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels have mode {picture.mode}; save it with 8 or 16 bits")
    return Image.fromarray((values // 257).astype(np.uint8), "L")
