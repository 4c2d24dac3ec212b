"""`raydkm.assign`: a model and Parquet files in, one Parquet file of assignments per input file out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from raydkm.atomic import check_apart, check_free, new_directory
from raydkm.config import AssignConfig, build
from raydkm.data.files import local_paths
from raydkm.data.parquet import ParquetTable
from raydkm.engine.assign import AssignTask, assign_file, assigner_of, first_rows
from raydkm.engine.where import on_ray, threads_of, torch_threads
from raydkm.errors import ConfigError
from raydkm.model import Model, load

logger = logging.getLogger("raydkm")


def assign(
    model: Model | str | os.PathLike,
    data: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    out: str | os.PathLike,
    top: int | None = None,
    keep: Sequence[str] = (),
    column: str | None = None,
    reading: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Assign every row of Parquet files to its cluster.

    Parameters
    ----------
    model : Model or path
    data : path or paths of Parquet files, directories or globs
    out : path
        Directory for the outputs; it appears when all of them are complete.
    top : int, optional
        Also write the `top` best clusters of each row and their posteriors.
    keep : sequence of str
        Input columns to copy.
    column : str, optional
        Feature column, if it is not called as in the fit.
    reading : {"q", "p"}, optional
        Assign by the targets q or the discriminative posterior p; see `Model.scores`.
    overwrite : bool
    **options
        The fields of `raydkm.config.AssignConfig`.

    Returns
    -------
    dict
        ``rows``, ``files``, ``counts`` (rows of each cluster), ``index`` (what was chosen: see
        `raydkm.ops.nearest.Choice`), ``seconds``, ``out``.
    """
    began = time.perf_counter()
    run = build(AssignConfig, options)
    check_free(out, overwrite=overwrite)
    if not isinstance(model, Model):
        check_apart(out, [os.fspath(model)])
    model = (model if isinstance(model, Model) else load(model)).read_as(reading)
    if top is not None and not 1 <= top <= model.clusters:
        raise ConfigError(f"top {top}: the model has {model.clusters} clusters")
    if not model.hard and run.index not in ("auto", "flat"):
        raise ConfigError(f"index {run.index}: a soft model compares all prototypes, for its posteriors; drop it")
    unit = model.config.metric == "cosine"
    table = ParquetTable.open(data, column or model.config.column, unit=unit, dim=model.dim)
    check_apart(out, local_paths(table.files))
    with new_directory(out, overwrite=overwrite) as staging:
        kept, sample = tuple(dict.fromkeys(keep)), None
        if model.hard and run.index != "flat" and table.rows:
            sample = first_rows(table)
        task = AssignTask(table, kept, top, str(staging.resolve()), run.index, run.recall, sample)
        if on_ray(run):
            from raydkm.engine.ray_assign import assign_on_ray

            counts, choice = assign_on_ray(model, task, run)
        else:
            threads = threads_of(run)
            with torch_threads(threads):
                assigner = assigner_of(model, task, threads)
                pairs = zip(table.files, task.outputs(), strict=True)
                counts = np.sum([assign_file(assigner, task, source, target) for source, target in pairs], axis=0)
            choice = asdict(assigner.choice)
        task.check_complete()
    missed = run.index not in ("auto", choice["index"])
    logger.log(
        logging.WARNING if missed else logging.INFO,
        "index: %s%s, recall %.4g of the rows tried",
        f"{run.index} does not reach the recall, so " if missed else "",
        choice["index"],
        choice["recall"],
    )
    return {
        "rows": int(counts.sum()),
        "files": len(table.files),
        "counts": counts.tolist(),
        "index": choice,
        "seconds": time.perf_counter() - began,
        "out": str(out),
    }
