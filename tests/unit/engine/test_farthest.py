"""The rows farthest from their prototypes, of rows whose distances float32 does not hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from raydkm.engine.farthest import farthest_rows


@pytest.mark.parametrize("copies", [1, 7])
@pytest.mark.parametrize("offset", [1.0, 1e3, 1e6])
def test_differences_are_of_float64(problem: Callable, offset: float, copies: int, rng: np.random.Generator) -> None:
    """Two rows at each prototype, but for some that are displaced; each may be there several times."""
    prototypes = np.concatenate([offset * np.arange(10.0), -offset * np.arange(1, 10)])[:, None]
    displaced = np.array([3, 17, 5, 8])
    x = np.concatenate([prototypes, prototypes])
    x[displaced] += offset * 1e-9 * np.array([[4.0], [-3.0], [2.0], [1.0]])
    expected = x[displaced]
    x = rng.permutation(np.repeat(x, copies, axis=0))
    at = problem(x, prototypes, objective="kmeans", temperature=0.0, dtype=torch.float32)
    shift = at.frame.shift.numpy()
    start = at.goal.begin(torch.from_numpy(prototypes - shift))
    found = farthest_rows(at.goal, start, at.passes, 3)[0] + at.frame.shift
    np.testing.assert_allclose(found, expected[:3], rtol=1e-14)
    assert len(farthest_rows(at.goal, start, at.passes, 30)[0]) == len(displaced)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_rows_at_their_prototypes_are_not_far(problem: Callable, metric: str, rng: np.random.Generator) -> None:
    """The coordinates of float32 rows are rounded, and prototypes are means of these."""
    different = rng.standard_normal((8, 3)).astype(np.float32)
    x = np.repeat(different, 5, axis=0)
    at = problem(x, different, objective="kmeans", temperature=0.0, dtype=torch.float32, metric=metric)
    start = at.goal.begin(at.frame.tile(torch.from_numpy(different)).double())
    assert len(farthest_rows(at.goal, start, at.passes, 3)[0]) == 0
