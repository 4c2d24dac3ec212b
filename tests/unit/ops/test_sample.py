from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from raydkm.ops.sample import Smallest


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 50, 3000, 30_000])
def test_the_smallest_keys_are_found_in_any_order_with_their_rows_and_copies(
    rng: np.random.Generator, count: int, threads: int
) -> None:
    keys = rng.permutation(np.repeat(rng.random(10_000), 2))
    rows = np.stack([keys, -keys], axis=1)
    sketch = Smallest(count)
    with ThreadPoolExecutor(threads) as pool:
        parts = np.array_split(np.arange(len(keys)), 77)
        list(pool.map(lambda part: sketch.add(keys[part], rows[part], 2 * keys[part]), parts))
    found, copies, weight, of = sketch.found()
    expected = np.unique(keys)[:count]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(copies, 2)
    np.testing.assert_array_equal(weight, 2 * expected)
    np.testing.assert_array_equal(of, np.stack([expected, -expected], axis=1))
    below = sketch.found(expected[-1])
    assert len(below[0]) == len(expected) - 1


def test_infinite_keys_are_left_out_and_an_empty_sketch_finds_nothing() -> None:
    sketch = Smallest(5)
    assert [len(column) for column in sketch.found()] == [0, 0, 0, 0]
    sketch.add(np.array([np.inf, 1.0]), np.ones((2, 3)), None)
    assert sketch.found()[0].tolist() == [1.0]


def test_memory_is_bounded_by_what_is_kept(rng: np.random.Generator) -> None:
    sketch = Smallest(2000)
    for _ in range(100):
        sketch.add(rng.random(4000), np.ones((4000, 2)), None)
        assert sum(len(part[0]) for part in sketch._parts) <= 1.25 * 2000 + 1000
