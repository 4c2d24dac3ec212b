"""`raydkm assign --endpoint`: Parquet files in, a service asked, Parquet files of assignments out; for small jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydkm.atomic import check_free, new_directory
from raydkm.data.columns import Columns
from raydkm.data.files import output_name, relative_names
from raydkm.data.parquet import ParquetTable, scan_file
from raydkm.data.storage import check_apart
from raydkm.engine.assign import check_kept, fields_of
from raydkm.errors import ConfigError, InputError
from raydkm.serve.client import Client, ServiceError

#: Of a body, those that are not vectors.
_FRAMING_BYTES = 10_000


def assign_at(
    endpoint: str,
    data: Sequence[str],
    *,
    out: str,
    top: int | None = None,
    keep: Sequence[str] = (),
    column: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Assign every row of Parquet files by the service at `endpoint`; the token is that of RAYDKM_TOKEN.

    Each input file gives one output file with the columns of `raydkm.assign`. All appear together at the end, in a
    local directory; a run that is interrupted leaves nothing.

    Returns
    -------
    dict
        ``rows``, ``files``, ``model`` (SHA-256 of its tensors), ``seconds``, ``out``.

    Raises
    ------
    ServiceError
        Where the service refuses, or goes over to another model meanwhile.
    """
    began, rows, keep = time.perf_counter(), 0, tuple(dict.fromkeys(keep))
    if "://" in out:
        raise ConfigError(f"out {out}: with endpoint the output is a local directory; raydkm assign writes elsewhere")
    check_free(out, overwrite=overwrite)
    with Client(endpoint, token=os.environ.get("RAYDKM_TOKEN")) as client:
        told = client.describe()
        shape = None if told["shape"] is None else tuple(told["shape"])
        table = ParquetTable.open(data, column or told["column"], unit=told["unit"], dim=told["dim"], shape=shape)
        check_kept(table, keep)
        check_apart(out, [path for path in table.files if "://" not in path])
        with new_directory(out, overwrite=overwrite) as staging:
            for source, name in zip(table.files, relative_names(table.files), strict=True):
                fields = [*(table.schema(source).field(kept) for kept in keep), *fields_of(top)]
                metadata = {"raydkm.model": told["model"], "raydkm.objective": told["objective"]}
                name = output_name(name, [field.name for field in fields])
                target = staging / f"{name.removesuffix('.parquet')}-00000.parquet"
                if target.exists():
                    raise InputError(
                        "two inputs differ in the ending .parquet alone, their outputs would have one name"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                with pq.ParquetWriter(target, pa.schema(fields, metadata=metadata)) as writer:
                    for part in _assigned(client, told, table, source, top, keep):
                        writer.write_table(part.cast(writer.schema))
                        rows += len(part)
    seconds = time.perf_counter() - began
    return {"rows": rows, "files": len(table.files), "model": told["model"], "seconds": seconds, "out": out}


def _assigned(
    client: Client, told: dict[str, Any], table: ParquetTable, source: str, top: int | None, keep: Sequence[str]
) -> Iterator[pa.Table]:
    """The assigned rows of a file, as many at a time as the service takes."""
    columns, row = Columns(table.columns.features, shape=table.columns.shape), 0
    width = told["dim"] * table.dtype.itemsize
    most = max(1, min(told["max_vectors"], int(told["max_megabytes"] * 1e6 - _FRAMING_BYTES) // width))
    stamp = table.stamps[table.files.index(source)]
    needed = list(dict.fromkeys([*columns.needed, *keep]))
    for batch in scan_file(source, needed, stamp=stamp, at_once=table.rows_at_once):
        for start in range(0, len(batch), most):
            part = batch.slice(start, most)
            found = client.assign_table(columns.extract(part, source, row, unit=table.unit).rows, top)
            if client.model != told["model"]:
                raise ServiceError(f"{source}: row {row}: the service went over to another model; start again")
            kept = [pa.chunked_array([part[name]]) for name in keep]
            yield pa.Table.from_arrays([*kept, *found.columns], names=[*keep, *found.column_names])
            row += len(part)
