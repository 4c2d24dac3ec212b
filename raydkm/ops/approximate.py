"""Hard assignment among very many prototypes: each row looks into the most promising cells of prototypes alone.

The inverted lists of an IVF index, turned round: a batch's rows are gathered cell by cell, so that each cell is one
matrix product. Cells follow from the prototypes alone and are made by one thread; the labels of a batch depend on
nothing else, and so are the same for any number of threads and workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import COUNT, Field, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.hard import HardAssignment
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import Local, add_assigned

#: From this many prototypes on, approximate assignment is worth its misses; with half as many an exact step, screened
#: by leading directions in 8 bits, takes as long.
MANY_PROTOTYPES = 2**17

#: Part of the cells that a row looks into, by level of effort. The level after the last is exact assignment.
EFFORTS = (1 / 16, 1 / 8, 1 / 4)

#: About so many rows in all are assigned exactly too, to count the misses: evenly spaced ones of each batch, at least
#: one and at most so many of each.
SAMPLED_ROWS = 8192
MOST_OF_A_BATCH = 64

MISS_FIELDS = (Field("sampled", (), COUNT), Field("missed", (), COUNT))

#: Scores held at a time.
_TILE = 2**19
_LLOYD_STEPS = 3
_PROTOTYPES_PER_CELL_IN_LLOYD = 64


class CellAssignment:
    """argmax_k score_ik over the prototypes in the cells whose centres are nearest to a row.

    Parameters
    ----------
    scores : Scores
        Without balance, so that the highest score is the nearest prototype.
    part : float
        Of the cells, that a row looks into.
    """

    def __init__(self, scores: Scores, part: float):
        centres, cell = cells(scores.prototypes, min(len(scores), 2 * math.isqrt(len(scores))))
        self._order = torch.argsort(cell, stable=True)
        self._stops = torch.bincount(cell, minlength=len(centres)).cumsum(0).tolist()
        self._sorted = Scores(scores.prototypes[self._order], scores.bias[self._order], 0.0)
        self._centres = _nearest(centres)
        self._probes = max(1, math.ceil(part * len(centres)))

    def __call__(self, z: Tensor) -> Tensor:
        """Labels (n,) int64 of z (n, d)."""
        probed = self._centres(z).topk(self._probes, dim=1, sorted=False).indices
        by_cell = torch.argsort(probed.to(torch.int16).view(-1), stable=True)
        best = z.new_empty(len(by_cell))
        # the place of the best score costs far more than the score, so it is sought in the best cell alone
        for scores, where in self._products(z, probed.view(-1), by_cell // self._probes):
            torch.amax(scores, 1, out=best[where])
        best = torch.empty_like(best).index_copy_(0, by_cell, best).view(probed.shape)
        winner = probed.gather(1, best.argmax(1, keepdim=True))[:, 0]
        by_cell = torch.argsort(winner, stable=True)
        places = torch.empty_like(winner)
        for scores, where in self._products(z, winner, by_cell):
            places[where] = scores.argmax(1)
        first = torch.tensor([0, *self._stops[:-1]], device=z.device)
        places += first[winner[by_cell]]
        return torch.empty_like(places).index_copy_(0, by_cell, self._order[places])

    def _products(self, z: Tensor, cell: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Yield, cell by cell, scores (m, size) of `rows` of z with a cell's prototypes, and their range in `rows`."""
        start = low = 0
        for high, count in zip(self._stops, torch.bincount(cell, minlength=len(self._stops)).tolist(), strict=True):
            stop, size = start + count, max(1, _TILE // (high - low))
            among = Scores(self._sorted.prototypes[low:high], self._sorted.bias[low:high], 0.0)
            for at in range(start, stop, size):
                where = slice(at, min(at + size, stop))
                yield among(z.index_select(0, rows[where])), where
            start, low = stop, high


def cells(prototypes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` centres (m, d), none of them without prototypes, and the number (K,) of each prototype's one.

    A few steps of k-means on evenly spaced prototypes, from evenly spaced ones: no draws.
    """
    some = prototypes[_evenly(len(prototypes), min(len(prototypes), _PROTOTYPES_PER_CELL_IN_LLOYD * count))]
    centres = some[_evenly(len(some), count)]
    for _ in range(_LLOYD_STEPS):
        nearest = _labels(_nearest(centres), some)
        held = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, some)
        centres = torch.where(held[:, None] > 0, sums / held.clamp(min=1)[:, None], centres)
    used, cell = torch.unique(_labels(_nearest(centres), prototypes), return_inverse=True)
    return centres[used], cell


def approximate_statistics(scores: Scores, frame: Frame, part: float, rows: int, *, precision: str) -> Local:
    """As `hard_statistics`, with approximate labels, and how many of the sampled rows have another label than exact.

    Parameters
    ----------
    part : float
        As in `CellAssignment`.
    rows : int
        Of all workers, from which the number of sampled ones follows.
    precision : str
        Of the exact assignment of sampled rows, as in `HardAssignment`.
    """
    assign, exact = CellAssignment(scores, part), HardAssignment(scores, precision)
    every = BATCH_ROWS // min(MOST_OF_A_BATCH, max(1, SAMPLED_ROWS * BATCH_ROWS // rows))

    def local(batch: Batch, into: Statistics) -> None:
        rows, weight = frame.tile(batch.rows), batch.weights()
        labels = assign(rows.z)
        sampled = frame.tile(batch.rows[::every])
        into.add("sampled", len(sampled))
        into.add("missed", (exact(sampled) != labels[::every]).sum())
        add_assigned(into, labels, rows, weight, weighted=batch.weight is not None)
        into.add("rows", len(batch))

    return local


def _evenly(total: int, count: int) -> Tensor:
    return torch.arange(count) * total // count


def _nearest(centres: Tensor) -> Scores:
    return Scores(centres, centres.square().sum(1).mul_(-0.5), 0.0)


def _labels(scores: Scores, z: Tensor) -> Tensor:
    return torch.cat([scores(part).argmax(1) for part in z.split(max(1, _TILE // len(scores)))])
