from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import kmeans_plusplus

from raydkm.ops.distances import Points, keep_nearest, no_candidate
from raydkm.ops.seeding import SEEDINGS, Seeding, _draw, afk_mc2, kmeans_parallel, kmeans_plus_plus, random_rows

every_seeding = pytest.mark.parametrize("name", SEEDINGS)


def philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


def seeds(seeding: Seeding, z: torch.Tensor, weight: torch.Tensor | None, clusters: int, seed: int) -> torch.Tensor:
    """The rows that a seeding draws."""
    weight = torch.ones(len(z), dtype=torch.float64) if weight is None else weight
    return z[seeding(Points.of(z), weight, clusters, philox(seed))]


@every_seeding
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), clusters=st.integers(1, 12))
def test_prototypes_are_distinct_rows_of_distinct_data(name: str, seed: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.permutation(60).reshape(30, 2).astype(np.float32))
    prototypes = seeds(SEEDINGS[name], z, None, clusters, seed)
    assert prototypes.shape == (clusters, 2)
    assert len({tuple(row) for row in prototypes.tolist()}) == clusters


@every_seeding
def test_the_same_seed_draws_the_same_prototypes(name: str, rng: np.random.Generator) -> None:
    z, weight = torch.from_numpy(rng.standard_normal((500, 3))).float(), torch.from_numpy(rng.random(500) + 0.1)
    draws = [seeds(SEEDINGS[name], z, weight, 7, seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every_seeding
def test_as_many_clusters_as_rows_takes_every_row(name: str, rng: np.random.Generator) -> None:
    z = torch.from_numpy(rng.standard_normal((9, 3))).float()
    prototypes = seeds(SEEDINGS[name], z, None, 9, 0)
    assert sorted(prototypes.tolist()) == sorted(z.tolist())


@every_seeding
def test_equal_rows_give_finite_prototypes(name: str) -> None:
    z = torch.full((20, 3), 0.7)
    prototypes = seeds(SEEDINGS[name], z, None, 4, 0)
    assert torch.equal(prototypes, z[:4])


@pytest.mark.parametrize("seeding", [kmeans_plus_plus, kmeans_parallel])
def test_distant_groups_get_one_prototype_each(seeding, blobs) -> None:
    x, labels = blobs(rows=400, clusters=6, apart=300.0)
    z = torch.from_numpy(x)
    group = {tuple(row): int(label) for row, label in zip(z.tolist(), labels, strict=True)}
    for seed in range(5):
        prototypes = seeds(seeding, z, None, 6, seed)
        assert sorted(group[tuple(row)] for row in prototypes.tolist()) == list(range(6))


def test_random_rows_are_drawn_in_proportion_to_their_weights() -> None:
    z, weight = torch.arange(3.0)[:, None], torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    rng = philox(0)
    drawn = Counter(int(random_rows(Points.of(z), weight, 1, rng)) for _ in range(4000))
    np.testing.assert_allclose([drawn[k] / 4000 for k in range(3)], [0.1, 0.2, 0.7], atol=0.04)


@pytest.mark.parametrize("seeding", [kmeans_plus_plus, kmeans_parallel, afk_mc2])
def test_a_heavy_group_draws_the_prototypes_that_light_rows_would_not(seeding) -> None:
    spread = torch.tensor([[0.0], [1.0], [100.0], [101.0]])
    heavy = torch.tensor([1e9, 1e9, 1.0, 1e-9], dtype=torch.float64)
    for seed in range(5):
        assert sorted(seeds(seeding, spread, heavy, 2, seed)[:, 0].tolist()) == [0.0, 1.0]


@pytest.mark.parametrize("name", ["k-means||", "k-means++", "afk-mc2"])
@settings(max_examples=25)
@given(
    offset=st.floats(0, 8).map(lambda power: 10.0**power),
    units=st.sampled_from([4, 100, 10**5]),
    copies=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_every_different_row_is_drawn_once_whatever_the_scales(
    name: str, offset: float, units: int, copies: int, seed: int
) -> None:
    """Groups of rows some units in the last place apart."""
    different = np.concatenate([at + units * np.spacing(offset) * np.arange(3) for at in (-offset, offset)])
    z = torch.from_numpy(np.random.default_rng(seed).permutation(np.repeat(different, copies)))[:, None]
    drawn = seeds(SEEDINGS[name], z, None, len(different), seed)[:, 0]
    assert len(np.unique(drawn)) == len(different)


def places(count: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Rows within 5 m of places: 64 of them 100 m apart in each town, towns in a square of 1,000 km."""
    towns = rng.uniform(0, 1e6, (1 + count // 64, 2))
    corners = 100 * np.stack(np.meshgrid(range(8), range(8)), axis=-1).reshape(-1, 2)
    at = (towns[:, None] + corners).reshape(-1, 2)[:count]
    return np.repeat(at, 8, axis=0) + 5 * rng.standard_normal((8 * count, 2)), count


def towns(count: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """The same of places anywhere within some kilometres."""
    centres = rng.uniform(0, 1e6, (1 + count // 50, 2))
    at = centres[rng.integers(len(centres), size=count)] + 2e3 * rng.standard_normal((count, 2))
    return np.repeat(at, 8, axis=0) + 5 * rng.standard_normal((8 * count, 2)), count


def sentinels(share: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Degrees about 10 and 30, a share of them missing and coded -999999, beside another column."""
    x = np.c_[rng.choice([10.0, 30.0], 2000), np.zeros(2000)] + rng.standard_normal((2000, 2))
    x[rng.random(2000) < share, 0] = -999999
    return x, 6


def levels(count: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Values to be quantised to a tenth of their number."""
    return rng.standard_normal((count, 1)), count // 10


@pytest.mark.parametrize(
    ("rows", "size"),
    [(places, 10), (places, 300), (towns, 100), (towns, 300), (sentinels, 0.05), (sentinels, 0.3), (levels, 4000)],
)
@pytest.mark.parametrize("name", ["k-means||", "k-means++"])
def test_seeds_are_as_good_as_those_of_scikit_learn_in_float64(name: str, rows: Callable, size: float) -> None:
    x, clusters = rows(size, np.random.default_rng(0))
    z = torch.from_numpy(x)

    def potential(prototypes: torch.Tensor) -> float:
        nearest, owner = no_candidate(len(z))
        keep_nearest(Points.of(z), Points.of(prototypes), 0, nearest, owner)
        return float(nearest.sum())

    peer = [potential(torch.from_numpy(kmeans_plusplus(x, clusters, random_state=seed)[0])) for seed in range(4)]
    ours = [potential(seeds(SEEDINGS[name], z, None, clusters, seed)) for seed in range(4)]
    assert np.mean(ours) < 2 * np.mean(peer)


@pytest.mark.parametrize("least", [1e15, 1.0, 5e-324])
def test_a_draw_at_the_very_end_is_not_of_a_row_without_mass(least: float) -> None:
    class Last:
        def random(self, count: int) -> np.ndarray:
            return np.full(count, np.nextafter(1.0, 0.0))

    mass = torch.tensor([0.0, least, 0.0, 0.0], dtype=torch.float64)
    assert _draw(mass, 3, Last()).tolist() == [1] * 3
