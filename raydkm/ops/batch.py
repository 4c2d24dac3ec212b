"""A canonical batch: a fixed range of rows, read tile by tile in the coordinates of a frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.workspace import Workspace

#: Rows in a canonical batch. Results depend on this number (in the last bits), so it is not a setting.
BATCH_ROWS = 4096


#: Numbers of a tile's product. Sums within a tile are rounded by a soft step, so that this is not a setting either; a
#: hard step's are not, and its tile is as large as pays for what is done once a tile.
SOFT_TILE = 2**20
HARD_TILE = 2**21


@dataclass(frozen=True)
class Batch:
    """Up to `BATCH_ROWS` rows as they are stored, or more where sums are of rows.

    Parameters
    ----------
    first : int
        Position of the first row among this worker's rows.
    rows : Tensor (n, d), any numeric dtype
    weight : Tensor (n,) of float64, or None for weights of 1
    """

    first: int
    rows: Tensor
    weight: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        if self.rows.device == device:
            return self
        weight = None if self.weight is None else self.weight.to(device)
        return Batch(self.first, self.rows.to(device), weight)

    def weights(self) -> Tensor:
        """(n,) float64."""
        if self.weight is not None:
            return self.weight
        return torch.ones(len(self), dtype=torch.float64, device=self.rows.device)

    def tiles(
        self, frame: Frame, columns: int, numbers: int, buffer: Workspace | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield (range in the batch, z), of so few rows that z and a product of `columns` columns have `numbers`.

        With a buffer, each z is overwritten by the thread's next one.
        """
        for where in self._ranges(columns, numbers):
            rows = self.rows[where]
            yield where, frame(rows, None if buffer is None else buffer("tile", rows.shape, rows, frame.dtype))

    def row_tiles(self, frame: Frame, columns: int, numbers: int, buffer: Workspace) -> Iterator[tuple[slice, RowTile]]:
        """The same as tiles that keep the stored rows and compute z when it is asked for, in the buffer."""
        for where in self._ranges(columns, numbers):
            rows = self.rows[where]
            yield where, frame.tile(rows, buffer("tile", rows.shape, rows, frame.dtype))

    def _ranges(self, columns: int, numbers: int) -> Iterator[slice]:
        size = max(128, numbers // max(columns, self.rows.shape[1]) // 64 * 64)
        size = size // BATCH_ROWS * BATCH_ROWS if size > BATCH_ROWS else size
        return (slice(start, start + size) for start in range(0, len(self), size))
