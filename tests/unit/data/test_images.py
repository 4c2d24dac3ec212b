from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from raydkm.data import images
from raydkm.data.images import LARGEST_IMAGE, MOST_SCANS, decode, image_shape
from raydkm.errors import InputError

#: A smooth image (20, 30, 3), which JPEG hardly changes.
SMOOTH = np.stack(np.meshgrid(np.arange(30) * 8, np.arange(20) * 12), axis=-1)[..., [0, 1, 0]].astype(np.uint8)


def encoded(pixels: NDArray, kind: str = "PNG", **options: object) -> bytes:
    """Pixels (H, W) or (H, W, C) in a format."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def one(value: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    [row] = decode([value], shape, "row {}".format)
    return row.reshape(shape)


def refusal(value: bytes, shape: tuple[int, int, int] = (1, 8, 8), pixels: int | None = None) -> str:
    with pytest.raises(InputError) as refused:
        decode([encoded(SMOOTH), value], shape, "a.parquet: row {}, column 'x'".format, pixels)
    return str(refused.value)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, and whose pixels are missing."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"\0")) + part(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_encoded_comes_back_channels_first(kind: str, options: dict, channels: int) -> None:
    pixels = SMOOTH if channels == 3 else SMOOTH[..., 0]
    found = one(encoded(pixels, kind, **options), (channels, 20, 30))
    error = np.abs(found.astype(int) - pixels.reshape(20, 30, channels).transpose(2, 0, 1))
    assert error.max() <= (8 if kind == "JPEG" else 0)


def test_rows_are_in_order_and_of_one_type() -> None:
    values = [encoded(np.full((4, 5), value, np.uint8)) for value in (3, 1, 2)]
    rows = decode(values, (1, 4, 5), "row {}".format)
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows, np.repeat([[3], [1], [2]], 20, axis=1))
    assert decode([], (3, 4, 5), "row {}".format).shape == (0, 60)


def test_threads_decode_the_same() -> None:
    values = [encoded(np.roll(SMOOTH, shift, axis=1), "JPEG") for shift in range(16)]
    whole = decode(values, (3, 9, 9), "row {}".format)
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda value: decode([value], (3, 9, 9), "row {}".format), values)
    np.testing.assert_array_equal(np.concatenate(list(parts)), whole)


def test_colours_become_grey_and_grey_becomes_colours() -> None:
    grey = one(encoded(SMOOTH), (1, 20, 30))[0]
    np.testing.assert_allclose(grey, SMOOTH @ [0.299, 0.587, 0.114], atol=1)
    np.testing.assert_array_equal(one(encoded(grey), (3, 20, 30)), np.stack([grey] * 3))


def test_opacity_is_the_fourth_channel_and_is_dropped_where_there_are_fewer() -> None:
    pixels = np.dstack([SMOOTH, np.full((20, 30), 7, np.uint8)])
    np.testing.assert_array_equal(one(encoded(pixels), (4, 20, 30)), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(one(encoded(pixels), (3, 20, 30)), SMOOTH.transpose(2, 0, 1))
    assert one(encoded(SMOOTH), (4, 20, 30))[3].min() == 255


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_are_looked_up(kind: str) -> None:
    pixels = SMOOTH // 128 * 255
    image, file = Image.fromarray(pixels).convert("P"), io.BytesIO()
    image.save(file, kind, transparency=bytes([0, 9, 200]) if kind == "PNG" else 0)
    np.testing.assert_array_equal(one(file.getvalue(), (3, 20, 30)), pixels.transpose(2, 0, 1))


def test_16_bits_of_grey_become_their_upper_8() -> None:
    pixels = np.arange(0, 2**16, 64, dtype=np.uint16).reshape(32, 32)
    np.testing.assert_array_equal(one(encoded(pixels), (1, 32, 32))[0], pixels >> 8)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.fromarray(np.full((6, 6), value, np.uint8)) for value in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert set(one(file.getvalue(), (1, 6, 6)).ravel()) == {10}


@pytest.mark.parametrize("turned", [False, True])
def test_a_camera_that_was_held_turned_is_made_up_for(turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # 6: turn by 90 degrees clockwise
    found = one(encoded(SMOOTH, exif=exif), (3, 30, 20) if turned else (3, 20, 30))
    upright = np.rot90(SMOOTH, -1) if turned else SMOOTH
    np.testing.assert_array_equal(found, upright.transpose(2, 0, 1))


def test_an_image_is_shrunk_to_averages_under_triangles() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 24), dtype=np.uint8)
    distance = np.abs((np.arange(24) + 0.5)[None] - 3 * (np.arange(8) + 0.5)[:, None])  # from an output's centre
    weights = np.clip(1 - distance / 3, 0, None)  # a triangle as wide as the scale asks: no aliases
    weights /= weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(one(encoded(pixels), (1, 8, 8))[0], weights @ pixels @ weights.T, atol=1.5)


@given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_an_even_image_of_any_size_stays_even_in_any_other(value: int, h: int, w: int, height: int, width: int) -> None:
    found = one(encoded(np.full((h, w, 3), value, np.uint8)), (3, height, width))
    assert (found == value).all()


@pytest.mark.parametrize("shape", [None, (28,), (3, 100), (2, 28, 28), (1, 3, 28, 28)])
def test_shapes_that_are_of_no_image_are_refused(shape: tuple[int, ...] | None) -> None:
    with pytest.raises(InputError, match=r"^here: encoded images need a shape, .*\(--shape 3x64x64\), and"):
        image_shape(shape, "here")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"no image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"P5 2 2 255 abcd",
        encoded(SMOOTH, "TIFF"),
        encoded(SMOOTH, "ICO"),
        encoded(SMOOTH)[:-40],
        encoded(SMOOTH, "JPEG")[:-40],
        encoded(SMOOTH, "WEBP")[:-40],
        encoded(SMOOTH, "BMP")[:-40],
        png_of(0, 9),
        png_of(9, 9),
    ],
)
def test_bytes_that_are_no_whole_image_of_a_known_format_are_refused_by_row(value: bytes) -> None:
    told = refusal(value)
    assert told.startswith("a.parquet: row 1, column 'x': not a readable image of BMP, GIF, JPEG, PNG, WEBP (")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"),
    [
        (2**13, 2**13 + 1),
        (10_000, 10_000),  # Pillow would only warn
        (2**31 - 1, 2**31 - 1),
        (1, LARGEST_IMAGE // 8 + 1),  # in between, it would be 8 pixels wide and as high
        (LARGEST_IMAGE // 8 + 1, 1),
    ],
)
def test_an_image_is_refused_by_the_size_in_its_header(width: int, height: int) -> None:
    told = refusal(png_of(width, height))
    assert told.startswith("a.parquet: row 1, column 'x': an image of more than 67,108,864 pixels")


def test_a_webp_is_refused_by_its_size_without_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_IMAGE", 20 * 30 - 1)
    monkeypatch.setattr(images, "_decoded", None)
    with pytest.raises(InputError, match="row 0: an image of more than 599 pixels"):
        one(encoded(SMOOTH, "WEBP"), (3, 8, 8))


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    value = encoded(SMOOTH, "JPEG", progressive=True)
    start, stop = value.index(b"\xff\xda"), len(value) - 2
    last = value.rindex(b"\xff\xda", start, stop)
    assert "scans" in refusal(value[:stop] + value[last:stop] * MOST_SCANS + value[stop:])


def test_images_together_have_no_more_pixels_than_asked() -> None:
    small, large = encoded(SMOOTH[:10, :10]), encoded(SMOOTH)
    assert len(decode([small, small], (1, 8, 8), "row {}".format, 200)) == 2
    with pytest.raises(InputError, match=r"^row 1: images up to this one have more than the 600 pixels"):
        decode([small, large], (1, 8, 8), "row {}".format, 600)
    with pytest.raises(InputError, match=r"^row 0: 3 images of 8 x 8 pixels have more than the 190 pixels"):
        decode([b"", b"", b""], (1, 8, 8), "row {}".format, 190)


WHOLE = {
    "PNG": encoded(SMOOTH),
    "grey PNG": encoded(SMOOTH[..., 0], dpi=(72, 72)),
    "JPEG": encoded(SMOOTH, "JPEG", exif=Image.Exif()),
    "progressive JPEG": encoded(SMOOTH, "JPEG", progressive=True),
    "WEBP": encoded(SMOOTH, "WEBP"),
    "GIF": encoded(SMOOTH[..., 0], "GIF"),
    "BMP": encoded(SMOOTH, "BMP"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60)
@given(
    share=st.floats(0, 1),
    flips=st.lists(st.tuples(st.one_of(st.integers(0, 120), st.integers(0, 10_000)), st.integers(0, 255)), max_size=6),
)
def test_damaged_bytes_are_an_image_or_are_refused(kind: str, share: float, flips: list[tuple[int, int]]) -> None:
    value = bytearray(WHOLE[kind])
    for place, byte in flips:
        value[place % len(value)] = byte
    try:
        rows = decode([bytes(value[: round(share * len(value))])], (3, 7, 5), "row {}".format)
    except InputError as error:
        assert str(error).startswith("row 0: ")
    else:
        assert (rows.shape, rows.dtype) == ((1, 105), np.uint8)
