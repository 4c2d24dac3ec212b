"""Statistics by fused GPU kernels, and the one place that decides where they are used.

The closures add what those of `raydkm.ops.statistics` add, for batches of one or more canonical batches.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.cost import Costs
from raydkm.ops.exact import Statistics
from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.scores import Scores
from raydkm.ops.soft import ExactSums, SoftAssignment

if TYPE_CHECKING:
    from raydkm.ops.statistics import Local

#: Elements of rows that a hard step holds at once, 128 MiB, and twice as much of them as integers.
_ROWS_SIZE = 2**25


def serves(scores: Scores) -> bool:
    """Whether statistics of `scores` are computed by the fused kernels."""
    return (
        scores.prototypes.device.type == "cuda"
        and scores.prototypes.dtype == torch.float32
        and find_spec("triton") is not None
    )


def fused_hard_statistics(
    scores: Scores,
    frame: Frame,
    *,
    about: Costs | None = None,
    on_labels: Callable[[int, Tensor], None] | None = None,
) -> Local:
    """n and S for hard labels, S rounded row by row."""
    from raydkm.ops.statistics import add_assigned  # which imports this module
    from raydkm.ops.triton_hard import FusedLabels  # Triton is there on GPU machines only

    assign = FusedLabels(scores)
    at_once = max(1, _ROWS_SIZE // scores.prototypes.shape[1])

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        for start in range(0, len(batch), at_once):
            where = slice(start, start + at_once)
            rows = frame.tile(batch.rows[where])
            labels = assign(rows)
            add_assigned(into, labels, rows, weight[where], weighted=batch.weight is not None)
            if about is not None:
                into.add_each("within", about.squared_distances(rows.x, labels).mul_(weight[where]))
            if on_labels is not None:
                on_labels(batch.first + start, labels)
        into.add("rows", len(batch))

    return local


def fused_soft_statistics(
    scores: Scores, frame: Frame, assign: SoftAssignment | None, *, low_precision_sums: bool
) -> Local:
    """n, S and H for posteriors, rounded by canonical batch; a batch begins where a canonical one does.

    With `assign`, its doubtful rows have exact posteriors.
    """
    from raydkm.ops.triton_soft import FusedSoft

    soft = FusedSoft(scores, low_precision_sums=low_precision_sums)

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        for start in range(0, len(batch), soft.at_once):
            where = slice(start, start + soft.at_once)
            rows, own = frame.tile(batch.rows[where]), weight[where]
            if assign is not None:
                doubtful = assign.doubtful(rows.z)
                parts = (x.split(BATCH_ROWS) for x in (torch.arange(len(own), device=own.device), doubtful))
                for index, part in zip(*parts, strict=True):
                    _add_exactly(assign, rows.some(index[part]), own[index[part]], into)
                rows, own = rows.without(doubtful), own.masked_fill(doubtful, 0.0)
            for sums in zip(*soft(rows.z, own), strict=True):
                _add(into, *sums)
        into.add("rows", len(batch))

    return local


def _add_exactly(assign: SoftAssignment, rows: RowTile, weight: Tensor, into: Statistics) -> None:
    """Add doubtful rows of a canonical batch."""
    exact = ExactSums(assign.costs, assign.temperature, weight.device)
    exact.add(rows, weight)
    _add(into, exact.counts, exact.sums, exact.entropy)


def _add(into: Statistics, counts: Tensor, sums: Tensor, entropy: Tensor | float) -> None:
    into.add("counts", counts)
    into.add("sums", sums)
    into.add("entropy", entropy)
