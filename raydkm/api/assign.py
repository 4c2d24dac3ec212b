"""`raydkm.assign`: a model and Parquet files in, Parquet files of assignments out, each exactly once."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatch
from typing import Any
from urllib.parse import unquote

from raydkm.config import AssignConfig, build
from raydkm.data.output import Output
from raydkm.data.parquet import ParquetTable
from raydkm.data.storage import check_apart, identity, plain
from raydkm.engine.assign import AssignTask, assign_range, assigner_of, first_rows
from raydkm.engine.manifest import Range, check_place
from raydkm.engine.passes import thread_pool
from raydkm.engine.progress import RowsProgress
from raydkm.engine.where import on_ray, threads_of
from raydkm.errors import ConfigError, InputError, OutputError
from raydkm.model import Model, load

logger = logging.getLogger("raydkm")

#: Ranges at a time in this process: one is written while the next one's rows are assigned.
_AT_A_TIME = 2

#: Output files, of all partitions, above which a run warns.
MANY_FILES = 1_000_000


def assign(
    model: Model | str | os.PathLike,
    data: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    out: str | os.PathLike | None = None,
    top: int | None = None,
    keep: Sequence[str] = (),
    column: str | None = None,
    reading: str | None = None,
    encoder: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Assign every row of Parquet files to its cluster. For rows in memory there is `Model.assign`.

    Started again with the same model, data and options after it was interrupted, it does what is missing.

    Parameters
    ----------
    model : Model or path
    data : path or paths of Parquet files, directories or globs
    out : path or URI
        Directory for the outputs; they are complete when it holds the file ``_SUCCESS``.
    top : int, optional
        Also write the `top` best clusters of each row and their posteriors.
    keep : sequence of str
        Input columns to copy.
    column : str, optional
        Feature column, if it is not called as in the fit.
    reading : {"q", "p"}, optional
        Assign by the targets q or the discriminative posterior p; see `Model.scores`.
    encoder : str, optional
        The user's own function, ``package.module:build``, of a model that was fitted with one.
    overwrite : bool
        Start afresh where `out` holds another output of raydkm, or a part of this one.
    **options
        The fields of `raydkm.config.AssignConfig`.

    Returns
    -------
    dict
        ``rows``, ``files``, ``outputs`` (files), ``resumed`` (ranges that were there before), ``clusters``, ``empty``,
        ``smallest`` and ``largest`` (clusters' rows), ``mean_entropy``, ``distance_q05`` to ``distance_q95``,
        ``counts`` (rows of each cluster), ``index`` (what was chosen: see `raydkm.ops.nearest.Choice`), ``seconds``,
        ``out``.

    Raises
    ------
    ConfigError, InputError, OutputError, ModelError
        Before anything is written, where it can be known.
    """
    began = time.perf_counter()
    given = _paths(data)
    if out is None:
        raise ConfigError("out: name the directory that the assignments are written to")
    run = build(AssignConfig, options)
    place = os.fspath(out)
    output = Output(place if "://" in place else os.path.abspath(place))
    there = check_place(output, overwrite=overwrite)
    if not isinstance(model, Model):
        check_apart(output.name, [os.fspath(model)])
    model = (model if isinstance(model, Model) else load(model, encoder=encoder)).read_as(reading)
    if top is not None and not 1 <= top <= model.clusters:
        raise ConfigError(f"top {top}: the model has {model.clusters} clusters")
    if not model.hard and run.index not in ("auto", "flat"):
        raise ConfigError(f"index {run.index}: a soft model compares all prototypes, for its posteriors; drop it")
    _check_outside(output, given)
    table = ParquetTable.open(
        given, column or model.config.column, unit=model.unit, dim=model.input_dim, shape=model.shape
    )
    check_apart(output.name, table.files)
    sample = first_rows(table) if model.hard and run.index != "flat" else None
    task = AssignTask(model, table, tuple(dict.fromkeys(keep)), top, output, run, sample)
    _check_number_of_files(task)
    _check_keys_above(output, task.columns)
    manifest, distributed = task.manifest(), on_ray(run)
    missing = manifest.begin(there, overwrite=overwrite)
    resumed = len(task.ranges) - len(missing)
    if missing and resumed:
        logger.info("going on: %d of %d ranges are there", resumed, len(task.ranges))
    progress = RowsProgress(sum(each.stop - each.start for each in missing))
    try:
        for each in (_on_ray if distributed else _here)(task, missing) if missing else ():
            progress(each.stop - each.start)
    except InputError as error:
        told = "what is done stays: started again, this goes on; after a change of the input, pass overwrite"
        raise type(error)(f"{error} ({told}, --overwrite)") from None
    summary, counts = manifest.finish(model.clusters, run.nearest, task.metadata)
    choice = summary["index"]
    missed = run.index not in ("auto", choice["index"])
    logger.log(
        logging.WARNING if missed else logging.INFO,
        "index: %s%s, recall %.4g of the rows tried",
        f"{run.index} does not reach the recall, so " if missed else "",
        choice["index"],
        choice["recall"],
    )
    seconds = time.perf_counter() - began
    return {**summary, "counts": counts, "resumed": resumed, "seconds": seconds, "out": str(out)}


def _paths(data: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
    in_memory = hasattr(data, "shape") or hasattr(data, "schema")
    given = [] if in_memory else [data] if isinstance(data, str | os.PathLike) else list(data)
    if in_memory or not all(isinstance(item, str | os.PathLike) for item in given):
        raise InputError("raydkm.assign reads Parquet files, by path; for rows in memory use model.assign(rows, top=…)")
    return [os.fspath(item) for item in given]


def _here(task: AssignTask, missing: list[Range]) -> Iterator[Range]:
    """Do ranges in this process; yield each that is done."""
    threads = threads_of(task.config)
    assigner = assigner_of(task)
    with thread_pool(threads) as pool, ThreadPoolExecutor(_AT_A_TIME) as ranges:
        begun: deque[tuple[Range, Future[None]]] = deque()
        left = iter(missing)
        try:
            while True:
                for each in left:
                    begun.append((each, ranges.submit(assign_range, assigner, task, each, pool, threads)))
                    if len(begun) == _AT_A_TIME:
                        break
                if not begun:
                    return
                each, future = begun.popleft()
                future.result()
                yield each
        finally:
            for _, future in begun:
                future.cancel()


def _on_ray(task: AssignTask, missing: list[Range]) -> Iterator[Range]:
    from raydkm.engine.ray_assign import assign_on_ray

    return assign_on_ray(task, missing)


def _check_number_of_files(task: AssignTask) -> None:
    if task.config.partition_by is None:
        return
    most = sum(min(task.model.clusters, each.stop - each.start) for each in task.ranges)
    if most > MANY_FILES:
        logger.warning(
            "up to %s output files: %d clusters in each of %d ranges; a larger --range-rows makes fewer",
            f"{most:,}",
            task.model.clusters,
            len(task.ranges),
        )


def _check_keys_above(output: Output, columns: Iterable[str]) -> None:
    """Warn of a part ``KEY=value`` of the output's own path that a reader may take for a column that is written."""
    written = {column.lower() for column in columns}
    for part in plain(output.name).split("/"):
        if "=" in part and unquote(part.partition("=")[0]).lower() in written:
            logger.warning("%s lies in %s: readers such as DuckDB take that for its column", output.name, part)


def _check_outside(output: Output, given: Iterable[str]) -> None:
    """Refuse an output in a place that is searched for inputs: when started again it would find itself."""
    place = identity(output.name).split("/")
    for name in given:
        if _searches(identity(name).rstrip("/").split("/"), place):
            raise OutputError(f"{output.name} lies in the input {name}; choose another place for the output")


def _searches(pattern: list[str], place: list[str]) -> bool:
    """Whether a directory or glob would find files in a place that holds none yet; both in parts of their paths."""
    matched = False
    for part, there in zip([*pattern, "**"], place, strict=False):
        if part == "**":
            return True
        if part != there:
            if not fnmatch(there, part):
                return False
            matched = True
    return matched
