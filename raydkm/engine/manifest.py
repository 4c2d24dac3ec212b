"""What an assignment is, which parts of it are done, and when it is whole.

A run's directory holds, until it is whole, ``_manifest.json`` (what it is), output files, and for each range of which
all output files are there a record in ``_ranges/``. At the end the records become ``_manifest.parquet`` and summaries,
and ``_SUCCESS`` is written. Which files there are, and every byte of them, follow from the model, the inputs and the
options alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydkm.atomic import MARKER, check_free
from raydkm.data.output import Output
from raydkm.data.parquet import batches_of
from raydkm.data.search import MANIFEST, SUCCESS
from raydkm.engine.tally import Tally, closest_of
from raydkm.errors import EngineError, OutputError

RECORDS = "_ranges"
OUTPUTS, SUMMARY, SIZES, NEAREST = "_manifest.parquet", "_summary.json", "_summary.parquet", "_nearest.parquet"

_READERS = 8


@dataclass(frozen=True)
class Range:
    """Consecutive row groups of one input file: what is assigned, committed and, after a crash, done again as a whole.

    Parameters
    ----------
    number : int
        Among all ranges of a run.
    source : str
        Name of the input file.
    file : str
        Its path below the directory that all input files have in common.
    start, stop : int
        Rows of it.
    output : str
        Path of the output file.
    """

    number: int
    source: str
    file: str
    start: int
    stop: int
    output: str

    @property
    def record(self) -> str:
        return f"{RECORDS}/{self.number:08d}.parquet"

    @property
    def nearest(self) -> str:
        return f"{RECORDS}/{self.number:08d}.nearest.parquet"


def cut(groups: Iterable[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows, each of whole row groups with at most `most` rows together, or of one that is larger."""
    start = stop = 0
    for rows in groups:
        if stop > start and stop + rows - start > most:
            yield start, stop
            start = stop
        stop += rows
    yield start, stop


@dataclass(frozen=True)
class Written:
    """An output file: its path, rows, bytes and SHA-256."""

    output: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What is told of a range whose output files are all there; a record of another job is none.

    Parameters
    ----------
    job : str
        The job's `digest_of`.
    range : int
    files : tuple of Written
    index : dict
        Which index was chosen (`raydkm.ops.nearest.Choice`).
    tally : Tally
    """

    job: str
    range: int
    files: tuple[Written, ...]
    index: dict[str, Any]
    tally: Tally

    def content(self) -> pa.Buffer:
        told = {"job": self.job, "range": self.range, "files": [asdict(f) for f in self.files], "index": self.index}
        return parquet(self.tally.table().replace_schema_metadata({"raydkm": json.dumps(told)}))

    @classmethod
    def parse(cls, content: pa.Buffer) -> Record:
        table = pq.read_table(pa.BufferReader(content))
        told = json.loads(table.schema.metadata[b"raydkm"])
        files = tuple(Written(**file) for file in told.pop("files"))
        return cls(**told, files=files, tally=Tally.read(table))


def parquet(table: pa.Table, **options: Any) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def digest_of(job: dict[str, Any]) -> str:
    return hashlib.sha256(_json(job)).hexdigest()


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, allow_nan=False).encode() + b"\n"


class Manifest:
    """The state of a run in its output directory.

    Parameters
    ----------
    output : Output
    job : dict
        JSON values that determine every byte of the output: of the model, the options and the input files.
    ranges : tuple of Range
    """

    def __init__(self, output: Output, job: dict[str, Any], ranges: tuple[Range, ...]):
        self._output, self._job, self._ranges = output, job, ranges
        self._digest = digest_of(job)

    def begin(self, sizes: dict[str, int], *, overwrite: bool) -> list[Range]:
        """Start, or go on with, the run; return the ranges that are still to be done.

        Parameters
        ----------
        sizes : dict
            What `check_place` found.
        overwrite : bool
            Remove what there is.

        Raises
        ------
        OutputError
            If there is the assignment of another job, whose difference is named, or another run begins one.
        """
        if overwrite and sizes:
            self._output.remove(SUCCESS, MANIFEST)
        elif self._is_whole(sizes):
            return []
        self._output.claim(MANIFEST, _json(self._job))
        self._check_same()  # before the run that is under way here, if any, is ended
        self._output.begin()
        sizes = self._output.sizes()  # another run may have begun or ended meanwhile
        return [] if self._is_whole(sizes) else self._missing(sizes)

    def _is_whole(self, sizes: dict[str, int]) -> bool:
        if MANIFEST in sizes:
            self._check_same()
        return SUCCESS in sizes

    def _check_same(self) -> None:
        found = json.loads(self._output.read(MANIFEST).to_pybytes())
        if found == self._job:
            return
        told = [
            f"{name} {json.dumps(found.get(name))}, now {json.dumps(self._job.get(name))}"
            for name in dict.fromkeys([*found, *self._job])
            if name != "files" and found.get(name) != self._job.get(name)
        ]
        before, now = ({file["file"]: file for file in job.get("files", [])} for job in (found, self._job))
        changed = [name for name in before if name in now and now[name] != before[name]]
        for what, names in (
            ("no input", sorted(before.keys() - now.keys())),
            ("a new input", sorted(now.keys() - before.keys())),
            ("a changed input", changed),
        ):
            if names:
                told.append(f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
        raise OutputError(
            f"{self._output.name} exists already and is of another job ({'; '.join(told)}); "
            "choose another place or pass overwrite (--overwrite)"
        )

    def _missing(self, sizes: dict[str, int]) -> list[Range]:
        begun = [each for each in self._ranges if each.record in sizes]
        with ThreadPoolExecutor(_READERS) as pool:
            done = {record.range for record in pool.map(self._record, begun) if self._holds(record, sizes)}
        return [each for each in self._ranges if each.number not in done]

    def _record(self, each: Range) -> Record:
        return Record.parse(self._output.read(each.record))

    def _holds(self, record: Record, sizes: dict[str, int]) -> bool:
        return record.job == self._digest and all(sizes.get(file.output) == file.bytes for file in record.files)

    def finish(self, clusters: int, nearest: int | None, metadata: dict[str, str]) -> tuple[dict[str, Any], list[int]]:
        """Write the summaries of a run whose ranges are all done, and that it is whole; what is whole stays as it is.

        Returns
        -------
        dict, list
            The summary, and the rows of each cluster.

        Raises
        ------
        EngineError
            If a range is not done, or another index was chosen for some; if files of a whole output are not there.
        """
        sizes = self._output.sizes()
        if not self._is_whole(sizes):
            self._sum_up(sizes, clusters, nearest, metadata)
            self._output.check_owned()
            self._output.commit(SUCCESS, b"")
        else:
            self._check_all_there(sizes)
        self._output.drop(RECORDS)
        self._output.end()
        counts = _table(self._output.read(SIZES))["rows"].to_pylist()
        return json.loads(self._output.read(SUMMARY).to_pybytes()), counts

    def _sum_up(self, sizes: dict[str, int], clusters: int, nearest: int | None, metadata: dict[str, str]) -> None:
        files: list[pa.Table] = []
        choices: dict[str, dict[str, Any]] = {}

        def tallies(records: Iterable[Record | None]) -> Iterator[Tally]:
            for each, record in zip(self._ranges, records, strict=True):
                if record is None or not self._holds(record, sizes):
                    raise EngineError(
                        f"{each.source} from row {each.start} on is not in {self._output.name}: do all nodes share its "
                        "storage?"
                    )
                choices.setdefault(record.index["index"], record.index)
                place = {"range": each.number, "file": each.file, "start": each.start, "stop": each.stop}
                files.append(pa.Table.from_pylist([place | asdict(file) for file in record.files], _OUTPUTS_SCHEMA))
                yield record.tally

        def record_of(each: Range) -> Record | None:
            return self._record(each) if each.record in sizes else None

        with ThreadPoolExecutor(_READERS) as pool:
            total = Tally.sum(tallies(_ahead(pool, record_of, self._ranges)))
            if len(choices) > 1:
                raise EngineError(
                    f"{self._output.name} has ranges of indexes {' and '.join(sorted(choices))}, as the nodes compute "
                    "differently: name one (--index) and pass overwrite (--overwrite)"
                )
            if nearest is not None:
                tables = _ahead(pool, lambda each: _table(self._output.read(each.nearest)), self._ranges)
                self._output.commit(NEAREST, parquet(closest_of(tables, nearest).replace_schema_metadata(metadata)))
        by_cluster, listed = total.by_cluster(clusters), pa.concat_tables(files)
        rows = by_cluster["rows"].to_numpy()
        summary = {
            "rows": int(rows.sum()),
            "files": len(self._job["files"]),
            "outputs": len(listed),
            "clusters": clusters,
            "empty": int((rows == 0).sum()),
            "smallest": int(rows.min()),
            "largest": int(rows.max()),
            **total.overall(),
            "index": next(iter(choices.values())),
        }
        self._output.commit(OUTPUTS, parquet(listed.replace_schema_metadata(metadata | {"raydkm.job": self._digest})))
        self._output.commit(SIZES, parquet(by_cluster.replace_schema_metadata(metadata)))
        self._output.commit(SUMMARY, _json(summary))

    def _check_all_there(self, sizes: dict[str, int]) -> None:
        for file in _table(self._output.read(OUTPUTS)).select(["output", "bytes"]).to_pylist():
            if sizes.get(file["output"]) != file["bytes"]:
                raise EngineError(f"{self._output.name}: {file['output']} is missing or damaged; pass overwrite")


_OUTPUTS_SCHEMA = pa.schema(
    [
        pa.field("range", pa.int64(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("stop", pa.int64(), nullable=False),
        pa.field("output", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)


def check_place(output: Output, *, overwrite: bool) -> dict[str, int]:
    """Refuse a place that holds anything but an assignment, or with `overwrite` another output of raydkm.

    Returns the sizes of the files that are there.
    """
    if output.local is not None:
        check_free(output.local, overwrite=True)
    sizes = output.sizes()
    if sizes and MARKER not in sizes:
        raise OutputError(f"{output.name} was not written by raydkm, so it is not overwritten; choose another place")
    if sizes.keys() - {MARKER} and MANIFEST not in sizes and not overwrite:
        raise OutputError(f"{output.name} exists already; choose another place or pass overwrite (--overwrite)")
    return sizes


def _table(content: pa.Buffer) -> pa.Table:
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return pa.Table.from_batches(batches_of(file), file.schema_arrow)


def _ahead(pool: ThreadPoolExecutor, read: Any, ranges: tuple[Range, ...]) -> Iterator[Any]:
    """The values of `read` in order, of which few are held at a time."""
    for first in range(0, len(ranges), _READERS):
        yield from pool.map(read, ranges[first : first + _READERS])
