from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.passes import Passes
from raydkm.engine.survey import Survey, condensed, survey
from raydkm.ops.batch import BATCH_ROWS

CPU = torch.device("cpu")


class Rank(Solo):
    def __init__(self, rank: int, world_size: int):
        self.rank, self.world_size = rank, world_size


def look_at(x: NDArray, weight: NDArray | None = None, seed_rows: int = 20_000) -> tuple[Passes, Survey]:
    passes = Passes(RowSource.from_array(x, weight), Solo(), CPU)
    return passes, survey(passes, "euclidean", seed_rows, 0)


def test_a_sample_of_all_rows_is_their_different_ones_with_summed_weights(rng: np.random.Generator) -> None:
    distinct = rng.standard_normal((3 * BATCH_ROWS, 2))
    which = np.concatenate([np.arange(len(distinct)), rng.integers(len(distinct), size=5000), np.zeros(500, dtype=int)])
    weight = rng.integers(0, 3, size=len(which)).astype(float)
    _, look = look_at(distinct[which], weight)
    assert look.sample_is_all
    sums = np.bincount(which, weights=weight)
    order = np.lexsort(look.sample_rows.numpy().T)
    expected = np.lexsort(distinct[sums > 0].T)
    np.testing.assert_array_equal(look.sample_rows.numpy()[order], distinct[sums > 0][expected])
    np.testing.assert_array_equal(look.sample_weight.numpy()[order], sums[sums > 0][expected])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_the_workers_share_the_different_rows(world_size: int, rng: np.random.Generator) -> None:
    passes, look = look_at(np.repeat(rng.standard_normal((2 * BATCH_ROWS + 5, 2)), 2, axis=0))
    found, first = [], 0
    for rank in range(world_size):
        mine, extent = condensed(Passes(passes.source, Rank(rank, world_size), CPU), look, "euclidean")
        batches = list(mine.source.batches())
        assert mine.source.first == first or not batches
        assert all(len(batch) == BATCH_ROWS for batch in batches[:-1])
        first += sum(len(batch) for batch in batches)
        found += [batch.rows for batch in batches]
        assert (mine.source.total, extent.rows, extent.max_weight) == (2 * BATCH_ROWS + 5, 2 * BATCH_ROWS + 5, 2)
    assert torch.equal(torch.cat(found), look.sample_rows)


def test_a_sample_of_some_rows_leaves_the_passes_as_they_are(rng: np.random.Generator) -> None:
    passes, look = look_at(rng.standard_normal((1000, 2)), seed_rows=999)
    assert not look.sample_is_all
    assert condensed(passes, look, "euclidean") == (passes, look.extent)
