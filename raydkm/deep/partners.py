"""Rows that belong together without anybody saying so: each row's nearest neighbours, as its second view."""

from __future__ import annotations

import torch
from torch import Tensor

from raydkm.data.source import RowSource
from raydkm.deep.shuffle import Share
from raydkm.engine.comm import Comm
from raydkm.features.draws import Draws


class Partners:
    """For each row of a step another row, on whichever worker it is.

    Parameters
    ----------
    rows : RowSource
        This worker's rows.
    neighbours : Tensor (n, k) of int64
        Their neighbours' numbers among all workers' rows.
    start : int
        Number of the first of them.
    """

    def __init__(self, rows: RowSource, neighbours: Tensor, start: int, comm: Comm):
        self._rows, self._neighbours, self._start, self._comm = rows, neighbours, start, comm

    def __call__(self, share: Share, salt: int) -> Tensor:
        """One of each row's neighbours, or the row itself, all as likely: rows (n, d) as they are stored."""
        own = share.rows - self._start
        among = torch.cat([share.rows[:, None], self._neighbours[own]], dim=1)
        chosen = Draws(share.rows, salt).integers(among.shape[1])
        wanted = among.gather(1, chosen[:, None]).flatten()
        if self._comm.world_size == 1:
            return self._rows.take(wanted)
        # every worker names what it wants, then gives what it has
        asked = torch.zeros(share.size, dtype=torch.int64).index_copy_(0, share.slots, wanted)
        self._comm.sum_up(asked)
        mine = torch.nonzero((asked >= self._start) & (asked < self._start + self._rows.held)).flatten()
        held = self._rows.take(asked[mine] - self._start).cpu()
        given = torch.zeros(share.size, held.shape[1], dtype=held.dtype).index_copy_(0, mine, held)
        self._comm.sum_up(given)
        return given[share.slots]
