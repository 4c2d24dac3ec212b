from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from raydkm.data.source import RowSource
from raydkm.ops import approximate
from raydkm.ops.approximate import EFFORTS, MISS_FIELDS, CellAssignment, approximate_statistics, cells
from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.exact import Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.hard import HardAssignment
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import Bounds, cluster_fields

CPU = torch.device("cpu")
DIM = 6


def scores_of(prototypes: np.ndarray, dtype: torch.dtype = torch.float32) -> Scores:
    frame = Frame.identity("euclidean", prototypes.shape[1], dtype)
    return Scores.of(torch.from_numpy(prototypes), torch.zeros(len(prototypes), dtype=torch.float64), 0.0, frame)


def exactly(scores: Scores, z: Tensor) -> Tensor:
    return HardAssignment(scores, "fp32")(z)


@pytest.mark.parametrize("clusters", [1, 2, 3, 50, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_all_cells_labels_are_exact(clusters: int, dtype: torch.dtype, rng: np.random.Generator) -> None:
    scores = scores_of(rng.standard_normal((clusters, DIM)), dtype)
    z = torch.from_numpy(rng.standard_normal((500, DIM))).to(dtype)
    assert torch.equal(CellAssignment(scores, 1.0)(z), exactly(scores, z))


def test_the_farther_a_row_looks_the_fewer_miss_and_none_finds_a_worse_prototype_than_its_cells(rng) -> None:
    scores = scores_of(rng.standard_normal((2000, DIM)))
    z = torch.from_numpy(rng.standard_normal((3000, DIM))).float()
    best = exactly(scores, z)
    misses, squares = [], []
    for part in (1 / 64, *EFFORTS, 1.0):
        labels = CellAssignment(scores, part)(z)
        misses.append(float((labels != best).double().mean()))
        squares.append((z - scores.prototypes[labels]).square().sum(1))
    assert misses == sorted(misses, reverse=True)
    assert misses[0] > 0.1 > misses[2]
    assert all(bool((nearer <= farther + 1e-5).all()) for farther, nearer in pairwise(squares))


def test_every_prototype_has_one_cell_and_no_cell_is_empty(rng: np.random.Generator) -> None:
    prototypes = torch.from_numpy(rng.standard_normal((900, DIM)))
    prototypes[:700] = prototypes[0]  # copies: cells that the others of a kind have lost
    centres, cell = cells(prototypes, 60)
    assert torch.equal(torch.unique(cell), torch.arange(len(centres)))
    assert len(centres) <= 60


@pytest.mark.parametrize("tile", [1, 100, 10_000])
def test_labels_do_not_depend_on_how_many_scores_are_held(tile: int, rng, monkeypatch: pytest.MonkeyPatch) -> None:
    prototypes = rng.standard_normal((300, DIM))
    prototypes[:200] = prototypes[0]  # one cell with more prototypes than all others
    scores, z = scores_of(prototypes), torch.from_numpy(rng.standard_normal((800, DIM))).float()
    expected = CellAssignment(scores, 1 / 4)(z)
    monkeypatch.setattr(approximate, "_TILE", tile)
    squares = [
        (z - scores.prototypes[labels]).square().sum(1) for labels in (expected, CellAssignment(scores, 1 / 4)(z))
    ]
    torch.testing.assert_close(*squares)


@pytest.mark.parametrize("weighted", [False, True])
def test_misses_are_counted_on_evenly_spaced_rows_and_sums_are_of_the_labels(weighted: bool, rng) -> None:
    rows, clusters, part = 2 * BATCH_ROWS + 700, 500, 1 / 16
    x = rng.standard_normal((rows, DIM)).astype(np.float32)
    weight = rng.random(rows) if weighted else None
    scores, frame = scores_of(rng.standard_normal((clusters, DIM))), Frame.identity("euclidean", DIM)
    bound = torch.from_numpy(np.abs(x).max(0)).double()
    into = Statistics((*cluster_fields(clusters, Bounds(rows, 1.0, bound)), *MISS_FIELDS))
    local, assign = approximate_statistics(scores, frame, part, rows, precision="fp32"), CellAssignment(scores, part)
    labels, missed = [], 0
    for batch in RowSource.from_array(x, weight).batches():
        local(batch, into)
        z = torch.from_numpy(x[batch.first : batch.first + len(batch)])
        labels.append(assign(z))
        missed += int((labels[-1] != exactly(scores, z))[::64].sum())
    found, w = torch.cat(labels).numpy(), np.ones(rows) if weight is None else weight
    assert int(into["rows"]) == rows
    assert int(into["sampled"]) == 64 + 64 + 11
    assert int(into["missed"]) == missed > 0
    np.testing.assert_allclose(into["counts"].numpy(), np.bincount(found, w, minlength=clusters), atol=1e-9)
    sums = np.zeros((clusters, DIM))
    np.add.at(sums, found, x * w[:, None])
    np.testing.assert_allclose(into["sums"].numpy(), sums, atol=1e-5)


@pytest.mark.parametrize(("rows", "sampled"), [(BATCH_ROWS, 64), (10**6, 33), (10**9, 1), (10**12, 1)])
def test_about_8192_rows_are_sampled_and_one_of_each_batch_at_the_least(rows: int, sampled: int, rng) -> None:
    into = Statistics(
        (*cluster_fields(20, Bounds(rows, 1.0, torch.full((DIM,), 9.0, dtype=torch.float64))), *MISS_FIELDS)
    )
    local = approximate_statistics(
        scores_of(rng.standard_normal((20, DIM))), Frame.identity("euclidean", DIM), 1 / 4, rows, precision="fp32"
    )
    local(next(RowSource.from_array(rng.standard_normal((BATCH_ROWS, DIM))).batches()), into)
    assert abs(int(into["sampled"]) - sampled) <= 1
