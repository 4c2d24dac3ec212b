"""Seeding on every row: what no sample holds is found, the draws follow the distances, and workers do not matter."""

from __future__ import annotations

import numpy as np
import pytest

import raydkm
from raydkm.errors import ConfigError

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
    from sklearn.cluster import kmeans_plusplus
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


@pytest.mark.parametrize("value", [0, "some", -1, 1.5])
def test_other_numbers_of_rows_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="seed_rows: must be a positive number of rows, or all"):
        raydkm.fit(np.ones((10, 2)), clusters=2, seed_rows=value)
