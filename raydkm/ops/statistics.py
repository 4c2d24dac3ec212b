"""What a worker adds up: the sufficient statistics of one pass, batch by batch.

Each function returns a closure ``local(batch, into)`` that adds one canonical batch to the statistics `into`.
Closures prepare what a whole pass shares (rounded prototypes, say) once and hold no state of their own, so any
number of threads may call one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.ops.amx_soft import SoftByTiles
from raydkm.ops.batch import Batch
from raydkm.ops.cost import Costs
from raydkm.ops.exact import COUNT, Field, Grid, Statistics
from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.fused import fused_hard_statistics, fused_soft_statistics, serves
from raydkm.ops.hard import HardAssignment
from raydkm.ops.last import LastPass
from raydkm.ops.leading import Directions
from raydkm.ops.scores import Scores
from raydkm.ops.soft import (
    AT_ONCE,
    ExactSums,
    SoftAssignment,
    SoftByProducts,
    exact_posteriors,
    flushed_denormals,
)
from raydkm.ops.workspace import Workspace

Local = Callable[[Batch, Statistics], None]


@dataclass(frozen=True)
class RowByRow:
    """A `Local` whose sums are of rows, so that several canonical batches may come as one."""

    add: Local

    def __call__(self, batch: Batch, into: Statistics) -> None:
        self.add(batch, into)


ROWS = Field("rows", (), COUNT)  # every pass counts its rows


@dataclass(frozen=True)
class Bounds:
    """What sums over rows are bounded by, from which their grids follow.

    Parameters
    ----------
    rows : int
    max_weight : float
    columns : Tensor (d,) of float64
        Largest |z_ij| of each column.
    fine : bool
        Whether sums by cluster have a second grid: where rows differ by so little, or weights by so much, that the
        first is too coarse for them.
    addends : int
        How many numbers are added up, where those are more than `rows` with smaller weights.
    """

    rows: int
    max_weight: float
    columns: Tensor
    fine: bool = False
    addends: int = 0

    def field(self, name: str, shape: tuple[int, ...], bound: Tensor | float = 1.0, *, grids: int = 1) -> Field:
        """A field for sums of w_i x_i with |x_i| <= bound, a number or one for each column."""
        several = [Grid.holding(self.rows * self.max_weight * bound)]
        while len(several) < grids:
            several.append(several[-1].finer(max(self.rows, self.addends)))
        return Field(name, shape, several[0], tuple(several[1:]))

    def within_clusters(self, farthest: float) -> tuple[Field, ...]:
        """sum w_i ||z_i - theta_k||^2 of points at most so far from the origin, and the rows.

        Squares of distances from one unit in the last place to the range of the data take three grids.
        """
        square = (float(torch.linalg.vector_norm(self.columns)) + farthest) ** 2
        return self.field("within", (), 1.01 * square, grids=3), ROWS


def cluster_fields(clusters: int, bounds: Bounds) -> tuple[Field, ...]:
    """n_k = sum w q_ik, S_k = sum w q_ik z_i, H = -sum w q log q and the number of rows.

    Hard statistics are rounded row by row, soft ones batch by batch.
    """
    grids = 2 if bounds.fine else 1
    return (
        bounds.field("counts", (clusters,), grids=grids),
        bounds.field("sums", (clusters, len(bounds.columns)), bounds.columns, grids=grids),
        bounds.field("entropy", (), math.log(clusters) + 1),
        ROWS,
    )


def hard_statistics(
    scores: Scores,
    frame: Frame,
    *,
    precision: str,
    directions: Directions | None = None,
    last: LastPass | None = None,
    about: Costs | None = None,
    on_labels: Callable[[int, Tensor], None] | None = None,
) -> Local:
    """n and S for q_i = the indicator of argmax_k score_ik, rounded row by row.

    `precision` and `directions` are those of `HardAssignment`, and change no bit of the sums; nor does `last`, by which
    only rows of another label than in the last pass are added. With `about`, the field `within` is summed too: squared
    distances from its prototypes. `on_labels(first, labels)` is called with the labels of each tile and the position of
    its first row.
    """
    if precision != "fp32" and serves(scores):
        return fused_hard_statistics(scores, frame, about=about, on_labels=on_labels)
    assign, buffer = HardAssignment(scores, precision, directions, last), Workspace()

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        for where, rows in batch.row_tiles(frame, len(scores), assign.tile, buffer):
            tile = None if last is None else last.tile(batch.first + where.start, len(rows))
            before = None if tile is None else tile.labels
            labels = assign(rows, tile)
            add_assigned(into, labels, rows, weight[where], weighted=batch.weight is not None, before=before)
            if before is not None:
                before.copy_(labels)
            if about is not None:
                into.add_each("within", about.squared_distances(rows.x, labels).mul_(weight[where]))
            if on_labels is not None:
                on_labels(batch.first + where.start, labels)
        into.add("rows", len(batch))

    return RowByRow(local)


def add_assigned(
    into: Statistics,
    labels: Tensor,
    rows: RowTile,
    weight: Tensor,
    *,
    weighted: bool,
    before: Tensor | None = None,
) -> None:
    """Add rows of weights (n,), ones unless `weighted`, to n and S of their clusters (n,).

    And take them from those they were added to before, see `Statistics.add_rows`.
    """
    into.add_rows("counts", labels, weight, before)
    numbers, shift = rows.addends
    into.add_rows("sums", labels, numbers, before, weight if weighted else None, shift)


def distances_within(
    scores: Scores, frame: Frame, means: Costs, *, precision: str, last: LastPass | None = None
) -> Local:
    """sum w_i ||u_i - mean_k||^2 over rows and the means of their clusters, by the labels that `scores` give them.

    The differences are those of float64, and are rounded row by row; `last` is the last pass, of the same scores.
    """
    assign, buffer = HardAssignment(scores, precision, None, last), Workspace()

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        for where, rows in batch.row_tiles(frame, len(scores), assign.tile, buffer):
            tile = None if last is None else last.tile(batch.first + where.start, len(rows))
            squares = means.squared_distances(rows.x, assign(rows, tile))
            into.add_each("within", squares.mul_(weight[where]))
        into.add("rows", len(batch))

    return RowByRow(local)


def soft_statistics(scores: Scores, frame: Frame, *, bound: Tensor, precision: str) -> Local:
    """n, S and H for q_i = softmax_k(2 score_ik / T), rounded batch by batch; `bound` (d,) is one of every |z_ij|.

    With precision "bf16" sums of q z are in bf16, with "fp32" all products are float32 where they are on a CPU.
    """
    low = precision == "bf16"
    assign, buffer = SoftAssignment(scores), Workspace()
    doubts = assign.may_doubt(bound)
    if serves(scores):
        return fused_soft_statistics(scores, frame, assign if doubts else None, low_precision_sums=low)
    summed: SoftByTiles | SoftByProducts
    if precision != "fp32" and SoftByTiles.serves(assign.logits):
        summed = SoftByTiles(assign, bound, low_precision_sums=low)
    else:
        summed = SoftByProducts(assign, low_precision_sums=low)
    clusters = len(scores)
    del scores  # all that is kept of them are logits

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        tiles: Iterator[tuple[RowTile, Tensor]]
        tiles = ((rows, weight[where]) for where, rows in batch.row_tiles(frame, clusters, summed.tile, buffer))
        if doubts:
            exact = ExactSums(assign.costs, assign.temperature, weight.device)
            tiles = exact.without_doubtful(assign, tiles)
        with flushed_denormals():
            counts, sums, entropy = summed(tiles)
        into.add("counts", counts)
        into.add("sums", sums)
        into.add("entropy", entropy)
        if doubts:
            into.add("counts", exact.counts)
            into.add("sums", exact.sums)
            into.add("entropy", exact.entropy)
        into.add("rows", len(batch))

    return local


def soft_distances_within(scores: Scores, frame: Frame, means: Costs) -> Local:
    """sum_i w_i sum_k q_ik ||u_i - mean_k||^2 over rows, in float64, by the posteriors that `scores` give them."""
    buffer = Workspace()

    def local(batch: Batch, into: Statistics) -> None:
        weight, total = batch.weights(), 0.0
        for where, rows in batch.row_tiles(frame, len(scores), AT_ONCE, buffer):
            q, _ = exact_posteriors(scores.costs, scores.temperature, rows.x)
            total += float(torch.dot(weight[where], q.mul_(means(rows.x)).sum(1)))
        into.add("within", total)
        into.add("rows", len(batch))

    return local
