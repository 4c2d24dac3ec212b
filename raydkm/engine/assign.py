"""Assignment of rows to the clusters of a model: ranges of Parquet files in, Parquet files out."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydkm.assigner import Assigner
from raydkm.config import AssignConfig, RunConfig
from raydkm.data.columns import Columns, check_column
from raydkm.data.files import output_name, relative_names
from raydkm.data.output import Output
from raydkm.data.parquet import ParquetTable, bytes_a_row, scan_file
from raydkm.data.prefetch import prefetched
from raydkm.data.rows import PIECE_BYTES, plain_type, rows_within, take, together
from raydkm.data.source import as_tensor
from raydkm.engine.manifest import Manifest, Range, Record, Written, cut, digest_of, parquet
from raydkm.engine.tally import Tally, closest
from raydkm.errors import InputError
from raydkm.model import Model
from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.labeller import Assignment
from raydkm.ops.nearest import SAMPLE_ROWS, faiss_version

#: Rows of an output row group.
ROW_GROUP_ROWS = 131_072

#: Batches that are read before they are asked for.
_READ_AHEAD = 8


@dataclass(frozen=True)
class AssignTask:
    """One assignment run, in a form that travels to workers: what is read, kept and written where.

    Parameters
    ----------
    model : Model
    table : ParquetTable
        Input files; the column names are the model's unless others were given.
    keep : tuple of str
        Input columns copied to the output.
    top : int or None
        Also write the lists of the `top` best clusters and their posteriors.
    output : Output
    config : AssignConfig
    sample : ndarray (n, d), optional
        As in `Assigner`.
    """

    model: Model
    table: ParquetTable
    keep: tuple[str, ...]
    top: int | None
    output: Output
    config: AssignConfig
    sample: NDArray | None = None

    def __post_init__(self) -> None:
        check_kept(self.table, self.keep, nearest=self.config.nearest is not None)
        if len({each.output for each in self.ranges}) < len(self.ranges):
            raise InputError("two inputs differ in the ending .parquet alone, their outputs would have one name")

    @cached_property
    def ranges(self) -> tuple[Range, ...]:
        """What is assigned as a whole, in the order of the rows; it follows from the files and `range_rows`."""
        found: list[Range] = []
        written = self.columns
        for source, file, groups in zip(self.table.files, self._files, self.table.groups, strict=True):
            for number, (start, stop) in enumerate(cut(groups, self.config.range_rows)):
                output = f"{output_name(file, written).removesuffix('.parquet')}-{number:05d}.parquet"
                found.append(Range(len(found), source, file, start, stop, output))
        return tuple(found)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are written."""
        return [*self.keep, *(field.name for field in fields_of(self.top))]

    @cached_property
    def _files(self) -> list[str]:
        return relative_names(self.table.files)

    @cached_property
    def job(self) -> dict[str, Any]:
        """All that determines the output's bytes, as JSON values; but for the kind of processor."""
        stops: dict[str, list[int]] = {}
        for each in self.ranges:
            stops.setdefault(each.file, []).append(each.stop)
        return {
            "model": self.model.checksum(),
            "objective": self.model.config.objective,
            "metric": self.model.config.metric,
            "temperature": self.model.temperature,
            "reading": self.model.reading or ("q" if self.model.weights is None else "p"),
            "scores": self.model.scores().digest(),
            "column": self.table.columns.label,
            "keep": list(self.keep),
            "top": self.top,
            **self.config.model_dump(exclude=set(RunConfig.model_fields)),
            "versions": {"faiss": faiss_version(), **{name: version(name) for name in ("raydkm", "torch", "pyarrow")}},
            "files": [
                {"file": file, "bytes": size, "modified_ns": modified, "stops": stops[file]}
                for file, (size, modified) in zip(self._files, self.table.stamps, strict=True)
            ],
        }

    @cached_property
    def digest(self) -> str:
        return digest_of(self.job)

    def manifest(self) -> Manifest:
        return Manifest(self.output, self.job, self.ranges)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Of every Parquet file that is written."""
        return {"raydkm.model": self.model.checksum(), "raydkm.objective": self.model.config.objective}


def check_kept(table: ParquetTable, keep: Iterable[str], *, nearest: bool = False) -> None:
    """Refuse input columns that cannot be copied to the output (and that of the nearest rows)."""
    taken = {field.name for field in fields_of(top=1)} | ({"file", "row"} if nearest else set())
    for name in keep:
        if name in taken:
            raise InputError(f"keep '{name}': the output has a column of that name")
        for path, schema in zip(table.files, table.schemas, strict=True):
            if name not in schema.names:
                raise InputError(f"{path}: no column '{name}' to keep; there are: {', '.join(schema.names)}")
            check_column(schema, name, path)
            kind, first = (plain_type(each.field(name).type) for each in (schema, table.schemas[0]))
            if kind is None:
                raise InputError(
                    f"{path}: column '{name}' is {schema.field(name).type}, which cannot be kept: cast the "
                    "dictionaries or views in it to their plain types"
                )
            if nearest and kind != first:
                raise InputError(f"{path}: column '{name}' is {kind}, elsewhere {first}: nearest cannot keep it")


def assigner_of(task: AssignTask) -> Assigner:
    """The assigner of a run, which is the same wherever it is made; each of its searches takes one thread."""
    sample = None if task.sample is None else as_tensor(task.sample)
    return task.model.assigner(index=task.config.index, recall=task.config.recall, sample=sample)


def first_rows(table: ParquetTable) -> NDArray:
    """Up to `SAMPLE_ROWS` rows of a table that has some: the first of its first file that is not empty."""
    columns = Columns(table.columns.features, shape=table.columns.shape)
    source = next(path for path, rows in zip(table.files, table.counts, strict=True) if rows)
    batch = next(batch for batch in scan_file(source, list(columns.needed)) if len(batch))
    return columns.extract(batch.slice(0, SAMPLE_ROWS), source, 0, unit=table.unit).rows


def assign_range(assigner: Assigner, task: AssignTask, each: Range, pool: ThreadPoolExecutor, threads: int) -> None:
    """Assign a range of rows: write its output files, then the record that they are all there.

    The `threads` of `pool` share its canonical batches; each batch's arithmetic runs in one thread, so that the
    bytes do not depend on their number.
    """
    table = _assigned(assigner, task, each, pool, threads)
    written = []
    task.output.check_owned()
    for name, part in _partitioned(table, each.output) if task.config.partition_by else [(each.output, table)]:
        content = parquet(part, row_group_size=ROW_GROUP_ROWS)
        task.output.commit(name, content)
        written.append(Written(name, len(part), content.size, hashlib.sha256(content).hexdigest()))
    if task.config.nearest is not None:
        own = table.select(["cluster", "distance", *task.keep])
        own = own.add_column(2, pa.field("row", pa.int64(), False), pa.array(np.arange(each.start, each.stop)))
        own = own.add_column(2, pa.field("file", pa.string(), False), pa.repeat(each.file, len(own)))
        task.output.commit(each.nearest, parquet(closest(own, task.config.nearest)))
    task.output.check_owned()
    record = Record(task.digest, each.number, tuple(written), asdict(assigner.choice), Tally.of(table))
    task.output.commit(each.record, record.content())


def _assigned(assigner: Assigner, task: AssignTask, each: Range, pool: ThreadPoolExecutor, threads: int) -> pa.Table:
    columns = Columns(task.table.columns.features, shape=task.table.columns.shape)
    needed = list(dict.fromkeys([*columns.needed, *task.keep]))
    schema = _schema(task.table.schema(each.source), task, assigner)
    stamp = task.table.stamp(each.source)
    piece_rows = _piece_rows(task, each)

    def batches() -> Generator[list[pa.RecordBatch], None, None]:
        at_once = task.table.rows_at_once
        yield from _canonical(scan_file(each.source, needed, each.start, each.stop, stamp=stamp, at_once=at_once))

    def assigned(parts: list[pa.RecordBatch], row: int) -> list[pa.RecordBatch]:
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        rows = []
        for part, start in zip(parts, starts, strict=False):
            rows.append(columns.extract(part, each.source, row + start, unit=task.table.unit).rows)
            _check_dim(rows[-1], task.model, each.source)
        found = arrays_of(assigner(as_tensor(np.concatenate(rows)), task.top or 1), task.top)
        table = pa.Table.from_batches(
            pa.RecordBatch.from_arrays(
                [
                    *(part[name].cast(schema.field(name).type) for name in task.keep),
                    *(column.slice(start, len(part)) for column in found),
                ],
                schema=schema,
            )
            for part, start in zip(parts, starts, strict=False)
        )
        pieces = (table.slice(start, piece_rows).to_batches() for start in range(0, len(table), piece_rows))
        return [batch for piece in pieces for batch in together(piece)]

    done: list[pa.RecordBatch] = []
    begun: deque[Future[list[pa.RecordBatch]]] = deque()
    row = each.start
    with prefetched(batches(), ahead=_READ_AHEAD) as [reader]:
        try:
            for parts in reader:
                begun.append(pool.submit(assigned, parts, row))
                row += sum(map(len, parts))
                if len(begun) > 2 * threads:
                    done += begun.popleft().result()
            for future in begun:
                done += future.result()
        finally:
            for future in begun:
                future.cancel()
    if row != each.stop:
        raise InputError(
            f"{each.source}: {row - each.start} rows read where its footer promised {each.stop - each.start}"
        )
    return pa.Table.from_batches(done, schema)


def _piece_rows(task: AssignTask, each: Range) -> int:
    """Rows of a range that are put together as one batch, which follow from the file alone."""
    schema = task.table.schema(each.source)
    if all(pa.types.is_primitive(schema.field(name).type) for name in task.keep):
        return BATCH_ROWS
    size = bytes_a_row(each.source, task.keep, each.start, each.stop)
    return next((rows for rows in (BATCH_ROWS >> n for n in range(12)) if rows * size <= PIECE_BYTES), 1)


def _canonical(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """The same rows in parts of `BATCH_ROWS` together, or fewer at the end, however they are read."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch.slice(start, BATCH_ROWS - sum(map(len, waiting)))
            start += len(part)
            waiting.append(part)
            if sum(map(len, waiting)) == BATCH_ROWS:
                yield waiting
                waiting = []
    if waiting:
        yield waiting


def arrays_of(result: Assignment, top: int | None) -> list[pa.Array]:
    """The columns of an assignment, in the order of `fields_of`."""
    made = [
        pa.array(np.ascontiguousarray(result.clusters[:, 0])),
        pa.array(result.distance),
        pa.array(np.ascontiguousarray(result.posteriors[:, 0])),
        pa.array(result.entropy),
    ]
    if top is not None:
        lists = (result.clusters, result.posteriors)
        made += [pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).reshape(-1)), top) for x in lists]
    return made


def _partitioned(table: pa.Table, name: str) -> Iterator[tuple[str, pa.Table]]:
    """For each cluster its rows, in their order, without the column `cluster`, which is in the directory's name."""
    if not len(table):
        return
    clusters = table["cluster"].to_numpy()
    order = np.argsort(clusters, kind="stable")
    numbers, starts = np.unique(clusters[order], return_index=True)
    rows, stops = table.drop_columns(["cluster"]), np.append(starts[1:], len(table))
    first, at_once, taken = 0, rows_within(rows), rows.slice(0, 0)
    for number, start, stop in zip(numbers.tolist(), starts.tolist(), stops.tolist(), strict=True):
        if stop > first + len(taken):  # rows of this cluster, and of the next ones while they are few
            last = max([stop, *stops[(stops > stop) & (stops <= start + at_once)][-1:]])
            first, taken = start, take(rows, order[start:last])
        yield f"cluster={number}/{name}", taken.slice(start - first, stop - start)


def fields_of(top: int | None) -> list[pa.Field]:
    """What is written besides the kept columns."""
    fields = [
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
        pa.field("posterior", pa.float32(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
    ]
    if top is not None:
        fields += [
            pa.field("top_clusters", pa.list_(pa.int32(), top)),
            pa.field("top_posteriors", pa.list_(pa.float32(), top)),
        ]
    return fields


def _schema(source: pa.Schema, task: AssignTask, assigner: Assigner) -> pa.Schema:
    kept = [source.field(name) for name in task.keep]
    fields = [*(field.with_type(plain_type(field.type)) for field in kept), *fields_of(task.top)]
    return pa.schema(fields, metadata=task.metadata | {"raydkm.index": json.dumps(asdict(assigner.choice))})


def _check_dim(rows: NDArray, model: Model, where: str) -> None:
    if rows.shape[1] != model.input_dim:
        raise InputError(f"{where}: vectors of {rows.shape[1]} dimensions, the model has {model.input_dim}")
