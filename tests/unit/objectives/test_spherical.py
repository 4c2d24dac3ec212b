"""Spherical k-means: prototypes of unit length, which no step makes worse."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import raydkm
from raydkm.errors import ConfigError


def directions(rows: int = 900, dim: int = 20) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, dim))
    x = centres[rng.integers(6, size=rows)] + 1.5 * rng.normal(size=(rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("objective", ["kmeans", "soft-kmeans", "sr-kmeans"])
def test_prototypes_have_unit_length_and_no_step_is_worse(objective: str) -> None:
    model = raydkm.fit(
        directions(), clusters=6, objective=objective, metric="cosine", spherical=True, tol=0, max_steps=30
    )
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers, axis=1), 1, rtol=1e-6)
    losses = [entry["objective"] for entry in model.history]
    assert all(after <= before + 1e-6 * abs(before) for before, after in pairwise(losses))


def test_hard_steps_are_those_of_the_definition() -> None:
    x = directions()
    start = x[:6]
    model = raydkm.fit(
        x, clusters=6, objective="kmeans", metric="cosine", spherical=True, init=start, tol=0, max_steps=5
    )
    centres = start
    for _ in range(5):
        labels = (x @ centres.T).argmax(1)
        sums = np.stack([x[labels == cluster].sum(0) for cluster in range(6)])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(model.cluster_centers, centres, atol=1e-6)


def test_annealing_begins_above_the_temperature_and_prototypes_stay_apart() -> None:
    options = {"clusters": 6, "objective": "soft-kmeans", "metric": "cosine", "spherical": True}
    model = raydkm.fit(directions(), anneal=10, **options)
    temperatures = [entry["temperature"] for entry in model.history]
    assert temperatures[0] == pytest.approx(4 * temperatures[-1])
    assert model.temperature > 0.9 * model.record["collapse_temperature"]
    assert model.history[-1]["duplicates"] == 0


@pytest.mark.parametrize("options", [{"metric": "euclidean"}, {"objective": "mi", "metric": "cosine"}])
def test_it_is_for_directions_and_prototypes(options: dict) -> None:
    with pytest.raises(ConfigError, match="spherical goes with metric cosine"):
        raydkm.fit(directions(), clusters=6, spherical=True, **options)
