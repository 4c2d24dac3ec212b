"""What a worker adds up: the sufficient statistics of one pass, batch by batch.

Each function returns a closure ``local(batch, into)`` that adds one canonical batch to the statistics `into`.
Closures prepare what a whole pass shares (rounded prototypes, say) once and hold no state of their own, so any
number of threads may call one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from raydkm.ops.amx_soft import SoftByTiles
from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import COUNT, Field, Grid, Statistics
from raydkm.ops.frame import Frame, Shifted
from raydkm.ops.fused import fused_hard_statistics, fused_soft_statistics, serves
from raydkm.ops.hard import HardAssignment
from raydkm.ops.last import LastPass
from raydkm.ops.leading import Directions
from raydkm.ops.scores import Scores
from raydkm.ops.soft import SoftAssignment, SoftByProducts
from raydkm.ops.workspace import Workspace

Local = Callable[[Batch, Statistics], None]


@dataclass(frozen=True)
class RowByRow:
    """A `Local` whose sums are of rows, so that several canonical batches may come as one."""

    add: Local

    def __call__(self, batch: Batch, into: Statistics) -> None:
        self.add(batch, into)


ROWS = Field("rows", (), COUNT)  # every pass counts its rows


def weighted_field(
    name: str, shape: tuple[int, ...], rows: int, max_weight: float, bound: Tensor | float = 1.0, *, at_once: int
) -> Field:
    """A field for sums over `rows` rows of w_i x_i with |x_i| <= bound, w_i <= max_weight.

    `bound` is a number or one for each column; up to `at_once` rows are summed before they are rounded.
    """
    most = max_weight * bound
    return Field(name, shape, Grid.holding(total=rows * most, addend=min(rows, at_once) * most))


def cluster_fields(clusters: int, rows: int, max_weight: float, bound: Tensor, *, hard: bool) -> tuple[Field, ...]:
    """n_k = sum w q_ik, S_k = sum w q_ik z_i, H = -sum w q log q and the number of rows.

    `bound` (d,) is a bound of every |z_ij|; hard statistics are rounded row by row, soft ones batch by batch.
    """

    def field(name: str, shape: tuple[int, ...], bound: Tensor | float) -> Field:
        return weighted_field(name, shape, rows, max_weight, bound, at_once=1 if hard else BATCH_ROWS)

    return (
        field("counts", (clusters,), 1.0),
        field("sums", (clusters, len(bound)), bound),
        field("entropy", (), math.log(clusters) + 1),
        ROWS,
    )


def hard_statistics(
    scores: Scores,
    frame: Frame,
    *,
    precision: str,
    directions: Directions | None = None,
    last: LastPass | None = None,
    on_labels: Callable[[int, Tensor], None] | None = None,
) -> Local:
    """n and S for q_i = the indicator of argmax_k score_ik, rounded row by row.

    `precision` and `directions` are those of `HardAssignment`, and change no bit of the sums; nor does `last`, by which
    only rows of another label than in the last pass are added. `on_labels(first, labels)` is called with the labels of
    each tile and the position of its first row.
    """
    if precision != "fp32" and serves(scores):
        return fused_hard_statistics(scores, frame, on_labels=on_labels)
    assign, buffer = HardAssignment(scores, precision, directions, last), Workspace()

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        for where, rows in batch.shifted(frame, len(scores), assign.tile, buffer):
            tile = None if last is None else last.tile(batch.first + where.start, len(rows.x))
            before = None if tile is None else tile.labels
            labels = assign(rows, tile)
            add_assigned(into, labels, rows, weight[where], weighted=batch.weight is not None, before=before)
            if before is not None:
                before.copy_(labels)
            if on_labels is not None:
                on_labels(batch.first + where.start, labels)
        into.add("rows", len(batch))

    return RowByRow(local)


def add_assigned(
    into: Statistics,
    labels: Tensor,
    rows: Tensor | Shifted,
    weight: Tensor,
    *,
    weighted: bool,
    before: Tensor | None = None,
) -> None:
    """Add rows (n, d) of weights (n,), ones unless `weighted`, to n and S of their clusters (n,).

    And take them from those they were added to before, see `Statistics.add_rows`.
    """
    into.add_rows("counts", labels, weight, before)
    rows = Shifted(rows) if isinstance(rows, Tensor) else rows
    into.add_rows("sums", labels, rows.x, before, weight if weighted else None, rows.shift)


def soft_statistics(scores: Scores, frame: Frame, *, bound: Tensor, precision: str) -> Local:
    """n, S and H for q_i = softmax_k(2 score_ik / T), rounded batch by batch; `bound` (d,) is one of every |z_ij|.

    With precision "bf16" sums of q z are in bf16, with "fp32" all products are float32 where they are on a CPU.
    """
    low = precision == "bf16"
    if serves(scores):
        return fused_soft_statistics(scores, frame, low_precision_sums=low)
    assign, buffer = SoftAssignment(scores), Workspace()
    summed: SoftByTiles | SoftByProducts
    if precision != "fp32" and SoftByTiles.serves(assign.logits):
        summed = SoftByTiles(assign, bound, low_precision_sums=low)
    else:
        summed = SoftByProducts(assign, low_precision_sums=low)
    clusters = len(scores)
    del scores  # all that is kept of them are logits

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        tiles = batch.shifted(frame, clusters, summed.tile, buffer)
        counts, sums, entropy = summed((rows, weight[where]) for where, rows in tiles)
        into.add("counts", counts)
        into.add("sums", sums)
        into.add("entropy", entropy)
        into.add("rows", len(batch))

    return local
