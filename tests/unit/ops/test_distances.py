"""Squared distances to the nearest candidate, beside differences in float64, on rows of several scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydkm.ops.distances import Points, improved, keep_nearest, no_candidate
from raydkm.ops.frame import Frame


def lattices(dtype: str, offset: float, units: int, dim: int, seed: int) -> np.ndarray:
    """Rows of small lattices at -offset, 0 and offset, so many units in the last place apart; some are equal."""
    rng = np.random.default_rng(seed)
    if dtype == "float16":  # which ends at 65504
        offset, units = min(offset, 3e4), min(units, 64)
    spacing = units * float(np.spacing(np.dtype(dtype).type(offset)))
    corners = offset * rng.integers(-1, 2, size=(4, dim))
    return (corners[rng.integers(4, size=90)] + spacing * rng.integers(4, size=(90, dim))).astype(dtype)


def squared_distances(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.square(x[:, None].astype(np.float64) - c[None].astype(np.float64)).sum(-1)


several_scales = given(
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    offset=st.floats(0, 8).map(lambda power: 10.0**power),
    units=st.sampled_from([4, 5, 64, 4096]),
    dim=st.sampled_from([1, 2, 3, 65, 130]),
    seed=st.integers(0, 2**31),
    at_mean=st.booleans(),
)


@settings(max_examples=40)
@several_scales
def test_squared_distances_are_those_of_differences(
    dtype: str, offset: float, units: int, dim: int, seed: int, at_mean: bool
) -> None:
    x = lattices(dtype, offset, units, dim, seed)
    frame = Frame.identity("euclidean", dim)
    origin = x.astype(np.float64).mean(0) if at_mean else np.median(x.astype(np.float64), axis=0)
    frame = frame.centred_at(torch.from_numpy(origin))
    rows = torch.from_numpy(x)
    points, among = Points.in_frame(rows, frame), np.random.default_rng(seed).permutation(len(x))[:40]
    nearest, owner = no_candidate(len(x))
    expected = squared_distances(x, x[among])
    for first, last in ((0, 1), (1, 1), (1, 30), (30, 40)):
        before = nearest.clone()
        keep_nearest(points, Points.in_frame(rows[among[first:last]], frame), first, nearest, owner)
        np.testing.assert_allclose(nearest, expected[:, :last].min(1), rtol=1e-3)
        np.testing.assert_allclose(expected[np.arange(len(x)), owner], nearest, rtol=1e-3)
        alone = improved(points, points[among[first:last]], before)
        np.testing.assert_allclose(alone, np.minimum(before.numpy()[:, None], expected[:, first:last]), rtol=1e-3)


def test_squares_of_distances_may_be_smaller_than_any_float32() -> None:
    x = torch.tensor([[1e-22], [3e-22], [0.0], [1.0]], dtype=torch.float64)
    nearest, owner = no_candidate(4)
    keep_nearest(Points.of(x), Points.of(x[:1]), 7, nearest, owner)
    np.testing.assert_allclose(nearest, [0, 4e-44, 1e-44, 1], rtol=1e-3)
    assert owner.tolist() == [7] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_on_a_sphere_are_compared_by_their_directions(dtype: torch.dtype, rng: np.random.Generator) -> None:
    x = rng.standard_normal((200, 5)) * np.exp(rng.standard_normal((200, 1)))
    x[100:] = x[:100] + 1e-2 * rng.standard_normal((100, 5))
    frame = Frame.identity("cosine", 5)
    rows = torch.from_numpy(x).to(dtype)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    points = Points.in_frame(rows, frame.centred_at(torch.from_numpy(unit.mean(0))))
    nearest, owner = no_candidate(200)
    keep_nearest(points, points[100:], 0, nearest, owner)
    expected = squared_distances(unit, unit[100:])
    assert not nearest[100:].any()
    np.testing.assert_allclose(nearest[:100], expected[:100].min(1), rtol=1e-2 if dtype == torch.float32 else 1e-3)


def test_ordinary_rows_take_no_differences(rng: np.random.Generator) -> None:
    """Where products tell distances apart, `exact` is not read."""
    z = torch.from_numpy(rng.standard_normal((300, 64))).float()
    points = Points.of(z)
    unread = Points(torch.zeros_like(z), points.z, points.square)
    nearest, owner = no_candidate(200)
    keep_nearest(unread[:200], unread[200:], 0, nearest, owner)
    expected = squared_distances(z[:200].numpy(), z[200:].numpy())
    np.testing.assert_allclose(nearest, expected.min(1), rtol=1e-3)
    np.testing.assert_allclose(expected[np.arange(200), owner], nearest, rtol=1e-3)
