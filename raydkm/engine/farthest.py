"""Prototypes without rows are moved to the rows farthest from the other prototypes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
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

#: Rounding errors of a mean in float64, as a part of its coordinates.
ROUNDING = 2.0**-50

#: Bits of a squared distance that order rows; the others tell rows at equal distances apart.
DISTANCE_BITS = 24


def placed_at_farthest(objective: Objective, state: State, lost: Tensor, passes: Passes) -> tuple[State, int]:
    """Move prototypes `lost` (m,) to the different rows farthest from their prototypes, in one pass.

    Each takes the scaling of the cluster its row was in, and so gains the row at least. Where fewer rows differ from
    their prototypes, the other prototypes stay.

    Returns
    -------
    State, int
        And how many prototypes have moved.
    """
    if not len(lost):
        return state, 0
    others = torch.ones(len(state.prototypes), dtype=torch.bool).index_fill_(0, lost, False).nonzero()[:, 0]
    parts = {name: getattr(state, name)[others] for name in ("prototypes", "bias", "log_s", "shares")}
    rows, labels = farthest_rows(objective, replace(state, **parts), passes, len(lost))
    lost, scalings = lost[: len(rows)], parts["log_s"][labels]
    moved = (state.prototypes[lost] != rows).any(1) | (state.log_s[lost] != scalings)
    prototypes = state.prototypes.index_copy(0, lost, rows)
    return replace(state, prototypes=prototypes, log_s=state.log_s.index_copy(0, lost, scalings)), int(moved.sum())


def farthest_rows(objective: Objective, state: State, passes: Passes, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` different rows (m, d) of float64, in the frame, farthest first, and their labels (m,).

    Of rows at their prototype, to within the rounding of a mean, there are none.
    """
    setting, scores = objective.setting, objective.scores(state)
    assign, sketch, buffer = HardAssignment(scores, setting.precision), Smallest(count), Workspace()
    prototypes = state.prototypes.to(scores.bias.device)
    sums = next(field for field in objective.fields(state) if field.name == "sums")
    [*_, grid] = sums.grid, *sums.finer
    step = grid.scale.reciprocal().to(prototypes.device)

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        for where, tile in batch.row_tiles(setting.frame, len(scores), HARD_TILE, buffer):
            exact = tile.double() + 0.0  # of zeros, the positive one
            if setting.spherical:
                exact = setting.frame.on_sphere(exact, exact)
            apart = exact - prototypes[assign(tile)]
            error = step / weight[where, None] + exact.abs() * ROUNDING
            away = ((apart.abs() > error).any(1) & (weight[where] > 0)).cpu().numpy()
            rows = exact.cpu().numpy()[away]
            keys = _keys(apart.square().sum(1).cpu().numpy()[away], rows)
            sketch.add(keys, rows, None)
        into.add("rows", len(batch))

    passes.sum((ROWS,), local)
    found = [part for part in passes.comm.all_gather(sketch.found()) if len(part[0])]
    if not found:
        return prototypes.new_empty(0, prototypes.shape[1]).cpu(), torch.empty(0, dtype=torch.int64)
    keys, rows = (np.concatenate([part[column] for part in found]) for column in (0, 3))
    _, places = np.unique(keys, return_index=True)
    chosen = torch.from_numpy(rows[places[:count]])
    labels = assign(setting.frame.tile((chosen + setting.frame.shift).to(prototypes.device))).cpu()
    return chosen, labels


def _keys(squares: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ascending keys (n,) of rows (n, d) of descending distance; equal rows alone share a key."""
    part, exponent = np.frexp(squares)
    rounded = np.ldexp(np.rint(np.ldexp(part, DISTANCE_BITS)), exponent - DISTANCE_BITS)
    return -rounded * (1 + content_hashes(rows, None).astype(np.float64) * 2.0**-92)
