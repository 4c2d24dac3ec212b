from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydkm.data.columns import Block
from raydkm.data.source import MemorySource
from raydkm.errors import InputError
from raydkm.ops.batch import BATCH_ROWS


@settings(max_examples=10)
@given(st.integers(1, 3 * BATCH_ROWS), st.booleans())
def test_batches_are_fixed_ranges_that_cover_every_row_once(rows: int, weighted: bool) -> None:
    x = np.arange(rows, dtype=np.float32)[:, None]
    source = MemorySource.from_array(x, np.arange(rows) if weighted else None)
    batches = [source[i] for i in range(len(source))]
    assert [batch.first for batch in batches] == list(range(0, rows, BATCH_ROWS))
    np.testing.assert_array_equal(torch.cat([batch.rows for batch in batches]), x)
    weights = torch.cat([batch.weights() for batch in batches]).numpy()
    np.testing.assert_array_equal(weights, np.arange(rows) if weighted else np.ones(rows))


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())
def test_blocks_of_any_size_make_the_same_matrix(sizes: list[int], weighted: bool) -> None:
    x = np.arange(2 * sum(sizes), dtype=np.float32).reshape(-1, 2)
    cuts = np.cumsum([0, *sizes])
    blocks = [Block(x[a:b], np.arange(a, b, dtype=float) if weighted else None) for a, b in pairwise(cuts)]
    source = MemorySource.from_blocks(iter(blocks), len(x), total=1000)
    rows, weight = source.take(torch.arange(len(x)))
    np.testing.assert_array_equal(rows, x)
    np.testing.assert_array_equal(weight, np.arange(len(x)) if weighted else np.ones(len(x)))
    assert (source.rows, source.dim, source.total) == (len(x), 2, 1000)


@pytest.mark.parametrize(
    ("second", "told"),
    [(np.array([[0.1]]), "vectors of uint8 and of float64"), (np.ones((1, 3), np.uint8), "vectors of 1 and of 3 dim")],
)
def test_blocks_of_several_types_or_dimensions_are_refused_rather_than_cast(second: np.ndarray, told: str) -> None:
    with pytest.raises(InputError, match=told):
        MemorySource.from_blocks([Block(np.array([[200]], np.uint8), None), Block(second, None)], 2)


def test_a_worker_without_rows_has_no_batches() -> None:
    source = MemorySource.from_blocks([], 0, total=10)
    assert (len(source), source.rows, source.total) == (0, 0, 10)


def test_rows_are_taken_by_position_with_their_weights() -> None:
    source = MemorySource.from_array(np.arange(10.0)[:, None], np.arange(10) * 2)
    rows, weight = source.take(torch.tensor([7, 0, 3]))
    assert rows[:, 0].tolist() == [7.0, 0.0, 3.0]
    assert weight.tolist() == [14.0, 0.0, 6.0]


@pytest.mark.parametrize(
    ("dtype", "held"),
    [
        (np.float16, torch.float16),
        (np.float32, torch.float32),
        (np.float64, torch.float64),
        (np.uint8, torch.uint8),
        (np.int8, torch.int8),
        (np.int32, torch.float64),
        (np.uint16, torch.float64),
        (np.int64, torch.float64),
    ],
)
def test_arrays_are_held_in_their_type_or_one_that_holds_their_values(dtype, held: torch.dtype) -> None:
    x = np.arange(6, dtype=dtype).reshape(3, 2)
    rows, _ = MemorySource.from_array(x).take(torch.arange(3))
    assert rows.dtype == held
    assert rows.tolist() == x.tolist()


def test_arrays_in_any_layout_and_tensors_are_accepted_and_never_written_to() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    frozen = x.copy()
    frozen.flags.writeable = False
    graph = torch.from_numpy(x.copy()).requires_grad_()
    for array in (np.asfortranarray(x), x[:, ::-1][:, ::-1], frozen, torch.from_numpy(x), graph, x.astype(">f4")):
        rows, _ = MemorySource.from_array(array).take(torch.arange(3))
        np.testing.assert_array_equal(rows, x)


@pytest.mark.parametrize(
    ("array", "weight", "told"),
    [
        (np.ones(3), None, "got 1 dimension"),
        (np.ones((2, 2, 2)), None, "got 3 dimension"),
        (np.ones((0, 2)), None, "has no rows"),
        (np.ones((2, 0)), None, "has no features"),
        (np.array([["a"]]), None, "dtype <U1"),
        (np.ones((2, 2), dtype=complex), None, "dtype complex128"),
        (np.array([[1.0], [np.nan], [np.nan]]), None, "^row 1: NaN"),
        (np.array([[1.0], [1.0], [-np.inf]]), None, "^row 2: an infinite value"),
        (np.array([[1.0], [1e30]]), None, "^row 1: a value beyond"),
        (np.ones((3, 2)), np.ones(2), r"3 rows but weights of shape \(2,\)"),
        (np.ones((3, 2)), np.array([1.0, -1.0, 1.0]), "^row 1: weight -1; weights are between 0 and 1e"),
    ],
)
def test_arrays_that_cannot_serve_are_refused(array, weight, told: str) -> None:
    with pytest.raises(InputError, match=told):
        MemorySource.from_array(array, weight)


def test_a_zero_row_is_refused_where_directions_count() -> None:
    with pytest.raises(InputError, match=r"^row 1: a zero vector"):
        MemorySource.from_array(np.array([[1.0, 0.0], [0.0, 0.0]]), unit=True)
