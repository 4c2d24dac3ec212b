from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydkm.ops.keys import content_hashes, draw_keys, sample_weights, splitmix64

DTYPES = [np.float16, np.float32, np.float64, np.uint8, np.int8]


def keys_of(rows: np.ndarray, seed: int = 0, weight: np.ndarray | None = None, batch: int = 0) -> np.ndarray:
    return draw_keys(content_hashes(rows, weight), weight, seed, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**31), dim=st.integers(1, 11))
def test_keys_follow_their_rows_through_any_order(dtype, seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((40, dim)) * 30).astype(np.int8).astype(dtype)
    order = rng.permutation(40)
    keys, moved = keys_of(rows), keys_of(rows[order])
    # identical rows may swap their keys among each other, which no sample can tell
    assert sorted(zip(rows.tolist(), keys, strict=True)) == sorted(zip(rows[order].tolist(), moved, strict=True))


def test_distinct_rows_have_distinct_positive_keys_whatever_their_batch(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((20_000, 3)).astype(np.float32)
    keys = keys_of(rows)
    assert len(np.unique(keys)) == 20_000
    assert keys.min() > 0
    np.testing.assert_array_equal(keys, keys_of(rows, batch=7))


def test_identical_rows_have_distinct_keys_but_for_the_first_of_each_batch() -> None:
    rows = np.ones((500, 4), dtype=np.float32)
    keys = [keys_of(rows, batch=batch) for batch in range(3)]
    assert all(len(np.unique(of_batch)) == 500 for of_batch in keys)
    assert len(np.unique(keys)) == 3 * 500 - 2


def test_the_smallest_keys_are_a_uniform_sample(rng: np.random.Generator) -> None:
    rows = np.arange(1000, dtype=np.float32)[:, None]
    drawn = np.zeros(1000)
    for seed in range(400):
        drawn[np.argsort(keys_of(rows, seed))[:100]] += 1
    share = drawn / 400  # each of mean 0.1 and standard deviation 0.015
    assert share.mean() == pytest.approx(0.1)
    assert abs(share - 0.1).max() < 6 * 0.015
    assert share.std() < 1.5 * 0.015
    assert abs(share[:500].mean() - 0.1) < 0.004


def test_another_seed_is_another_sample() -> None:
    rows = np.arange(1000, dtype=np.float32)[:, None]
    one, other = (set(np.argsort(keys_of(rows, seed))[:100]) for seed in (1, 2))
    assert len(one & other) < 30


@given(st.integers(0, 63), st.integers(0, 2**64 - 1))
def test_every_bit_of_the_mixer_moves_about_half_of_its_output(bit: int, x: int) -> None:
    flipped = splitmix64(np.array([x, x ^ (1 << bit)], dtype=np.uint64))
    assert 8 <= int(flipped[0] ^ flipped[1]).bit_count() <= 56


@pytest.mark.parametrize("dim", [1, 2, 7, 8])
def test_the_place_of_a_value_counts(dim: int) -> None:
    rows = np.zeros((dim, dim), dtype=np.float32)
    np.fill_diagonal(rows, 1)
    assert len(np.unique(content_hashes(rows, None))) == dim


def test_rows_of_weight_zero_are_never_drawn_and_weights_change_the_draw() -> None:
    rows = np.arange(10, dtype=np.float32)[:, None]
    weight = np.array([1.0, 0.0] * 5)
    keys = keys_of(rows, weight=weight)
    assert np.isinf(keys[1::2]).all()
    assert np.isfinite(keys[::2]).all()
    assert not (content_hashes(rows, weight) == content_hashes(rows, weight + 1)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_of_a_row_does_not_change_its_hash(dtype) -> None:
    rows = np.arange(60).reshape(12, 5)
    assert (content_hashes(rows.astype(dtype), None) == content_hashes(rows.astype(np.float32), None)).all()


def test_many_copies_of_few_rows_are_drawn_evenly_over_all_batches(rng: np.random.Generator) -> None:
    distinct = rng.standard_normal((50, 3)).astype(np.float32)
    which = rng.integers(50, size=(200, 1000))
    keys = np.concatenate([keys_of(distinct[batch], batch=number) for number, batch in enumerate(which)])
    drawn = which.reshape(-1)[np.argsort(keys)[:5000]]
    assert np.bincount(drawn, minlength=50).min() > 50  # 100 each, were they all told apart


def test_heavy_rows_are_drawn_more_often_and_the_sample_weighs_what_all_rows_weigh(rng: np.random.Generator) -> None:
    weight = np.where(np.arange(20_000) % 10 == 0, 30.0, 1.0)
    rows = rng.standard_normal((20_000, 2)).astype(np.float32)
    total, heavy = [], []
    for seed in range(30):
        keys = keys_of(rows, seed, weight)
        threshold = np.partition(keys, 2000)[2000]
        drawn = keys < threshold
        estimate = sample_weights(weight[drawn], threshold)
        total.append(estimate.sum())
        heavy.append(estimate[weight[drawn] == 30.0].sum())
    assert np.mean(total) == pytest.approx(weight.sum(), rel=0.02)
    assert np.mean(heavy) == pytest.approx(2000 * 30.0, rel=0.02)


def test_where_all_rows_are_sampled_their_weights_are_their_own() -> None:
    weight = np.array([0.5, 1.0, 1e12])
    assert (sample_weights(weight, np.inf) == weight).all()


def test_rows_that_differ_only_beyond_float32_have_keys_of_their_own() -> None:
    rows = 1.7e9 + np.arange(1000.0)[:, None] * 1e-3  # seconds since 1970, a millisecond apart
    assert len(np.unique(rows.astype(np.float32))) == 1
    assert len(np.unique(keys_of(rows))) == 1000
    swapped = np.array([[0.1, 0.2], [0.2, 0.1]]) + 1.7e9
    assert len(np.unique(content_hashes(swapped, None))) == 2
    zeros = np.array([[0.0], [-0.0]])
    assert (content_hashes(zeros, None) == content_hashes(zeros.astype(np.float32), None)).all()
