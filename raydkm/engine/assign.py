"""Assignment of rows to the clusters of a model: tables in, tables out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydkm.data.columns import Columns
from raydkm.data.files import relative_names
from raydkm.data.parquet import ParquetTable, scan_file
from raydkm.data.source import as_tensor
from raydkm.errors import ConfigError, EngineError, InputError
from raydkm.model import Model
from raydkm.ops.batch import SOFT_TILE, Batch
from raydkm.ops.nearest import SAMPLE_ROWS, Choice, NearestPrototypes
from raydkm.ops.soft import SoftAssignment

#: Rows of an output row group.
ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True)
class Assignment:
    """What a model says of n rows.

    Parameters
    ----------
    clusters : ndarray (n, m) of int32
        The m best clusters, best first; the first is the row's cluster.
    posteriors : ndarray (n, m) of float32
        Their posterior probabilities q; of a hard model one and zeros.
    distance : ndarray (n,) of float32
        Euclidean, to the prototype of the row's cluster (for cosine, between unit vector and prototype).
    entropy : ndarray (n,) of float32
        Of the posterior over all clusters, in nats.
    """

    clusters: NDArray[np.int32]
    posteriors: NDArray[np.float32]
    distance: NDArray[np.float32]
    entropy: NDArray[np.float32]


class Assigner:
    """A model with its FAISS index, ready for any number of rows.

    Parameters
    ----------
    model : Model
    threads : int
    top : int
        Clusters that are found for each row.
    index, recall
        As in `NearestPrototypes`; of a soft model always flat.
    sample : ndarray (n, d), optional
        Rows to choose the index with.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int,
        top: int = 1,
        index: str = "flat",
        recall: float = 1.0,
        sample: NDArray | None = None,
    ):
        if not 1 <= top <= model.clusters:
            raise ConfigError(f"top {top}: the model has {model.clusters} clusters")
        self.model = model
        self._top = top
        self._frame = model.frame()
        self._scores = model.scores()
        z = None if sample is None else self._frame(as_tensor(sample))
        index = index if model.hard else "flat"
        self._index = NearestPrototypes(self._scores, threads, index=index, recall=recall, sample=z)
        self._soft = None if model.hard else SoftAssignment(self._scores)
        self._columns = top if model.hard else len(self._scores)

    @property
    def choice(self) -> Choice:
        """What index was chosen, and why."""
        return self._index.choice

    def __call__(self, rows: NDArray) -> Assignment:
        """Assign rows (n, d) of any numeric dtype, which must be finite."""
        tiles = Batch(0, as_tensor(rows), None).tiles(self._frame, self._columns, SOFT_TILE)
        parts = [self._tile(z) for _, z in tiles]
        return Assignment(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))

    def _tile(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        top = self._index(z, self._top)
        distance = torch.linalg.vector_norm(z - self.model.prototypes[top[:, 0]], dim=1)
        if self._soft is None:
            posteriors, entropy = torch.zeros(top.shape), torch.zeros(len(z))
            posteriors[:, 0] = 1.0
        else:
            posterior = self._soft(z)
            posteriors = posterior.exp_logits.gather(1, top) / posterior.normaliser[:, None]
            entropy = posterior.entropy.clamp(min=0)
        return top.to(torch.int32), posteriors, distance, entropy


@dataclass(frozen=True)
class AssignTask:
    """One assignment run, in a form that travels to workers: what is read, kept and written where.

    Parameters
    ----------
    table : ParquetTable
        Input files; the column names are the model's unless others were given.
    keep : tuple of str
        Input columns copied to the output.
    top : int or None
        Also write the lists of the `top` best clusters and their posteriors.
    out : str
        Existing directory.
    index, recall, sample
        As in `Assigner`.
    """

    table: ParquetTable
    keep: tuple[str, ...]
    top: int | None
    out: str
    index: str = "auto"
    recall: float = 0.999
    sample: NDArray | None = None

    def __post_init__(self) -> None:
        written = {"cluster", "distance", "posterior", "entropy", "top_clusters", "top_posteriors"}
        for name in self.keep:
            if name in written:
                raise InputError(f"keep '{name}': the output has a column of that name")
            for path, schema in zip(self.table.files, self.table.schemas, strict=True):
                if name not in schema.names:
                    raise InputError(f"{path}: no column '{name}' to keep; there are: {', '.join(schema.names)}")

    def outputs(self) -> list[str]:
        """For each input file, the path of its output: its own path below the files' common directory."""
        return [os.path.join(self.out, name) for name in relative_names(self.table.files)]

    def check_complete(self) -> None:
        """Raise `EngineError` unless every output is there with the rows of its input."""
        for source, rows, target in zip(self.table.files, self.table.counts, self.outputs(), strict=True):
            written = pq.read_metadata(target).num_rows if os.path.exists(target) else None
            if written != rows:
                found = "no file" if written is None else f"{written} rows"
                raise EngineError(
                    f"{source} has {rows} rows, its output {found}: do all nodes share the storage of {self.out}?"
                )


def assigner_of(model: Model, task: AssignTask, threads: int) -> Assigner:
    """The assigner of a run, which is the same wherever it is made."""
    return Assigner(model, threads=threads, top=task.top or 1, index=task.index, recall=task.recall, sample=task.sample)


def first_rows(table: ParquetTable) -> NDArray:
    """Up to `SAMPLE_ROWS` rows of a table that has some: the first of its first file that is not empty."""
    columns = Columns(table.columns.features)
    source = next(path for path, rows in zip(table.files, table.counts, strict=True) if rows)
    batch = next(batch for batch in scan_file(source, list(columns.needed)) if len(batch))
    return columns.extract(batch.slice(0, SAMPLE_ROWS), source, 0, unit=table.unit).rows


def assign_file(assigner: Assigner, task: AssignTask, source: str, target: str) -> NDArray[np.int64]:
    """Assign one file; return the number of rows of each cluster."""
    counts = np.zeros(assigner.model.clusters, dtype=np.int64)
    columns = Columns(task.table.columns.features)
    needed = list(dict.fromkeys([*columns.needed, *task.keep]))
    schema = _schema(task.table.schema(source), task, assigner)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    partial = f"{target}.partial"
    with pq.ParquetWriter(partial, schema) as writer:
        for table in _regrouped(_assigned(assigner, task, columns, scan_file(source, needed), source, schema)):
            writer.write_table(table)
            counts += np.bincount(table["cluster"].to_numpy(), minlength=len(counts))
    os.replace(partial, target)
    return counts


def _assigned(
    assigner: Assigner,
    task: AssignTask,
    columns: Columns,
    batches: Iterable[pa.RecordBatch],
    source: str,
    schema: pa.Schema,
) -> Iterator[pa.Table]:
    row = 0
    for batch in batches:
        block = columns.extract(batch, source, row, unit=task.table.unit)
        _check_dim(block.rows, assigner.model, source)
        row += len(batch)
        result = assigner(block.rows)
        made = [
            pa.array(np.ascontiguousarray(result.clusters[:, 0])),
            pa.array(result.distance),
            pa.array(np.ascontiguousarray(result.posteriors[:, 0])),
            pa.array(result.entropy),
        ]
        if task.top is not None:
            lists = (result.clusters, result.posteriors)
            made += [pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), task.top) for x in lists]
        yield pa.Table.from_arrays([*(batch[name] for name in task.keep), *made], schema=schema)


def _schema(source: pa.Schema, task: AssignTask, assigner: Assigner) -> pa.Schema:
    fields = [source.field(name) for name in task.keep]
    fields += [
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
        pa.field("posterior", pa.float32(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
    ]
    if task.top is not None:
        fields += [
            pa.field("top_clusters", pa.list_(pa.int32(), task.top)),
            pa.field("top_posteriors", pa.list_(pa.float32(), task.top)),
        ]
    model = assigner.model
    metadata = {
        "raydkm.model": model.checksum(),
        "raydkm.objective": model.config.objective,
        "raydkm.index": json.dumps(asdict(assigner.choice)),
    }
    return pa.schema(fields, metadata=metadata)


def _regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables to ones of at least a row group's rows (the last may be smaller)."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(len(t) for t in waiting) >= ROW_GROUP_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _check_dim(rows: NDArray, model: Model, where: str) -> None:
    if rows.shape[1] != model.dim:
        raise InputError(f"{where}: vectors of {rows.shape[1]} dimensions, the model has {model.dim}")
