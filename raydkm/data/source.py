"""Rows held by one worker, served as canonical batches.

An algorithm asks a source for nothing but its batches and for single rows by position; it does not know where
they live.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydkm.data.columns import Block, check_rows, check_weight
from raydkm.data.tiers import Allocate, on_host
from raydkm.errors import InputError
from raydkm.ops.batch import BATCH_ROWS, Batch


class MemorySource:
    """Rows in memory, host or device, in the dtype they are stored in.

    Parameters
    ----------
    rows : Tensor (n, d)
    weight : Tensor (n,) of float64, or None
    first : int
        Number of this worker's first row among those of all workers, a multiple of `BATCH_ROWS`.
    total : int, optional
        Rows of all workers together; `n` if not given.
    """

    def __init__(self, rows: Tensor, weight: Tensor | None = None, first: int = 0, total: int | None = None):
        self._rows = rows
        self._weight = weight
        self.first = first
        self.total = len(rows) if total is None else total

    @classmethod
    def from_array(cls, x: NDArray | Tensor, weight: NDArray | None = None, *, unit: bool = False) -> MemorySource:
        """Check an array (n, d) of numbers, and weights (n,), and hold them without a copy where possible.

        Raises
        ------
        InputError
            Naming the row, as `raydkm.data.columns.check_rows` does.
        """
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if array.ndim != 2:
            raise InputError(f"expected a matrix of rows × features, got {array.ndim} dimension(s); reshape it first")
        if array.dtype.kind == "b":
            array = array.astype(np.uint8)
        if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
            array = array.astype(np.float64)
        if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
            raise InputError(f"dtype {array.dtype}: features are floats or integers")
        if 0 in array.shape:
            raise InputError(f"an array of shape {array.shape} has no {'rows' if len(array) == 0 else 'features'}")
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        check_rows(array, "row {}".format, unit=unit)
        if weight is None:
            return cls(as_tensor(array))
        weight = np.asarray(weight, dtype=np.float64)
        if weight.shape != array.shape[:1]:
            raise InputError(f"{len(array)} rows but weights of shape {weight.shape}")
        check_weight(weight, "row {}".format)
        return cls(as_tensor(array), torch.from_numpy(weight))

    @classmethod
    def from_blocks(
        cls,
        blocks: Iterable[Block],
        rows: int,
        *,
        first: int = 0,
        total: int | None = None,
        allocate: Allocate = on_host,
    ) -> MemorySource:
        """Copy blocks of `rows` rows altogether into one matrix, in the place that `allocate` makes."""
        matrix: NDArray = np.empty((0, 0), dtype=np.float32)
        weight, filled = None, 0
        for block in blocks:
            if filled == 0:
                matrix = allocate((rows, block.rows.shape[1]), block.rows.dtype)
                weight = None if block.weight is None else np.empty(rows)
            elif block.rows.shape[1] != matrix.shape[1]:
                raise InputError(
                    f"vectors of {matrix.shape[1]} and of {block.rows.shape[1]} dimensions in one data set"
                )
            elif block.rows.dtype != matrix.dtype:
                raise InputError(
                    f"vectors of {matrix.dtype} and of {block.rows.dtype} in one data set; cast the column"
                )
            after = filled + len(block.rows)
            matrix[filled:after] = block.rows
            if weight is not None:
                weight[filled:after] = block.weight
            filled = after
        return cls(
            as_tensor(matrix[:filled]), None if weight is None else torch.from_numpy(weight[:filled]), first, total
        )

    def to(self, device: torch.device) -> MemorySource:
        weight = None if self._weight is None else self._weight.to(device)
        return MemorySource(self._rows.to(device), weight, self.first, self.total)

    @property
    def rows(self) -> int:
        """Rows of this worker."""
        return len(self._rows)

    @property
    def dim(self) -> int:
        return self._rows.shape[1]

    def __len__(self) -> int:
        """Number of canonical batches."""
        return -(-self.rows // BATCH_ROWS)

    def __getitem__(self, index: int) -> Batch:
        where = slice(index * BATCH_ROWS, (index + 1) * BATCH_ROWS)
        return Batch(where.start, self._rows[where], None if self._weight is None else self._weight[where])

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (m, d) and weights (m,) of float64 at these positions."""
        rows = self._rows[positions.to(self._rows.device)].cpu()
        if self._weight is None:
            return rows, torch.ones(len(rows), dtype=torch.float64)
        return rows, self._weight[positions.to(self._weight.device)].cpu()


def as_tensor(array: NDArray) -> Tensor:
    """Share the array's memory where it may be written to, else copy."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns of read-only memory
