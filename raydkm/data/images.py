"""Encoded images (PNG, JPEG, ...) → rows of pixels; bytes that are no image, or too large a one, are refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raydkm.errors import InputError

#: Formats that are read: rasters whose header tells their size, not documents or programs (PDF, EPS, SVG).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")

#: Pixels above which an image is not decoded: 100 kB may fill gigabytes. Pillow only warns, at 1.3 times as many.
LARGEST_IMAGE = 2**26

#: Scans of a JPEG above which it is not decoded: each may take a few bytes, and a pass over all pixels.
MOST_SCANS = 500

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_shape(shape: tuple[int, ...] | None, place: str) -> tuple[int, int, int]:
    """`shape` if images can be decoded to it; an `InputError` that begins with `place` if not."""
    if shape is None or len(shape) != 3 or shape[0] not in _MODES:
        told = "there is none" if shape is None else f"this one is {'x'.join(map(str, shape))}"
        raise InputError(
            f"{place}: encoded images need a shape, channels x height x width with 1, 3 or 4 channels "
            f"(--shape 3x64x64), and {told}"
        )
    channels, height, width = shape
    return channels, height, width


def decode(
    values: Sequence[bytes], shape: tuple[int, int, int], place: Callable[[int], str], pixels: int | None = None
) -> NDArray[np.uint8]:
    """Decode images, upright, in grey (1 channel), RGB (3) or RGBA (4), resized by antialiased bilinear interpolation.

    Of an animation the first frame is taken. Resizing keeps the whole image, not its aspect ratio.

    Parameters
    ----------
    values : sequence of n bytes
        Of the formats `FORMATS`.
    shape : (C, H, W)
    place : callable
        ``place(i)`` names image i in messages.
    pixels : int, optional
        The most that the images may have together, before or after they are resized.

    Returns
    -------
    ndarray (n, C·H·W) of uint8
        Channels first.

    Raises
    ------
    InputError
        Where bytes are no whole image, and, by its header alone, where an image has more than `LARGEST_IMAGE` pixels.
    """
    if pixels is not None and len(values) * shape[1] * shape[2] > pixels:
        raise InputError(f"{place(0)}: {len(values)} images of {_size(shape)}{_beyond(pixels)}")
    rows = np.empty((len(values), *shape), np.uint8)
    seen = 0
    for number, value in enumerate(values):
        try:
            with _opened(value, shape) as image:
                seen += _pixels_in_work(image, shape)
                if pixels is not None and seen > pixels:
                    raise InputError(f"{place(number)}: images up to this one{_beyond(pixels)}")
                rows[number] = _decoded(image, shape)
        except InputError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise InputError(
                f"{place(number)}: an image of more than {LARGEST_IMAGE:,} pixels, or of so many while it is resized "
                f"to {_size(shape)}"
            ) from None
        except Exception as error:  # noqa: BLE001 - decoders of damaged bytes raise whatever they stumble over
            reason = str(error).splitlines() or [type(error).__name__]
            raise InputError(f"{place(number)}: not a readable image of {', '.join(FORMATS)} ({reason[0]})") from None
    return rows.reshape(len(values), prod(shape))


def _opened(value: bytes, shape: tuple[int, int, int]) -> Image.Image:
    """An image of which only the header has been read, and which is safe to decode."""
    image = Image.open(io.BytesIO(value), formats=FORMATS)
    if _pixels_in_work(image, shape) > LARGEST_IMAGE:
        raise Image.DecompressionBombError
    if value.startswith(b"\xff\xd8") and value.count(b"\xff\xda") > MOST_SCANS:
        raise ValueError(f"a JPEG of more than {MOST_SCANS} scans")
    return image


def _pixels_in_work(image: Image.Image, shape: tuple[int, int, int]) -> int:
    """Of the image, of what it becomes, or between: it is resized along one axis after the other."""
    return max(image.width, shape[2]) * max(image.height, shape[1])


def _decoded(image: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pixels (C, H, W) of an opened image."""
    channels, height, width = shape
    if channels < 4:
        image.info.pop("transparency", None)  # which colour is transparent; Pillow warns where it is lost
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert(_MODES[channels])
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} x {shape[2]} pixels"


def _beyond(pixels: int) -> str:
    return f" have more than the {pixels:,} pixels that are decoded at a time; send fewer, or smaller ones"
