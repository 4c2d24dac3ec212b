"""What is known from the last pass over the same rows: labels, what a screen multiplies of them, and sums by cluster.

Sums are exact, so that the rows whose label is another one now, taken from their old cluster and added to their new
one, make the very sums that all rows would. And a row whose prototype has not moved has to be compared with those alone
that have: none of the others was better, and they are where they were.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.ops.exact import Field, Statistics
from raydkm.ops.kernels import differing
from raydkm.ops.leading import Leading
from raydkm.ops.scores import Scores
from raydkm.ops.screen import Rows

#: Sums that go on from pass to pass.
_KEPT = ("counts", "sums")

#: Bytes that what is multiplied of rows may take; it is computed anew of those that are over.
ROWS_BYTES = 2**27


@dataclass
class Tile:
    """What is known of some rows.

    Parameters
    ----------
    labels : Tensor (n,) of int32
        Of the last pass, to be overwritten; -1 in the first one.
    rows : Rows, optional
        As they are multiplied by a screen of these leading directions.
    leading : Leading, optional
    """

    labels: Tensor
    rows: Rows | None = None
    leading: Leading | None = None


class LastPass:
    """The last hard pass of one worker over its rows, which come in the same order and tiles each time.

    A pass adds to what `begin` returns, and the next one goes on from there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """The next pass is the first one."""
        self._tiles: dict[int, Tile] = {}
        self._room = ROWS_BYTES
        self._scores: Scores | None = None
        self._sums: Statistics | None = None

    @property
    def known(self) -> bool:
        """Whether the next pass goes on from sums."""
        return bool(self._tiles)

    def moved(self, scores: Scores) -> Tensor | None:
        """The prototypes (m,) int64 whose cost is not that of the last pass; None in the first one."""
        last, self._scores = self._scores, scores
        if last is None:
            return None
        moved, costs, before = torch.empty(len(scores), dtype=torch.bool), scores.costs, last.costs
        differing(costs.prototypes.numpy(), before.prototypes.numpy(), moved.numpy())
        return moved.logical_or_(costs.offset != before.offset).nonzero()[:, 0]

    def tile(self, first: int, rows: int) -> Tile:
        """What is known of `rows` rows from position `first` on."""
        if first not in self._tiles:
            self._tiles[first] = Tile(torch.full((rows,), -1, dtype=torch.int32))
        tile = self._tiles[first]
        if len(tile.labels) != rows:  # compiled loops do not look
            raise ValueError(f"{rows} rows from {first} on, which were {len(tile.labels)} in the last pass")
        return tile

    def keep(self, tile: Tile, rows: Rows, leading: Leading) -> None:
        """Keep what is multiplied of a tile's rows, which nothing else writes to, while there is room."""
        with self._lock:
            self._room += 0 if tile.rows is None else tile.rows.nbytes
            fits = rows.nbytes <= self._room
            self._room -= rows.nbytes if fits else 0
        tile.rows, tile.leading = (rows, leading) if fits else (None, None)

    def begin(self, fields: tuple[Field, ...]) -> Statistics:
        """The sums to add to: those by cluster are of the last pass, if there was one."""
        if self._sums is None or not self.known:
            self._sums = Statistics(fields)
        for field in fields:
            if field.name not in _KEPT:
                for part in self._sums.parts(field.name):
                    part.zero_()
        return self._sums
