from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raydkm.data.columns import LARGEST, Columns
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
