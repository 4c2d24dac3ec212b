"""Prototypes without rows are moved to the rows farthest from theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from raydkm.engine.passes import Passes
from raydkm.objectives import Objective, State
from raydkm.ops.batch import HARD_TILE, Batch
from raydkm.ops.exact import Statistics
from raydkm.ops.hard import HardAssignment
from raydkm.ops.keys import content_hashes
from raydkm.ops.sample import Smallest
from raydkm.ops.statistics import ROWS
from raydkm.ops.workspace import Workspace


def placed_at_farthest(objective: Objective, before: State, after: State, counts: Tensor, passes: Passes) -> State:
    """The state after a step, with each prototype that had no rows in it at one of the rows farthest from theirs.

    Where there are fewer different rows away from their prototypes, the others stay where `update` has put them.
    """
    empty = (counts == 0).nonzero()[:, 0]
    rows = farthest_rows(objective, before, passes, len(empty))
    return replace(after, prototypes=after.prototypes.index_copy(0, empty[: len(rows)], rows))


def farthest_rows(objective: Objective, state: State, passes: Passes, count: int) -> Tensor:
    """Up to `count` different rows (m, d) of float64, in the frame, farthest first, in one pass.

    Distances are of differences in float64. A row is away from its prototype if they differ by more than the grid does
    on which rows are summed.
    """
    frame, scores = objective.setting.frame, objective.scores(state)
    assign, sketch, buffer = HardAssignment(scores, objective.setting.precision), Smallest(count), Workspace()

    def local(batch: Batch, into: Statistics) -> None:
        squares = torch.empty(len(batch), dtype=torch.float64)
        for where, tile in batch.row_tiles(frame, len(scores), HARD_TILE, buffer):
            squares[where] = scores.costs.squared_distances(tile.x, assign(tile)).cpu()
        rows = batch.rows.cpu().numpy()
        # equally far rows are told apart by their contents, in the bits that float32 does not use
        apart = 1 + content_hashes(rows, None).astype(np.float64) * 2.0**-92
        away = (distances > rounding).numpy() & (batch.weights() > 0).cpu().numpy()
        sketch.add(np.where(away, -distances.double().numpy() * apart, np.inf), rows, None)
        into.add("rows", len(batch))

    passes.sum((ROWS,), local)
    parts = [part for part in passes.comm.all_gather(sketch.found()) if len(part[0])]
    if not parts:
        return torch.empty(0, scores.prototypes.shape[1], dtype=torch.float64)
    keys, rows = (np.concatenate([part[column] for part in parts]) for column in (0, 3))
    _, places = np.unique(keys, return_index=True)
    return frame.tile(torch.from_numpy(rows[places[:count]])).double()
