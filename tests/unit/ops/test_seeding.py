from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydkm.ops.seeding import SEEDINGS, afk_mc2, kmeans_parallel, kmeans_plus_plus, random_rows

every_seeding = pytest.mark.parametrize("name", SEEDINGS)


def philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


def rows_among(prototypes: torch.Tensor, z: torch.Tensor) -> bool:
    known = {tuple(row) for row in z.tolist()}
    return all(tuple(row) in known for row in prototypes.tolist())


@every_seeding
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), clusters=st.integers(1, 12))
def test_prototypes_are_distinct_rows_of_distinct_data(name: str, seed: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.permutation(60).reshape(30, 2).astype(np.float32))
    prototypes = SEEDINGS[name](z, torch.ones(30, dtype=torch.float64), clusters, philox(seed))
    assert prototypes.shape == (clusters, 2)
    assert rows_among(prototypes, z)
    assert len({tuple(row) for row in prototypes.tolist()}) == clusters


@every_seeding
def test_the_same_seed_draws_the_same_prototypes(name: str, rng: np.random.Generator) -> None:
    z, weight = torch.from_numpy(rng.standard_normal((500, 3))).float(), torch.from_numpy(rng.random(500) + 0.1)
    draws = [SEEDINGS[name](z, weight, 7, philox(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every_seeding
def test_as_many_clusters_as_rows_takes_every_row(name: str, rng: np.random.Generator) -> None:
    z = torch.from_numpy(rng.standard_normal((9, 3))).float()
    prototypes = SEEDINGS[name](z, torch.ones(9, dtype=torch.float64), 9, philox(0))
    assert sorted(prototypes.tolist()) == sorted(z.tolist())


@every_seeding
def test_equal_rows_give_finite_prototypes(name: str) -> None:
    z = torch.full((20, 3), 0.7)
    prototypes = SEEDINGS[name](z, torch.ones(20, dtype=torch.float64), 4, philox(0))
    assert torch.equal(prototypes, z[:4])


@pytest.mark.parametrize("seeding", [kmeans_plus_plus, kmeans_parallel])
def test_distant_groups_get_one_prototype_each(seeding, blobs) -> None:
    x, labels = blobs(rows=400, clusters=6, apart=300.0)
    z = torch.from_numpy(x)
    group = {tuple(row): int(label) for row, label in zip(z.tolist(), labels, strict=True)}
    for seed in range(5):
        prototypes = seeding(z, torch.ones(400, dtype=torch.float64), 6, philox(seed))
        assert sorted(group[tuple(row)] for row in prototypes.tolist()) == list(range(6))


def test_random_rows_are_drawn_in_proportion_to_their_weights() -> None:
    z, weight = torch.arange(3.0)[:, None], torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    rng = philox(0)
    drawn = Counter(float(random_rows(z, weight, 1, rng)[0, 0]) for _ in range(4000))
    np.testing.assert_allclose([drawn[k] / 4000 for k in (0.0, 1.0, 2.0)], [0.1, 0.2, 0.7], atol=0.04)


@pytest.mark.parametrize("seeding", [kmeans_plus_plus, kmeans_parallel, afk_mc2])
def test_a_heavy_group_draws_the_prototypes_that_light_rows_would_not(seeding) -> None:
    spread = torch.tensor([[0.0], [1.0], [100.0], [101.0]])
    heavy = torch.tensor([1e9, 1e9, 1.0, 1e-9], dtype=torch.float64)
    for seed in range(5):
        assert sorted(seeding(spread, heavy, 2, philox(seed))[:, 0].tolist()) == [0.0, 1.0]
