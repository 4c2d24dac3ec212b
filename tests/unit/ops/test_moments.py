from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydkm.ops.batch import Batch
from raydkm.ops.exact import Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.moments import Extent, moment_fields, moment_statistics, moments
from raydkm.ops.temperature import collapse_temperature


def extent_of(rows: np.ndarray, weight: np.ndarray | None = None, first: int = 0) -> Extent:
    return Extent.of(batch_of(rows, weight, first), Frame.identity("euclidean", rows.shape[1]))


def batch_of(rows: np.ndarray, weight: np.ndarray | None = None, first: int = 0) -> Batch:
    return Batch(first, torch.from_numpy(rows), None if weight is None else torch.from_numpy(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), weighted=st.booleans(), offset=st.sampled_from([0.0, 5.0, 1000.0]))
def test_moments_are_those_of_float64(dtype, metric: str, seed: int, weighted: bool, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((200, 4)) * [1, 2, 0.1, 5] + offset).astype(np.float32)
    weight = rng.random(200) * 3 if weighted else None
    w = np.ones(200) if weight is None else weight
    exact = x.astype(np.float64)
    exact = exact / np.linalg.norm(exact, axis=1, keepdims=True) if metric == "cosine" else exact
    identity = Frame.identity(metric, 4, dtype)
    extent, frame = Extent.of(batch_of(x, weight), identity), identity.centred_at(torch.from_numpy(exact[:50].mean(0)))
    statistics = Statistics(moment_fields(extent, frame, covariance=True))
    moment_statistics(frame, extent.max_weight, covariance=True)(batch_of(x, weight), statistics)
    found = moments(statistics, extent, frame, covariance=True)

    z = exact - frame.shift.numpy()
    scale = np.abs(exact).max()  # of the numbers that float32 rounds before the shift
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6 * scale}
    assert found.rows == 200
    assert found.weight == pytest.approx(w.sum(), rel=1e-12)
    np.testing.assert_allclose(found.mean.numpy(), w @ z / w.sum(), **close)
    covariance = np.cov(z.T, aweights=w, bias=True)
    assert found.square == pytest.approx(float(w @ np.square(z).sum(1)), rel=close["rtol"], abs=close["atol"] * w.sum())
    np.testing.assert_allclose(found.covariance.numpy(), covariance, **close)
    assert found.column_variance == pytest.approx(np.trace(covariance) / 4, rel=close["rtol"], abs=close["atol"])
    assert bool((frame(torch.from_numpy(x)).abs().double() <= found.bound).all())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_extents_join_in_any_order_to_that_of_the_whole(sizes: list[int], random) -> None:
    rng = np.random.default_rng(sum(sizes))
    x, weight = rng.standard_normal((sum(sizes), 3)), rng.random(sum(sizes))
    cuts = np.cumsum([0, *sizes])
    parts = [extent_of(x[a:b], weight[a:b], a) for a, b in pairwise(cuts)]
    random.shuffle(parts)
    joined = Extent.empty(3)
    for part in parts:
        joined |= part
    assert joined.rows == len(x)
    assert joined.max_weight == weight.max()
    np.testing.assert_array_equal(joined.low.numpy(), x.min(0))
    np.testing.assert_array_equal(joined.high.numpy(), x.max(0))


def test_equal_rows_have_no_variance_and_no_collapse_temperature() -> None:
    x = np.full((50, 3), 3.25, dtype=np.float32)
    extent = extent_of(x)
    frame = Frame.identity("euclidean", 3).centred_at(torch.full((3,), 3.25))
    statistics = Statistics(moment_fields(extent, frame, covariance=True))
    moment_statistics(frame, extent.max_weight, covariance=True)(batch_of(x), statistics)
    found = moments(statistics, extent, frame, covariance=True)
    assert found.column_variance == 0
    assert collapse_temperature(found.covariance) == 0


def test_the_collapse_temperature_is_twice_the_largest_variance() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    covariance = torch.from_numpy(turn @ np.diag([3.0, 2.0, 1.0, 0.5]) @ turn.T)
    assert collapse_temperature(covariance) == pytest.approx(6.0)
