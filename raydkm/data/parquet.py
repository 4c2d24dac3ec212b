"""A set of Parquet files as one table of rows, numbered through in the files' sorted order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydkm.data.columns import Block, Columns
from raydkm.data.files import find_files
from raydkm.errors import InputError

#: Rows decoded at a time.
READ_ROWS = 16_384


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def schema_of(path: str) -> pa.Schema:
    with _readable(path):
        return pq.read_schema(path)


def scan_file(path: str, columns: list[str], start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
    """Yield rows [start, stop) of a file, decoding only the row groups that hold them."""
    with _readable(path), pq.ParquetFile(path, memory_map=True) as file:
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        stop = sum(sizes) if stop is None else stop
        groups, first, seen = [], 0, 0
        for group, size in enumerate(sizes):
            if seen < stop and seen + size > start:
                groups.append(group)
                first = seen if len(groups) == 1 else first
            seen += size
        for batch in file.iter_batches(READ_ROWS, row_groups=groups, columns=columns, use_threads=True):
            keep_from, keep_to = max(start - first, 0), min(stop - first, len(batch))
            if keep_from < keep_to:
                yield batch.slice(keep_from, keep_to - keep_from)
            first += len(batch)


@dataclass(frozen=True)
class ParquetTable:
    """Files whose schemas agree, with their row counts read from the footers.

    Parameters
    ----------
    files : tuple of str
        Sorted.
    counts : tuple of int
        Rows of each file.
    columns : Columns
    dtype : numpy.dtype
        In which all files' features are read: the smallest that holds each of theirs.
    unit : bool
        Whether rows will be scaled to unit length, so that zero vectors are refused.
    """

    files: tuple[str, ...]
    counts: tuple[int, ...]
    columns: Columns
    dtype: np.dtype
    unit: bool = False

    @classmethod
    def open(
        cls,
        data: str | os.PathLike | Iterable[str | os.PathLike],
        column: str | None,
        weight: str | None = None,
        *,
        unit: bool = False,
        dim: int | None = None,
    ) -> ParquetTable:
        """Read every footer and refuse what can be refused without reading rows.

        `dim`, if given, is the dimension that the vectors must have.
        """
        files = find_files(data)
        columns = Columns.named(column, weight, schema_of(files[0]).names)

        def footer(path: str) -> tuple[int, int | None, np.dtype]:
            with _readable(path), pq.ParquetFile(path) as file:
                rows, schema = file.metadata.num_rows, file.schema_arrow
            return rows, columns.check(schema, path), columns.dtype(schema)

        with ThreadPoolExecutor(min(16, len(files))) as pool:
            counts, widths, dtypes = zip(*pool.map(footer, files), strict=True)
        known = [(path, width) for path, width in zip(files, widths, strict=True) if width is not None]
        of_model = [("the model", dim)] if dim is not None else []
        for (other, expected), (path, width) in pairwise([*of_model, *known]):
            if width != expected:
                raise InputError(
                    f"{path}: column '{columns.label}' has {width} dimensions where {other} has {expected}"
                )
        if sum(counts) == 0:
            raise InputError(f"{files[0]}{' and the other files' if len(files) > 1 else ''}: no rows")
        return cls(tuple(files), counts, columns, np.result_type(*dtypes), unit)

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Yield rows [start, stop) of the whole table, in order, checked."""
        stop = self.rows if stop is None else stop
        offset, dim = 0, None
        for path, count in zip(self.files, self.counts, strict=True):
            low, high = max(start - offset, 0), min(stop - offset, count)
            offset += count
            row = low
            if low >= high:
                continue
            for batch in scan_file(path, self.columns.needed, low, high):
                block = self.columns.extract(batch, path, row, unit=self.unit)
                dim = dim or block.rows.shape[1]
                if block.rows.shape[1] != dim:
                    raise InputError(
                        f"{path}: row {row}, column '{self.columns.label}': "
                        f"{block.rows.shape[1]} numbers where the rows before have {dim}"
                    )
                yield Block(block.rows.astype(self.dtype, copy=False), block.weight)
                row += len(batch)
            if row != high:
                raise InputError(f"{path}: {row - low} rows read where its footer promises {high - low}")
