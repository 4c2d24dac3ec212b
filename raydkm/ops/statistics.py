"""What a worker adds up: the sufficient statistics of one pass, batch by batch.

Each function returns a closure ``local(batch, into)`` that adds one canonical batch to the statistics `into`.
Closures prepare what a whole pass shares (rounded prototypes, say) once and hold no state of their own, so any
number of threads may call one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import COUNT, Field, Grid, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.hard import HardAssignment
from raydkm.ops.scores import Scores
from raydkm.ops.soft import SoftAssignment

Local = Callable[[Batch, Statistics], None]

#: Up to this many, rounding K x d sums once a batch costs less than rounding each row.
FEW_PROTOTYPES = 256

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

    `bound` (d,) is a bound of every |z_ij|; `hard` tells what `hard_statistics` and `soft_statistics` round at once.
    """

    def field(name: str, shape: tuple[int, ...], bound: Tensor | float, at_once: int = BATCH_ROWS) -> Field:
        return weighted_field(name, shape, rows, max_weight, bound, at_once=at_once)

    by_row = hard and clusters > FEW_PROTOTYPES
    return (
        field("counts", (clusters,), 1.0, 1 if hard else BATCH_ROWS),
        field("sums", (clusters, len(bound)), bound, 1 if by_row else BATCH_ROWS),
        field("entropy", (), math.log(clusters) + 1),
        ROWS,
    )


def hard_statistics(
    scores: Scores, frame: Frame, *, screen: bool, on_labels: Callable[[int, Tensor], None] | None = None
) -> Local:
    """n and S for q_i = the indicator of argmax_k score_ik.

    S is rounded row by row; for few prototypes, where a sum over the batch costs less, batch by batch.
    `on_labels(first, labels)` is called with the labels of each tile and the position of its first row.
    """
    assign = HardAssignment(scores, screen=screen)
    by_batch = len(scores) <= FEW_PROTOTYPES and scores.bias.device.type == "cpu"  # index_add_ is ordered there

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        sums = torch.zeros(scores.prototypes.shape if by_batch else (0,), dtype=torch.float64)
        for where, z in batch.tiles(frame, len(scores)):
            labels = assign(z)
            weighted = z if batch.weight is None else z * weight[where, None]
            into.add_rows("counts", labels, weight[where])
            if by_batch:
                sums.index_add_(0, labels, weighted.to(torch.float64))
            else:
                into.add_rows("sums", labels, weighted)
            if on_labels is not None:
                on_labels(batch.first + where.start, labels)
        if by_batch:
            into.add("sums", sums)
        into.add("rows", len(batch))

    return local


def soft_statistics(scores: Scores, frame: Frame, *, low_precision_sums: bool) -> Local:
    """n, S and H for q_i = softmax_k(2 score_ik / T), rounded batch by batch."""
    assign = SoftAssignment(scores)

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        counts, sums = torch.zeros_like(scores.bias), torch.zeros_like(scores.prototypes)
        entropy = torch.zeros((), dtype=torch.float64, device=weight.device)
        for where, z in batch.tiles(frame, len(scores)):
            posterior = assign(z)
            factor = weight[where].to(z.dtype) / posterior.normaliser
            q = posterior.exp_logits
            counts.addmv_(q.T, factor)
            if q.shape[1] < z.shape[1]:  # normalise the smaller operand
                q.mul_(factor[:, None])
            else:
                z = z * factor[:, None]
            if low_precision_sums:
                sums += torch.mm(q.T.to(torch.bfloat16), z.to(torch.bfloat16))
            else:
                sums.addmm_(q.T, z)
            entropy += torch.dot(weight[where], posterior.entropy.to(torch.float64))
        into.add("counts", counts)
        into.add("sums", sums)
        into.add("entropy", entropy)
        into.add("rows", len(batch))

    return local
