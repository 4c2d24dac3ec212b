from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from raydkm.data.columns import LARGEST, Columns, decode_blocks
from raydkm.errors import InputError

MATRIX = np.arange(12, dtype=np.float32).reshape(6, 2)
DTYPES = [np.float16, np.float32, np.float64, np.uint8, np.int8]


def fixed(x: NDArray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])


def variable(x: NDArray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(len(x) + 1) * x.shape[1], pa.int32()), pa.array(x.reshape(-1)))


def large(x: NDArray) -> pa.Array:
    offsets = pa.array(np.arange(len(x) + 1) * x.shape[1], pa.int64())
    return pa.LargeListArray.from_arrays(offsets, pa.array(x.reshape(-1)))


def tensor(x: NDArray) -> pa.Array:
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(x.dtype), [1, x.shape[1]])
    return pa.ExtensionArray.from_storage(kind, fixed(x))


KINDS: list[Callable[[NDArray], pa.Array]] = [fixed, variable, large, tensor]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def extract(table: pa.Table, column: str = "x", weight: str | None = None, first: int = 0, unit: bool = False):
    columns = Columns.named(column, weight, table.schema.names)
    columns.check(table.schema, "here")
    return columns.extract(table, "here", first, unit=unit)


@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_list_like_columns_of_every_type_become_the_matrix(kind, dtype) -> None:
    block = extract(pa.table({"x": kind(MATRIX.astype(dtype))}))
    assert block.rows.dtype == dtype
    np.testing.assert_array_equal(block.rows, MATRIX)
    assert block.weight is None


@every_kind
@given(start=st.integers(0, 6), length=st.integers(1, 6))
def test_slices_of_arrays_batches_and_tables_keep_their_rows(kind, start: int, length: int) -> None:
    expected = MATRIX[start : start + length]
    column = kind(MATRIX)
    table = pa.table({"x": column})
    for sliced in (
        pa.table({"x": column.slice(start, length)}),
        table.slice(start, length),
        table.to_batches()[0].slice(start, length),
    ):
        rows = extract(sliced).rows
        assert len(rows) == len(expected)
        if len(expected):
            np.testing.assert_array_equal(rows, expected)


@every_kind
def test_chunked_tables_are_joined_in_order(kind) -> None:
    x = MATRIX
    parts = [pa.table({"x": kind(x[:1])}), pa.table({"x": kind(x[1:1])}), pa.table({"x": kind(x[1:]).slice(2)})]
    np.testing.assert_array_equal(extract(pa.concat_tables(parts)).rows, np.concatenate([x[:1], x[3:]]))


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        ((pa.float32(), pa.float32()), np.float32),
        ((pa.float16(), pa.float32()), np.float32),
        ((pa.float64(), pa.float32()), np.float64),
        ((pa.int64(), pa.uint8()), np.float64),
        ((pa.bool_(), pa.int32()), np.float64),
    ],
)
def test_scalar_columns_are_joined_as_one_vector_in_the_order_named(kinds, dtype) -> None:
    first, second = np.array([0, 1, 1]), np.array([1, 0, 5])
    table = pa.table(
        {"b": pa.array(second.tolist(), kinds[1]), "other": ["u", "v", "w"], "a": pa.array(first).cast(kinds[0])}
    )
    rows = extract(table, "a, b").rows
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, np.stack([first, second], axis=1))


def test_a_column_whose_name_has_commas_wins_over_splitting() -> None:
    table = pa.table({"a,b": fixed(MATRIX), "a": [1.0] * 6, "b": [2.0] * 6})
    np.testing.assert_array_equal(extract(table, "a,b").rows, MATRIX)


def test_the_dimension_is_known_from_the_schema_where_the_type_fixes_it() -> None:
    x = MATRIX
    table = pa.table({"f": fixed(x), "v": variable(x), "t": tensor(x), "s": x[:, 0], "r": x[:, 1]})
    known = {c: Columns.named(c, None, table.schema.names).check(table.schema, "here") for c in ("f", "v", "t", "s,r")}
    assert known == {"f": 2, "v": None, "t": 2, "s,r": 2}


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16(), pa.int64(), pa.uint8(), pa.bool_()])
def test_weights_of_any_numeric_type_become_float64(kind) -> None:
    block = extract(
        pa.table(
            {"x": fixed(MATRIX), "w": pa.array([0, 1, 1, 0, 1, 1]).cast(kind)},
        ),
        weight="w",
    )
    assert block.weight.dtype == np.float64
    np.testing.assert_array_equal(block.weight, [0, 1, 1, 0, 1, 1])


@pytest.mark.parametrize(
    ("column", "weight", "told"),
    [
        ("y", None, "no column 'y'; there are: x, text, number, texts, wide"),
        ("x", "w", "no column 'w'"),
        ("text", None, "column 'text' is string"),
        ("number,text", None, "column 'text' is string"),
        ("x,number", None, "column 'x' is fixed_size_list"),
        ("texts", None, "column 'texts' holds string"),
        ("wide", None, "column 'wide' holds int64"),
        ("x", "text", "weight column 'text' is string"),
        (None, None, r"name the feature column \(--column\); there are: x, text"),
    ],
)
def test_columns_that_cannot_serve_are_refused_by_name(column, weight, told: str) -> None:
    x = MATRIX
    table = pa.table(
        {"x": fixed(x), "text": ["a"] * 6, "number": [1.0] * 6, "texts": [["a"]] * 6, "wide": [[2**40]] * 6}
    )
    with pytest.raises(InputError, match=told):
        extract(table, column, weight)


@every_kind
def test_a_null_vector_is_refused_with_its_row(kind) -> None:
    mask = pa.array([False, False, True, False, False, False])
    storage = kind(MATRIX)
    nulled = pa.compute.if_else(mask, None, storage.storage if kind is tensor else storage)
    column = pa.ExtensionArray.from_storage(storage.type, nulled) if kind is tensor else nulled
    with pytest.raises(InputError, match=r"^here: row 102, column 'x': null"):
        extract(pa.table({"x": column}), first=100)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 2), pa.list_(pa.float32()), pa.large_list(pa.float32())])
def test_a_null_inside_a_vector_is_refused_with_its_row(kind) -> None:
    column = pa.array([[1, 2], [3, 4], [5, None]], kind)
    with pytest.raises(InputError, match=r"^here: row 2, column 'x': a null inside the vector"):
        extract(pa.table({"x": column}))
    with pytest.raises(InputError, match=r"^here: row 1, column 'x': a null inside the vector"):
        extract(pa.table({"x": column.slice(1)}))


def test_a_null_in_a_scalar_or_weight_column_is_refused_with_its_row_and_column() -> None:
    table = pa.table({"a": [1.0, 2.0, 3.0], "b": [1, None, 3]})
    with pytest.raises(InputError, match=r"^here: row 1, column 'b': null"):
        extract(table, "a,b")
    with pytest.raises(InputError, match=r"^here: row 1, column 'b': null"):
        extract(table, "a", weight="b")


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float32())])
@pytest.mark.parametrize("bad", [[], [1.0], [1.0, 2.0, 3.0]])
def test_ragged_vectors_are_refused_with_their_row(kind, bad: list[float]) -> None:
    column = pa.array([[1.0, 2.0], [3.0, 4.0], bad], kind)
    with pytest.raises(InputError, match=rf"^here: row 2, column 'x': {len(bad)} numbers where .* have 2"):
        extract(pa.table({"x": column}))


def test_empty_vectors_are_refused() -> None:
    with pytest.raises(InputError, match="row 0, column 'x': an empty vector"):
        extract(pa.table({"x": pa.array([[], []], pa.list_(pa.float32()))}))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("value", "told"), [(np.nan, "NaN"), (np.inf, "an infinite value"), (-np.inf, "an infinite")])
def test_values_that_are_not_finite_are_refused_with_their_row(dtype, value: float, told: str) -> None:
    x = MATRIX.astype(dtype)
    x[4, 1] = value
    with pytest.raises(InputError, match=rf"^here: row 14, column 'x': {told}"):
        extract(pa.table({"x": fixed(x)}), first=10)


@pytest.mark.parametrize("sign", [-1, 1])
def test_values_whose_squares_overflow_are_refused_and_the_largest_ones_are_not(sign: int) -> None:
    x = MATRIX.astype(np.float64)
    x[3, 0] = sign * LARGEST
    assert extract(pa.table({"x": fixed(x)})).rows[3, 0] == sign * LARGEST
    x[3, 0] *= 1.01
    with pytest.raises(InputError, match="row 3, column 'x': a value beyond"):
        extract(pa.table({"x": fixed(x)}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_vector_is_refused_only_where_directions_count(dtype) -> None:
    x = MATRIX.astype(dtype) + 1
    x[5] = 0
    assert len(extract(pa.table({"x": fixed(x)})).rows) == 6
    with pytest.raises(InputError, match="row 5, column 'x': a zero vector"):
        extract(pa.table({"x": fixed(x)}), unit=True)


@pytest.mark.parametrize("bad", [-1.0, -1e-300, np.nan, np.inf, 1.01 * LARGEST])
def test_impossible_weights_are_refused_with_their_row(bad: float) -> None:
    table = pa.table({"x": fixed(MATRIX), "w": [1.0, 0.0, 2.0, bad, 1.0, 1.0]})
    with pytest.raises(InputError, match=r"^here: row 3, column 'w': weight .*; weights are between 0 and"):
        extract(table, weight="w")


def test_integers_beyond_float64_are_refused_by_row_and_column() -> None:
    table = pa.table({"a": [1, 2**60 + 1], "b": [1, 2]})
    with pytest.raises(InputError, match=r"^here: row 1, column 'a,b': a value beyond"):
        extract(table, "a,b")
    with pytest.raises(InputError, match=r"^here: row 1, column 'a': weight 1.15292e\+18"):
        extract(table, "b", weight="a")


IMAGES = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)


def shaped(column: pa.Array | pa.ChunkedArray, shape: tuple[int, ...], first: int = 0) -> NDArray:
    table = pa.table({"x": column})
    columns = Columns.named("x", None, ["x"], shape=shape)
    dim = columns.check(table.schema, "here")
    rows = columns.extract(table, "here", first, unit=False).rows
    assert rows.shape == (len(table), dim)
    assert rows.dtype == columns.dtype(table.schema)
    return rows


def lists(sizes: tuple[int | None, ...], leaf: pa.DataType, large: bool = False) -> pa.DataType:
    """Lists in lists, each of a fixed length, or (None) of any."""
    kind = leaf
    for size in reversed(sizes):
        kind = pa.large_list(kind) if large else pa.list_(kind, -1 if size is None else size)
    return kind


@pytest.mark.parametrize("leaf", [pa.uint8(), pa.float32()])
@pytest.mark.parametrize(
    "kind",
    [
        lambda leaf: lists((None, None, None), leaf),
        lambda leaf: lists((None, None, None), leaf, large=True),
        lambda leaf: lists((3, 4, 5), leaf),
        lambda leaf: lists((None, 4, None), leaf),
    ],
)
def test_lists_in_lists_become_rows_channels_first(kind: Callable[[pa.DataType], pa.DataType], leaf) -> None:
    column = pa.array(IMAGES.tolist(), kind(leaf))
    expected = IMAGES.reshape(2, 60)
    np.testing.assert_array_equal(shaped(column, (3, 4, 5)), expected)
    np.testing.assert_array_equal(shaped(column.slice(1), (3, 4, 5)), expected[1:])
    np.testing.assert_array_equal(shaped(column.slice(2), (3, 4, 5)), expected[2:])
    np.testing.assert_array_equal(shaped(pa.chunked_array([column.slice(1), column]), (3, 4, 5)), expected[[1, 0, 1]])


@pytest.mark.parametrize("length", [None, 20])
def test_flat_lists_and_those_without_the_one_channel_are_rows_of_a_shape(length: int | None) -> None:
    grey = IMAGES[:, 0]
    rows = grey.reshape(2, 20)
    np.testing.assert_array_equal(shaped(pa.array(rows.tolist(), lists((length,), pa.uint8())), (1, 4, 5)), rows)
    inner = (None, None) if length is None else (4, 5)
    np.testing.assert_array_equal(shaped(pa.array(grey.tolist(), lists(inner, pa.uint8())), (1, 4, 5)), rows)
    np.testing.assert_array_equal(shaped(pa.array(grey.tolist(), lists(inner, pa.float32())), (4, 5)), rows)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 20), (60,)])
def test_tensors_of_the_shape_are_rows(shape: tuple[int, ...]) -> None:
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES.reshape(2, *shape))
    np.testing.assert_array_equal(shaped(column, shape), IMAGES.reshape(2, 60))
    if len(shape) == 1:
        np.testing.assert_array_equal(shaped(column, (3, 4, 5)), IMAGES.reshape(2, 60))


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (
            pa.array([[1.0] * 59], pa.list_(pa.float32(), 59)),
            "here: column 'x': 59 numbers in a row where the shape 3x4x5",
        ),
        (
            pa.array([[1.0] * 61], pa.list_(pa.float32())),
            "here: row 7, column 'x': 61 numbers in a row where .* has 60",
        ),
        (
            pa.array(IMAGES.transpose(0, 2, 3, 1).tolist(), lists((4, 5, 3), pa.uint8())),
            "column 'x': 4x5x3 .* 3x4x5, chan",
        ),
        (pa.array(IMAGES.transpose(0, 2, 3, 1).tolist(), lists((None,) * 3, pa.uint8())), "row 7, .* 4x5x3 .* 3x4x5"),
        (pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES.transpose(0, 2, 3, 1).copy()), "column 'x': 4x5x3 numbers"),
        (pa.array([[[1] * 20] * 3], lists((3, 20), pa.uint8())), "column 'x': 3x20 numbers"),
        (pa.array([[[1.0, 2.0], [3.0]]], lists((None, None), pa.float32())), "row 7, .*: 1 numbers where .* have 2"),
        (pa.array([[[1, 2]], [[1, None]]], lists((None, None), pa.uint8())), "row 8, .*: a null inside the vector"),
        (pa.array([[[1, 2]], [None]], lists((None, 2), pa.uint8())), "row 8, .*: a null inside the vector"),
        (pa.array([[[1, 2]], [[]]], lists((None, None), pa.uint8())), "row 8, .*: 0 numbers where .* have 2"),
        (pa.array([[[]]], lists((None, None), pa.uint8())), "row 7, .*: an empty vector"),
        (pa.array([[["a"]]]), "column 'x' holds string"),
        (pa.array([1.0]), "column 'x': 1 numbers in a row where the shape 3x4x5, channels first, has 60"),
    ],
)
def test_rows_that_are_not_of_the_shape_are_refused_with_both(column: pa.Array, told: str) -> None:
    with pytest.raises(InputError, match=told):
        shaped(column, (3, 4, 5), first=7)


def test_lists_in_lists_without_a_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"column 'x' is list<.*lists in lists need a shape \(--shape 3x64x64\)"):
        extract(pa.table({"x": pa.array(IMAGES.tolist(), lists((None, None, None), pa.uint8()))}))


def png(pixels: NDArray) -> bytes:
    """Pixels (C, H, W) as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


PNGS = [png(image) for image in IMAGES]
ENCODED = {
    "binary": pa.array(PNGS, pa.binary()),
    "large_binary": pa.array(PNGS, pa.large_binary()),
    "struct": pa.array([{"bytes": value, "path": "a.png"} for value in PNGS]),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_encoded_images_are_the_rows_of_their_pixels(kind: str) -> None:
    column, expected = ENCODED[kind], IMAGES.reshape(2, 60)
    for part in (slice(None), slice(1, None), slice(0, 0)):
        np.testing.assert_array_equal(shaped(column[part], (3, 4, 5)), expected[part])
    np.testing.assert_array_equal(shaped(pa.chunked_array([column[1:], column]), (3, 4, 5)), expected[[1, 0, 1]])
    batch = pa.record_batch({"x": column})
    rows = Columns(("x",), shape=(3, 4, 5)).extract(batch, "here", 0, unit=False).rows
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize("shape", [None, (60,), (2, 5, 6)])
def test_encoded_images_need_a_shape_of_images(kind: str, shape: tuple[int, ...] | None) -> None:
    schema = pa.schema({"x": ENCODED[kind].type})
    with pytest.raises(InputError, match=r"here: column 'x' is .*: encoded images need a shape, .*--shape 3x64x64"):
        Columns(("x",), shape=shape).check(schema, "here")


def test_missing_and_damaged_images_are_refused_with_their_row() -> None:
    for column in (pa.array([*PNGS, None]), pa.array([*({"bytes": v} for v in PNGS), {"bytes": None}])):
        with pytest.raises(InputError, match=r"^here: row 102, column 'x': null"):
            shaped(column, (3, 4, 5), first=100)
    with pytest.raises(InputError, match=r"^here: row 102, column 'x': null"):
        shaped(pa.array([*({"bytes": value} for value in PNGS), None]), (3, 4, 5), first=100)
    with pytest.raises(InputError, match=r"^here: row 101, column 'x': not a readable image"):
        shaped(pa.array([PNGS[0], PNGS[1][:-30]]), (3, 4, 5), first=100)


def test_blocks_of_a_data_set_are_decoded_and_keep_their_other_columns() -> None:
    table = pa.table({"id": [7, 8], "x": ENCODED["struct"], "w": [1.0, 2.0]})
    columns = Columns(("x",), "w", (3, 4, 5))
    found = decode_blocks(table, columns)
    assert found.schema == pa.schema({"id": pa.int64(), "x": pa.list_(pa.uint8(), 60), "w": pa.float64()})
    assert found.drop(["x"]) == table.drop(["x"])
    np.testing.assert_array_equal(columns.extract(found, "here", 0, unit=False).rows, IMAGES.reshape(2, 60))
    assert decode_blocks(found, columns) is found
    assert decode_blocks(table.slice(0, 0), columns).schema == found.schema
    with pytest.raises(InputError, match="a block of the data set: row 1, column 'x': null"):
        decode_blocks(pa.table({"x": [PNGS[0], None], "w": [1.0, 2.0]}), columns)
