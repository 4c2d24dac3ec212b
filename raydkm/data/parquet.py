"""A set of Parquet files as one table of rows, numbered through in the files' sorted order."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydkm.data.columns import Block, Columns
from raydkm.data.files import find_files
from raydkm.data.storage import is_local, locate, retried, wait_to_retry
from raydkm.data.tiers import size_of
from raydkm.errors import InputError
from raydkm.ops.batch import BATCH_ROWS

#: Rows decoded at a time: at most so many, of so many bytes, and of encoded images, whose size no schema tells, fewer.
READ_ROWS = 16_384
READ_BYTES = 2**27
READ_IMAGES = 512


#: What tells a file from one that has replaced it: bytes, and nanoseconds of its last change.
Stamp = tuple[int | None, int | None]


def stamp_of(name: str) -> Stamp:
    files, path = locate(name)
    info = files.get_file_info(path)
    return info.size, info.mtime_ns


@contextmanager
def _opened(name: str, stamp: Stamp | None = None) -> Iterator[pq.ParquetFile]:
    """A file opened for reading its row groups one after another; what is not Parquet, or has changed, is refused."""
    files, path = locate(name)
    if stamp is not None and stamp_of(name) != stamp:
        raise InputError(f"{name}: the file has changed since this run began")
    try:
        with (
            files.open_input_file(path) as stream,
            # from an object store, all of a row group is asked for at once
            pq.ParquetFile(stream, pre_buffer=not is_local(name), page_checksum_verification=True) as file,
        ):
            yield file
    except pa.ArrowInvalid as error:
        raise InputError(f"{name}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def scan_file(
    name: str,
    columns: list[str],
    start: int = 0,
    stop: int | None = None,
    *,
    stamp: Stamp | None = None,
    at_once: int = READ_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield rows [start, stop) of a file, up to `at_once` at a time, decoding only the row groups that hold them.

    They are fewer where they would take more than `READ_BYTES`, by the footer, or more than one array holds. `stamp`,
    if given, is the one that the file must still have. After a read that failed it goes on where it was, up to
    `raydkm.data.storage.ATTEMPTS` times in one place.
    """
    failures = 0
    while True:
        try:
            for batch in _scan(name, columns, start, stop, stamp, at_once):
                yield batch
                start += len(batch)
                failures = 0
            return
        except pa.ArrowNotImplementedError as error:  # of nested rows of more than 2 GiB
            if at_once == 1:
                told = str(error).splitlines()[0]
                raise InputError(f"{name}: row {start} and after: Arrow cannot read them ({told})") from None
            at_once = max(1, at_once // 8)
        except OSError as error:
            failures += 1
            wait_to_retry(f"{name}: row {start}", failures, error)


def _scan(
    name: str, columns: list[str], start: int, stop: int | None, stamp: Stamp | None, at_once: int
) -> Iterator[pa.RecordBatch]:
    with _opened(name, stamp) as file:
        sizes = _group_sizes(file)
        stop = sum(sizes) if stop is None else stop
        groups = _groups(file, start, stop)
        first = sum(sizes[: groups[0]]) if groups else 0
        for some in [groups] if is_local(name) else [[group] for group in groups]:
            for batch in batches_of(file, columns, some, at_once):
                keep_from, keep_to = max(start - first, 0), min(stop - first, len(batch))
                if keep_from < keep_to:
                    yield batch.slice(keep_from, keep_to - keep_from)
                first += len(batch)


def _group_sizes(file: pq.ParquetFile) -> tuple[int, ...]:
    return tuple(file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups))


def batches_of(
    file: pq.ParquetFile, columns: list[str] | None = None, groups: list[int] | None = None, at_once: int = READ_ROWS
) -> Iterator[pa.RecordBatch]:
    """Rows of some columns and row groups, by default all, up to `at_once` and about `READ_BYTES` at a time."""
    columns = file.schema_arrow.names if columns is None else columns
    groups = list(range(file.metadata.num_row_groups)) if groups is None else groups
    at_once = max(1, min(at_once, int(READ_BYTES / max(1.0, _bytes_a_row(file, columns, groups)))))
    yield from file.iter_batches(at_once, row_groups=groups, columns=columns, use_threads=True)


def _bytes_a_row(file: pq.ParquetFile, columns: Iterable[str], groups: Iterable[int]) -> float:
    """The most bytes that a row of some columns takes in some row groups, on average in each, before compression."""
    wanted = set(columns)

    def is_part(path: str) -> bool:  # of a wanted column, whose name may have dots too
        parts = path.split(".")
        return any(".".join(parts[:length]) in wanted for length in range(1, len(parts) + 1))

    schema = file.metadata.schema
    needed = [number for number in range(len(schema)) if is_part(schema.column(number).path)]

    def average(group: pq.RowGroupMetaData) -> float:
        return sum(group.column(number).total_uncompressed_size for number in needed) / max(1, group.num_rows)

    return max((average(file.metadata.row_group(number)) for number in groups), default=0.0)


def bytes_a_row(name: str, columns: Iterable[str], start: int, stop: int) -> float:
    """The most bytes that a row of some columns takes among rows [start, stop) of a file, by its footer."""

    def read() -> float:
        with _opened(name) as file:
            return _bytes_a_row(file, columns, _groups(file, start, stop))

    return retried(name, read)


def _groups(file: pq.ParquetFile, start: int, stop: int) -> list[int]:
    """The row groups that hold rows [start, stop)."""
    sizes = _group_sizes(file)
    ends = np.cumsum(sizes)
    return [g for g, (end, size) in enumerate(zip(ends, sizes, strict=True)) if end - size < stop and end > start]


@dataclass(frozen=True)
class ParquetTable:
    """Files whose schemas agree, with what their footers tell.

    Parameters
    ----------
    files : tuple of str
        Paths and URIs, sorted.
    groups : tuple of tuples of int
        Rows of each row group of each file.
    schemas : tuple of pyarrow.Schema
        Of each file.
    stamps : tuple of Stamp
        Of each file, which must not change while it is read.
    columns : Columns
    dtype : numpy.dtype
        In which all files' features are read: the smallest that holds each of theirs.
    dim : int
        Of the vectors; where the schemas leave it open, that of the first row.
    unit : bool
        Whether rows will be scaled to unit length, so that zero vectors are refused.
    """

    files: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    schemas: tuple[pa.Schema, ...]
    stamps: tuple[Stamp, ...]
    columns: Columns
    dtype: np.dtype
    dim: int
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
        shape: tuple[int, ...] | None = None,
    ) -> ParquetTable:
        """Read every footer and refuse what can be refused without reading rows (but one, where no schema has the dim).

        `dim`, if given, is the dimension that the vectors must have, and `shape` the shape of a row (see `Columns`).
        """
        files = find_files(data)
        with ThreadPoolExecutor(min(16, len(files))) as pool:
            groups, schemas, stamps = zip(*pool.map(_footer, files), strict=True)
        schemas = _typed(schemas, groups)
        columns = Columns.named(column, weight, schemas[0].names, shape=shape)
        widths = [columns.check(schema, name) for name, schema in zip(files, schemas, strict=True)]
        known = [(name, width) for name, width in zip(files, widths, strict=True) if width is not None]
        of_model = [("the model", dim)] if dim is not None else []
        for (other, expected), (name, width) in pairwise([*of_model, *known]):
            if width != expected:
                raise InputError(
                    f"{name}: column '{columns.label}' has {width} dimensions where {other} has {expected}"
                )
        if sum(map(sum, groups)) == 0:
            raise InputError(f"{files[0]}{' and the other files' if len(files) > 1 else ''}: no rows")
        dtype = np.result_type(*(columns.dtype(schema) for schema in schemas))
        different = {schema.serialize().to_pybytes(): schema for schema in schemas}  # few: files share one when sent
        schemas = tuple(different[schema.serialize().to_pybytes()] for schema in schemas)
        table = cls(tuple(files), groups, schemas, stamps, columns, dtype, known[0][1] if known else 0, unit)
        return table if known else replace(table, dim=next(table.read(0, 1)).rows.shape[1])

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each file."""
        return tuple(map(sum, self.groups))

    @property
    def rows(self) -> int:
        return sum(self.counts)

    @cached_property
    def digest(self) -> str:
        """Of names, sizes and times of change of the files, and of the columns read: what is read if it is the same."""
        return sha256(repr((self.files, self.stamps, self.groups, self.columns)).encode()).hexdigest()

    @cached_property
    def rows_at_once(self) -> int:
        """Rows that `read` yields in a block, at most."""
        most = READ_IMAGES if any(map(self.columns.encoded, self.schemas)) else READ_ROWS
        return max(1, min(most, READ_BYTES // max(1, self._bytes_a_row)))

    @property
    def _bytes_a_row(self) -> int:
        return size_of(1, self.dim, self.dtype, weighted=self.columns.weight is not None)

    @cached_property
    def bytes_a_reader(self) -> int:
        """Bytes that a thread takes which reads: a few blocks; of an object store also a row group."""
        remote = (
            max(groups, default=0) for name, groups in zip(self.files, self.groups, strict=True) if not is_local(name)
        )
        return self._bytes_a_row * (3 * self.rows_at_once + max(remote, default=0))

    def cuts(self, start: int, stop: int, parts: int) -> list[int]:
        """Row numbers from `start` to `stop` that make up to `parts` ranges to read at the same time.

        They lie where row groups begin, as evenly as these allow, moved on to the next canonical batch: where two
        ranges share a row group both decode it.
        """
        edges = np.cumsum([0, *(rows for groups in self.groups for rows in groups)])
        begun = edges[np.searchsorted(edges, np.linspace(start, stop, parts + 1)[1:-1])]
        between = start + -(-(begun - start) // BATCH_ROWS) * BATCH_ROWS
        return sorted({start, stop, *(int(cut) for cut in between if start < cut < stop)})

    def schema(self, name: str) -> pa.Schema:
        """The schema of one of the files."""
        return self._schemas[name]

    def stamp(self, name: str) -> Stamp:
        """The stamp of one of the files."""
        return self._stamps[name]

    @cached_property
    def _stamps(self) -> dict[str, Stamp]:
        return dict(zip(self.files, self.stamps, strict=True))

    @cached_property
    def _schemas(self) -> dict[str, pa.Schema]:
        return dict(zip(self.files, self.schemas, strict=True))

    def read(self, start: int = 0, stop: int | None = None) -> Generator[Block, None, None]:
        """Yield rows [start, stop) of the whole table, in order, checked.

        Raises
        ------
        InputError
            Naming the file, and where it can the row and the column.
        """
        stop = self.rows if stop is None else stop
        offset, dim = 0, self.dim
        for name, count, stamp in zip(self.files, self.counts, self.stamps, strict=True):
            low, high = max(start - offset, 0), min(stop - offset, count)
            offset += count
            row = low
            if low >= high:
                continue
            for batch in scan_file(name, self.columns.needed, low, high, stamp=stamp, at_once=self.rows_at_once):
                block = self.columns.extract(batch, name, row, unit=self.unit)
                dim = dim or block.rows.shape[1]
                if block.rows.shape[1] != dim:
                    raise InputError(
                        f"{name}: row {row}, column '{self.columns.label}': "
                        f"{block.rows.shape[1]} numbers where the rows before have {dim}"
                    )
                yield Block(block.rows.astype(self.dtype, copy=False), block.weight)
                row += len(batch)
            if row != high:
                raise InputError(f"{name}: {row - low} rows read where its footer promised {high - low}")


def _typed(schemas: Sequence[pa.Schema], groups: Sequence[Sequence[int]]) -> tuple[pa.Schema, ...]:
    """The schemas, where columns of type null of files without rows, as pandas writes them, are as in other files."""
    known: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema if not pa.types.is_null(field.type)):
        known.setdefault(field.name, field.type)

    def typed(schema: pa.Schema) -> pa.Schema:
        fields = [
            field.with_type(known.get(field.name, field.type)) if pa.types.is_null(field.type) else field
            for field in schema
        ]
        return pa.schema(fields, schema.metadata)

    return tuple(schema if sum(rows) else typed(schema) for schema, rows in zip(schemas, groups, strict=True))


def _footer(name: str) -> tuple[tuple[int, ...], pa.Schema, Stamp]:
    def read() -> tuple[tuple[int, ...], pa.Schema, Stamp]:
        stamp = stamp_of(name)
        with _opened(name) as file:
            return _group_sizes(file), file.schema_arrow, stamp

    return retried(name, read)
