"""Data that leave prototypes without rows: fits end, results are finite, and every cluster that can have rows has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

import raydkm
from raydkm.errors import ConfigError
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


def on_a_line(rng: np.random.Generator) -> np.ndarray:
    """Rows that vary along the diagonal alone."""
    return np.repeat(np.arange(1000.0)[:, None], 2, axis=1)


def two_tight_groups(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rng.standard_normal((500, 2)), 1e4 + rng.standard_normal((500, 2))])


def copies_of_few(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((3, 2))[rng.integers(3, size=200)]


def as_many_as_clusters(rng: np.random.Generator) -> np.ndarray:
    return np.repeat(10 * rng.standard_normal((6, 2)), rng.integers(1, 30, size=6), axis=0)


def lattice(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(1, 4, size=(60, 2)).astype(float)


def several_scales(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((90, 2)) * 10.0 ** rng.integers(0, 3, size=(90, 1))


DATA = (on_a_line, two_tight_groups, copies_of_few, as_many_as_clusters, lattice, several_scales)


def far_start(x: np.ndarray, clusters: int) -> np.ndarray:
    """Initial prototypes of which only the first is near rows."""
    return np.concatenate([x.mean(0)[None], 1e6 * np.arange(1.0, clusters)[:, None] * np.ones(x.shape[1])])


def equal_start(x: np.ndarray, clusters: int) -> np.ndarray:
    return np.repeat(x[:1], clusters, axis=0)


def different(x: np.ndarray, weight: np.ndarray, cosine: bool, decimals: int | None = 5) -> int:
    x = x[weight > 0]
    if cosine:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        x = x if decimals is None else np.round(x, decimals)
    return len(np.unique(x, axis=0))


@pytest.mark.parametrize("max_steps", [1, 2, 3, 5, 300])
@pytest.mark.parametrize("empty", ["split", "farthest"])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("start", [far_start, equal_start])
def test_every_cluster_has_rows_where_there_are_as_many_different_ones(
    start: Callable, data: Callable, empty: str, max_steps: int, rng: np.random.Generator
) -> None:
    x = data(rng)
    options = {"clusters": 6, "objective": "kmeans", "init": start(x, 6), "empty": empty, "max_steps": max_steps}
    model = raydkm.fit(x, **options)
    assert int((model.counts > 0).sum()) == min(6, different(x, np.ones(len(x)), cosine=False))
    losses, rounding = [entry["objective"] for entry in model.history], 1e-6 * x.var(0).sum()
    assert all(after <= before + rounding for before, after in pairwise(losses))
    assert model.record["inertia"] <= (losses[-1] + rounding) * len(x)
    if max_steps == 300:
        assert model.record["stopped"] == "shift"
        assert model.record["steps"] < 100


@pytest.mark.parametrize("empty", ["split", "farthest"])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    "options",
    [{"balance": 0.5}, {"max_share": 0.4}, {"metric": "cosine"}, {"metric": "cosine", "spherical": True}],
    ids=str,
)
def test_so_it_has_with_weights_balance_and_on_the_sphere(
    options: dict, data: Callable, empty: str, rng: np.random.Generator
) -> None:
    x, cosine = data(rng), "metric" in options
    x = x + 0.5 if cosine else x  # no row is zero
    weight = rng.integers(0, 3, size=len(x)).astype(float)
    for max_steps in (1, 3, 40):
        model = raydkm.fit(
            x,
            clusters=6,
            objective="kmeans",
            init=far_start(x, 6),
            empty=empty,
            max_steps=max_steps,
            sample_weight=weight,
            **options,
        )
        # directions that differ by their rounding alone may count as different ones
        exactly = different(x, weight, cosine, decimals=None)
        assert min(6, different(x, weight, cosine)) <= int((model.counts > 0).sum()) <= min(6, exactly)


@pytest.mark.parametrize("max_steps", [3, 10, 300])
@pytest.mark.parametrize("empty", ["split", "farthest"])
@pytest.mark.parametrize("objective", ["soft-kmeans", "sr-kmeans"])
def test_a_soft_cluster_without_rows_is_given_some(
    objective: str, empty: str, max_steps: int, rng: np.random.Generator
) -> None:
    for data in (on_a_line, as_many_as_clusters, several_scales):
        x = data(rng)
        options = {"init": far_start(x, 4), "temperature": "0.001Tc", "empty": empty, "max_steps": max_steps}
        model = raydkm.fit(x, clusters=4, objective=objective, **options)
        assert int((model.counts > 0).sum()) == 4, data.__name__
        losses = np.array([entry["objective"] for entry in model.history])
        assert (np.diff(losses) <= 1e-5 * np.abs(losses[1:])).all()


def test_a_row_of_hardly_any_weight_does_not_keep_a_fit_from_ending(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.standard_normal((50, 2)), [[100.0, 0.0]]])
    weight = np.append(np.ones(50), 1e-30)
    start = np.array([[0.0, 0], [1e3, 0]])
    model = raydkm.fit(x, clusters=2, objective="kmeans", init=start, sample_weight=weight, max_steps=100)
    assert model.record["stopped"] == "shift"


@pytest.mark.parametrize("objective", ["kmeans", "soft-kmeans"])
@pytest.mark.parametrize("empty", ["split", "farthest"])
def test_rows_found_for_a_cluster_are_the_same_for_any_number_of_threads(
    objective: str, empty: str, rng: np.random.Generator
) -> None:
    x = np.round(30 * rng.standard_normal((10000, 2)))  # many rows at equal distances
    x = np.concatenate([x, 1e3 - x])
    options = {"clusters": 30, "objective": objective, "init": far_start(x, 30), "empty": empty, "max_steps": 4}
    options |= {"seed_rows": 300} | ({"temperature": 100.0} if objective == "soft-kmeans" else {})
    one, three = (raydkm.fit(x[order], threads=n, **options) for order, n in ((slice(None), 1), (slice(None), 3)))
    assert torch.equal(one.prototypes, three.prototypes)
    assert int((one.counts > 0).sum()) == 30


@pytest.mark.parametrize("objective", ["kmeans", "soft-kmeans"])
@pytest.mark.parametrize("clusters", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mean_without_direction_leaves_a_prototype_its_own(
    objective: str, clusters: int, weighted: bool, rng: np.random.Generator
) -> None:
    angles = np.arange(6) * np.pi / 3
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # of a hexagon, whose mean is zero to rounding
    for x in (np.array([[1.0, 0], [-1, 0]]), corners, np.eye(4).repeat(2, 0) * np.tile([[1.0], [-1]], (4, 1))):
        start = np.resize([[0.6, 0.8], [-0.6, 0.8]], (clusters, 2))
        start = np.pad(start, ((0, 0), (0, x.shape[1] - 2)))
        weight = np.full(len(x), 3.0) if weighted else None
        options = {"temperature": 50.0} if objective == "soft-kmeans" else {}
        model = raydkm.fit(
            x,
            clusters=clusters,
            objective=objective,
            metric="cosine",
            spherical=True,
            init=start,
            sample_weight=weight,
            max_steps=20,
            **options,
        )
        np.testing.assert_allclose(np.linalg.norm(model.cluster_centers, axis=1), 1, rtol=1e-6)
        if clusters == 1 and x is not corners:
            np.testing.assert_allclose(model.cluster_centers, start, atol=1e-6)


@pytest.mark.parametrize("objective", ["kmeans", "soft-kmeans"])
def test_initial_prototypes_on_the_sphere_have_unit_length_though_no_row_is_theirs(objective: str) -> None:
    x, start = np.eye(3).repeat(4, 0), np.array([[0.2, 0.1, 0], [0, 0, -0.7]])
    options = {"clusters": 2, "objective": objective, "metric": "cosine", "spherical": True, "empty": "keep"}
    model = raydkm.fit(
        x, init=start, max_steps=1, temperature=1e-3 if objective == "soft-kmeans" else "auto", **options
    )
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers, axis=1), 1, rtol=1e-6)
    with pytest.raises(ConfigError, match="a zero vector has no direction"):
        raydkm.fit(x, init=np.zeros((2, 3)), **options)
