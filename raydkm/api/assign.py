"""`raydkm.assign`: a model and Parquet files in, one Parquet file of assignments per input file out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from raydkm.atomic import check_apart, check_free, new_directory
from raydkm.config import RunConfig, build
from raydkm.data.files import local_paths
from raydkm.data.parquet import ParquetTable
from raydkm.engine.assign import Assigner, AssignTask, assign_file
from raydkm.engine.where import on_ray, threads_of, torch_threads
from raydkm.errors import ConfigError
from raydkm.model import Model, load


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
        The fields of `raydkm.config.RunConfig`.

    Returns
    -------
    dict
        ``rows``, ``files``, ``counts`` (rows of each cluster), ``seconds``, ``out``.
    """
    began = time.perf_counter()
    run = build(RunConfig, options)
    check_free(out, overwrite=overwrite)
    if not isinstance(model, Model):
        check_apart(out, [os.fspath(model)])
    model = (model if isinstance(model, Model) else load(model)).read_as(reading)
    if top is not None and not 1 <= top <= model.clusters:
        raise ConfigError(f"top {top}: the model has {model.clusters} clusters")
    unit = model.config.metric == "cosine"
    table = ParquetTable.open(data, column or model.config.column, unit=unit, dim=model.dim)
    check_apart(out, local_paths(table.files))
    with new_directory(out, overwrite=overwrite) as staging:
        task = AssignTask(table, tuple(dict.fromkeys(keep)), top, str(staging.resolve()))
        if on_ray(run):
            from raydkm.engine.ray_assign import assign_on_ray

            counts = assign_on_ray(model, task, run)
        else:
            threads = threads_of(run)
            assigner = Assigner(model, threads=threads, top=top or 1)
            with torch_threads(threads):
                pairs = zip(table.files, task.outputs(), strict=True)
                counts = np.sum([assign_file(assigner, task, source, target) for source, target in pairs], axis=0)
        task.check_complete()
    return {
        "rows": int(counts.sum()),
        "files": len(table.files),
        "counts": counts.tolist(),
        "seconds": time.perf_counter() - began,
        "out": str(out),
    }
