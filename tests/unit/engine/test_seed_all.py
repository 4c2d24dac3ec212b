"""Seeding on every row: what no sample holds is found, the draws follow the distances, and workers do not matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.cluster import kmeans_plusplus

import raydkm
from raydkm.config import configure
from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.fit import look_at
from raydkm.engine.passes import Passes
from raydkm.engine.start import seeded_of_all
from raydkm.engine.survey import measure
from raydkm.errors import ConfigError
from raydkm.ops.distances import Points, keep_nearest, no_candidate

RARE = 3


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Four wide groups, and one of three rows among 60,000, far away."""
    rng = np.random.default_rng(0)
    x = rng.integers(4, size=(60_000, 1)) * 10 + rng.standard_normal((60_000, 2))
    x[[7, 20_000, 59_999]] = [3000, 3000]  # so far that each seeding on all rows draws one of them
    return x.astype(np.float32)


@pytest.mark.parametrize("init", ["k-means||", "k-means++"])
def test_clusters_too_rare_for_a_sample_are_seeded(rows: np.ndarray, init: str) -> None:
    options = {"objective": "kmeans", "clusters": 5, "init": init, "max_steps": 1, "tol": 0, "seed_rows": 100}
    assert raydkm.fit(rows, **options).counts.min() > RARE
    model = raydkm.fit(rows, **{**options, "seed_rows": "all"})
    assert model.counts.min() == RARE
    seeding = model.record["seeding"]
    assert seeding["sample_rows"] == len(rows)
    assert len(seeding["restart_objectives"]) == 4


@pytest.mark.parametrize("init", ["k-means||", "k-means++"])
def test_the_seeds_are_as_good_as_those_of_scikit_learn(rows: np.ndarray, init: str) -> None:
    from sklearn.metrics import pairwise_distances_argmin_min

    x = rows[:20_000]
    peer = [
        np.square(pairwise_distances_argmin_min(x, kmeans_plusplus(x, 20, random_state=seed)[0])[1]).sum()
        for seed in range(4)
    ]
    model = raydkm.fit(x, objective="kmeans", clusters=20, init=init, seed_rows="all", max_steps=1)
    assert np.min(model.record["seeding"]["restart_objectives"]) * len(x) < 1.5 * np.max(peer)


@pytest.mark.parametrize("init", ["k-means||", "k-means++"])
def test_the_draws_do_not_depend_on_threads_or_the_order_of_rows(rows: np.ndarray, init: str) -> None:
    options = {"objective": "kmeans", "clusters": 9, "init": init, "max_steps": 1, "seed_rows": "all"}
    one = raydkm.fit(rows, threads=1, **options)
    assert raydkm.fit(rows, threads=3, **options).checksum() == one.checksum()
    shuffled = raydkm.fit(rows[np.random.default_rng(1).permutation(len(rows))], threads=2, **options)
    np.testing.assert_allclose(np.sort(shuffled.prototypes[:, 0]), np.sort(one.prototypes[:, 0]), rtol=1e-4)
    assert raydkm.fit(rows, threads=1, seed=1, **options).checksum() != one.checksum()


def test_weights_draw_and_rows_of_weight_zero_do_not(rows: np.ndarray) -> None:
    weight = np.ones(len(rows))
    weight[[7, 20_000, 59_999]] = 0
    model = raydkm.fit(rows, sample_weight=weight, objective="kmeans", clusters=5, seed_rows="all", max_steps=1)
    assert model.counts.min() > RARE
    assert (model.prototypes + model.shift).max() < 100


def test_fewer_distinct_rows_than_clusters_are_seeded_again_and_again() -> None:
    x = np.repeat(np.arange(3.0), 5000)[:, None]
    for init in ("k-means||", "k-means++"):
        model = raydkm.fit(x, objective="kmeans", clusters=4, init=init, seed_rows="all", n_init=2)
        assert model.counts.sum() == len(x)


def towns(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Rows within 5 m of 128 places, 100 m apart in two towns; in float64."""
    corners = 100 * np.stack(np.meshgrid(range(8), range(8)), axis=-1).reshape(-1, 2)
    places = np.concatenate([corners, corners + np.array([9e5, 4e5])])
    return np.repeat(places, 40, axis=0) + 5 * rng.standard_normal((5120, 2)), 128


def outlier(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Ten groups in one column, and one row far away."""
    x = 4.0 * rng.integers(10, size=5000) + 0.1 * rng.standard_normal(5000)
    return np.append(x, 1e9)[:, None], 11


def lattice(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Few different rows of float32, one unit in the last place apart, among others that are all different."""
    x = np.repeat(2.0**24 + 2 * np.arange(20), 200)
    return np.append(x, rng.standard_normal(2000))[:, None].astype(np.float32), 21


def seeded(x: np.ndarray, clusters: int, init: str) -> tuple[float, list[float]]:
    """The sum of squared distances to the seeds of all rows, and the sums that the seedings reported."""
    options = {"objective": "kmeans", "clusters": clusters, "init": init, "seed_rows": "all", "n_init": 3}
    config, *_ = configure(options)
    passes = Passes(RowSource.from_array(x), Solo(), torch.device("cpu"))
    look, frame = look_at(passes, config.model_copy(update={"seed_rows": 500}))
    facts = measure(passes, look.extent, frame, covariance=False)
    prototypes, record = seeded_of_all(passes, look, config, frame, facts)
    nearest, owner = no_candidate(len(x))
    keep_nearest(Points.of(torch.from_numpy(x - frame.shift.numpy())), Points.of(prototypes), 0, nearest, owner)
    return float(nearest.sum()), [len(x) * mean for mean in record["restart_objectives"]]


@pytest.mark.parametrize("init", ["k-means||", "k-means++"])
@pytest.mark.parametrize("rows", [towns, outlier, lattice])
def test_seeds_of_rows_of_several_scales_are_as_good_as_those_of_scikit_learn(rows: Callable, init: str) -> None:
    x, clusters = rows(np.random.default_rng(0))
    y = x.astype(np.float64)
    peer = []
    for seed in range(3):
        nearest, owner = no_candidate(len(x))
        at = torch.from_numpy(kmeans_plusplus(y, clusters, random_state=seed)[0])
        keep_nearest(Points.of(torch.from_numpy(y)), Points.of(at), 0, nearest, owner)
        peer.append(float(nearest.sum()))
    # k-means++ on all rows is not greedy
    assert seeded(x, clusters, init)[0] < (2 if init == "k-means||" else 4) * np.mean(peer)


@pytest.mark.parametrize("rows", [towns, outlier])
def test_the_best_of_several_seedings_is_taken(rows: Callable) -> None:
    x, clusters = rows(np.random.default_rng(0))
    reached, reported = seeded(x, clusters, "k-means||")
    assert reached == pytest.approx(min(reported), rel=1e-3)


@pytest.mark.parametrize("value", [0, "some", -1, 1.5])
def test_other_numbers_of_rows_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="seed_rows: must be a positive number of rows, or all"):
        raydkm.fit(np.ones((10, 2)), clusters=2, seed_rows=value)
