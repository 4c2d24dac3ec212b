"""Data that leave prototypes without rows: whatever they are, fits end, and what they give is finite."""

from __future__ import annotations

import numpy as np
import pytest

import raydkm
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.distance import DistanceObjective

every_objective = pytest.mark.parametrize("objective", OBJECTIVES)
distance_objective = pytest.mark.parametrize(
    "objective", [name for name, kind in OBJECTIVES.items() if issubclass(kind, DistanceObjective)]
)


def fitted(x: np.ndarray, objective: str, clusters: int, **options) -> raydkm.Model:
    model = raydkm.fit(x, clusters=clusters, objective=objective, max_steps=60, **options)
    assert model.prototypes.isfinite().all()
    assert model.log_s.isfinite().all()
    assert len(model.prototypes) == clusters
    assert float(model.counts.sum()) == len(x)
    for entry in model.history:
        assert np.isfinite(entry["objective"])
    assert np.isfinite(model.record["inertia"])
    return model


@every_objective
def test_half_as_many_clusters_as_rows_of_which_many_are_copies(objective: str, rng: np.random.Generator) -> None:
    x = np.repeat(rng.standard_normal((20, 3)), 10, axis=0)
    model = fitted(x, objective, 100)
    if objective == "kmeans":
        assert model.record["inertia"] == pytest.approx(0, abs=1e-9)
        assert model.history[-1]["duplicates"] + 20 <= 100


@every_objective
@pytest.mark.parametrize("value", [0.0, 7.5, -1e12])
def test_rows_that_are_all_equal(objective: str, value: float) -> None:
    model = fitted(np.full((50, 2), value), objective, 3)
    np.testing.assert_allclose(model.cluster_centers, value, rtol=1e-6)
    assert model.record["inertia"] == pytest.approx(0, abs=1e-9)


@distance_objective
def test_two_distinct_rows_and_two_clusters(objective: str) -> None:
    x = np.array([[0.0, 0.0], [3.0, 4.0]] * 25)
    options = {} if objective == "kmeans" else {"temperature": "0.05Tc"}
    model = fitted(x, objective, 2, **options)
    np.testing.assert_allclose(np.sort(model.cluster_centers, axis=0), [[0, 0], [3, 4]], atol=1e-3)
    assert sorted(model.counts.tolist()) == [25, 25]


@every_objective
@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_one_row_so_far_away_that_it_outweighs_all_others(
    objective: str, balance: float, rng: np.random.Generator
) -> None:
    if balance and objective not in ("kmeans", "soft-kmeans", "sr-kmeans"):
        pytest.skip("has its own balance")
    x = rng.standard_normal((500, 3)).astype(np.float32)
    x[123] = 1e7
    model = fitted(x, objective, 4, balance=balance)
    if objective == "kmeans" and not balance:
        assert model.counts.min() == 1
        assert model.counts.max() < 499
