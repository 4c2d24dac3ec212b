"""Bodies that could be larger than they look, or that no reader expects, for models of vectors and of images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import raydkm
from raydkm.model import Model
from raydkm.serve import decode as module
from raydkm.serve.decode import IMAGES, decode
from raydkm.serve.errors import RefusalError
from raydkm.serve.schemas import ARROW, JSON, NPY

GOOD = [0.5] * 4


@pytest.fixture(scope="module")
def model() -> Model:
    rows = pa.array(np.random.default_rng(0).standard_normal((50, 4)).tolist())
    return raydkm.fit(pa.table({"x": rows}), column="x", clusters=3)


def stream(columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> bytes:
    batch, sink = pa.record_batch(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch, custom_metadata=metadata)
    return sink.getvalue().to_pybytes()


def refusal(body: bytes, kind: str, model: Model) -> tuple[int, str]:
    with pytest.raises(RefusalError) as refused:
        decode(body, kind, model, None, 100)
    return refused.value.status, refused.value.reason


def test_columns_beside_the_vectors_are_left_out(model: Model) -> None:
    rows, _ = decode(stream({"id": pa.array([7, 8]), "x": pa.array([GOOD, GOOD])}), ARROW, model, None, 100)
    assert np.array_equal(rows, [GOOD, GOOD])


def test_dictionaries_that_may_be_compressed_are_refused(model: Model) -> None:
    words = pa.array(["a" * 1000]).dictionary_encode()
    for compression in (None, "zstd"):
        status, reason = refusal(stream({"w": words, "x": pa.array([GOOD])}, compression=compression), ARROW, model)
        assert (status, "dictionary" in reason) == (415, True)


def test_compression_that_the_message_tells_of_is_refused(model: Model) -> None:
    body = stream(
        {"x": pa.array([GOOD])},
        {"ARROW:experimental_compression": "zstd"},
        metadata_version=pa.ipc.MetadataVersion.V4,
    )
    assert refusal(body, ARROW, model)[0] == 415


def test_two_columns_of_the_name_of_the_features_are_refused(model: Model) -> None:
    column = pa.array([GOOD])
    batch, sink = pa.record_batch([column, column], ["x", "x"]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    assert refusal(sink.getvalue().to_pybytes(), ARROW, model)[0] == 422


def test_json_as_large_as_a_request_may_be_is_parsed(model: Model) -> None:
    body = f'{{"vectors": [{",".join(["[1, 2, 3, 4]"] * 100)}], "top": 3}}'.encode()
    assert len(decode(body, JSON, model, None, 100)[0]) == 100
    assert refusal(body.replace(b"[[", b"[[1, 2, 3, 4], ["), JSON, model)[0] == 413


PIXELS = np.random.default_rng(1).integers(0, 256, (40, 6, 5), dtype=np.uint8)


def image(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


PNGS = [image(pixels) for pixels in PIXELS]


@pytest.fixture(scope="module")
def of_images() -> Model:
    return raydkm.fit(pa.table({"image": PNGS}), column="image", clusters=3, shape="1x6x5")


def test_encoded_images_in_arrow_are_the_rows_of_their_pixels(of_images: Model) -> None:
    expected = PIXELS.reshape(40, 30)
    for column in (pa.array(PNGS), pa.array([{"bytes": value, "path": ""} for value in PNGS])):
        for columns in ({"image": column}, {"any": column}, {"id": pa.array(range(40)), "image": column}):
            rows, _ = decode(stream(columns), ARROW, of_images, None, 40)
            np.testing.assert_array_equal(rows, expected)
    nested = pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.uint8())))
    np.testing.assert_array_equal(decode(stream({"image": nested}), ARROW, of_images, None, 40)[0], expected)


@pytest.mark.parametrize(("kind", "name"), list(zip(IMAGES, ("JPEG", "PNG", "WEBP"), strict=True)))
def test_an_image_as_the_body_is_one_row(of_images: Model, kind: str, name: str) -> None:
    rows, top = decode(image(np.full((12, 10, 3), 77, np.uint8), name), kind, of_images, 2, 1)
    assert (rows.shape, rows.dtype, top) == ((1, 30), np.uint8, 2)
    assert abs(rows.astype(int) - 77).max() <= 1


def test_pixels_as_numbers_are_rows(of_images: Model) -> None:
    numbers, file = PIXELS[:2].reshape(2, 30), io.BytesIO()
    np.save(file, numbers)
    text = f'{{"vectors": {numbers.tolist()}}}'.encode()
    for body, kind in ((file.getvalue(), NPY), (text, JSON)):
        np.testing.assert_array_equal(decode(body, kind, of_images, None, 2)[0], numbers)


def test_images_for_a_model_that_takes_none_are_refused(model: Model) -> None:
    for kind in IMAGES:
        status, reason = refusal(PNGS[0], kind, model)
        assert status == 415
        assert reason.startswith(f"content type {kind}: the model takes no images: encoded images need a shape")
    status, reason = refusal(stream({"x": pa.array(PNGS)}), ARROW, model)
    assert (status, "column 'x' is binary: encoded images need a shape" in reason) == (422, True)


@pytest.mark.parametrize(
    ("column", "status", "reason"),
    [
        (pa.array([], pa.binary()), 422, "no vectors"),
        (pa.array([b""] * 101), 413, "101 vectors; a request may have 100"),
        (pa.array([PNGS[0], None]), 422, "the body: row 1, column 'image': null"),
        (pa.array([{"bytes": None}, {"bytes": PNGS[0]}]), 422, "the body: row 0, column 'image': null"),
        (pa.array([*PNGS, PNGS[0][:50]]), 422, "the body: row 40, column 'image': not a readable image"),
        (pa.array([b"%!PS-Adobe-3.0 EPSF-3.0"]), 422, "not a readable image of BMP, GIF, JPEG, PNG, WEBP"),
        (pa.array([image(np.zeros((6000, 6000), np.uint8))]), 422, "more than the 33,554,432 pixels"),
        (pa.array([image(np.zeros((1, 2**24), np.uint8))]), 422, "an image of more than 67,108,864 pixels"),
        (pa.array([{"path": "a.png"}]), 422, "column 'image' is struct"),
        (pa.array(["a.png"]), 422, "column 'image' is string"),
        (pa.array([[1.0] * 31]), 422, "31 numbers in a row where the shape 1x6x5, channels first, has 30"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_hostile_images_in_arrow_are_refused_with_their_reason(
    of_images: Model, column: pa.Array, status: int, reason: str
) -> None:
    found, told = refusal(stream({"image": column}), ARROW, of_images)
    assert (found, reason in told) == (status, True), told


def test_a_bomb_as_the_body_is_refused_by_its_header(of_images: Model) -> None:
    status, reason = refusal(image(np.zeros((2**13, 2**13), bool)), "image/png", of_images)
    assert (status, reason) == (
        422,
        "the body: images up to this one have more than the 33,554,432 pixels that are decoded at a time; "
        "send fewer, or smaller ones",
    )


def test_small_images_that_become_large_rows_count_by_what_they_become(
    of_images: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_PIXELS", 30 * 20)
    dots = [image(np.zeros((1, 1), np.uint8))] * 21
    assert refusal(stream({"image": pa.array(dots)}), ARROW, of_images)[0] == 422
    assert len(decode(stream({"image": pa.array(dots[:20])}), ARROW, of_images, None, 100)[0]) == 20


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 60),
    kind=st.sampled_from([ARROW, "image/png"]),
)
def test_no_damaged_image_is_a_fault(of_images: Model, flips: list[tuple[int, int]], cut: int, kind: str) -> None:
    body = bytearray(stream({"image": pa.array(PNGS[:3])}) if kind == ARROW else PNGS[0])
    for place, value in flips:
        body[place % len(body)] = value
    try:
        rows, _ = decode(bytes(body[: len(body) - cut]), kind, of_images, None, 100)
    except RefusalError as error:
        assert error.status in (400, 413, 415, 422)
    else:
        assert rows.shape[1] == 30


def test_batches_without_vectors_are_not_read_one_by_one(model: Model) -> None:
    schema, sink = pa.schema([("x", pa.list_(pa.float32(), 4))]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for _ in range(102):
            writer.write_table(schema.empty_table())
            writer.write_batch(pa.record_batch([pa.array([], schema.field(0).type)], schema=schema))
    status, reason = refusal(sink.getvalue().to_pybytes(), ARROW, model)
    assert (status, "more batches than 100" in reason) == (413, True)


def test_a_reason_that_quotes_a_body_is_short(model: Model) -> None:
    names = {f"column_{i}": pa.array([1.0]) for i in range(5000)}
    _, reason = refusal(stream(names), ARROW, model)
    assert "column_0" in reason
    assert len(reason) < 1100
