"""Rows in memory, as a person has them: arrays, tensors, data frames and Arrow tables → a checked matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from raydkm.data.columns import Columns
from raydkm.data.source import RowSource, as_tensor
from raydkm.errors import InputError


def rows_of(
    data: Any, *, dim: int, unit: bool, column: str | None = None, shape: tuple[int, ...] | None = None
) -> Tensor:
    """Rows (n, dim) of what is given.

    Parameters
    ----------
    data : array-like (n, dim), torch.Tensor, pandas.DataFrame, pyarrow.Table or RecordBatch
    dim : int
        Of a row.
    unit : bool
        Whether rows need a direction, so that a row of zeros is refused.
    column : str, optional
        Feature column, or columns ``a,b,c``, of tables and data frames; by default all columns, in their order.
    shape : tuple of int, optional
        Of a row, where it is not a vector.

    Raises
    ------
    InputError
        If the rows are not of `dim` finite numbers each; the message names the row.
    """
    if hasattr(data, "__dataframe__") and not isinstance(data, pa.Table | pa.RecordBatch):
        data = pa.Table.from_pandas(data, preserve_index=False) if column is not None else np.asarray(data)
    if isinstance(data, pa.Table | pa.RecordBatch):
        names = data.schema.names
        columns = (
            Columns(tuple(names), shape=shape) if column is None else Columns.named(column, None, names, shape=shape)
        )
        columns.check(data.schema, "the table")
        rows = as_tensor(columns.extract(data, "the table", 0, unit=unit).rows)
    else:
        rows = RowSource.from_array(data, unit=unit).everything()
    if rows.shape[1] != dim:
        raise InputError(f"vectors of {rows.shape[1]} dimensions, the model has {dim}")
    return rows
