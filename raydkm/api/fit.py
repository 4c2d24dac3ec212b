"""`raydkm.fit`: rows in, model out, in this process or on Ray."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from raydkm.api.finished import finished_before
from raydkm.api.given import files_named, read_given
from raydkm.atomic import check_free, check_path, check_writable
from raydkm.config import FeatureConfig, FitConfig, FitRunConfig, configure
from raydkm.data.columns import Columns
from raydkm.data.files import find_files
from raydkm.data.parquet import ParquetTable
from raydkm.data.source import RowSource, as_tensor
from raydkm.data.storage import check_apart, holds, is_local
from raydkm.data.tiers import Tiers
from raydkm.deep.fit import fit_features
from raydkm.engine.checkpoint import CheckpointFile
from raydkm.engine.comm import Solo
from raydkm.engine.fit import fit_rows
from raydkm.engine.preflight import check_room
from raydkm.engine.progress import Callback, reporter
from raydkm.engine.result import model_of
from raydkm.engine.start import digest
from raydkm.engine.where import device_of, on_ray, threads_of, tiers_of
from raydkm.errors import ConfigError, InputError, OutputError, RaydkmError
from raydkm.model import Model

if TYPE_CHECKING:
    import ray.data

    Data: TypeAlias = NDArray | Tensor | pa.Table | str | os.PathLike | Iterable[str | os.PathLike] | ray.data.Dataset

logger = logging.getLogger("raydkm")

#: Bytes of a model without its prototypes, at least.
MODEL_BYTES = 2**20


def fit(
    data: Data,
    *,
    out: str | os.PathLike | None = None,
    overwrite: bool = False,
    sample_weight: ArrayLike | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Model:
    """Fit a model.

    Parameters
    ----------
    data : array (n, d), torch.Tensor, pyarrow.Table, path or paths of Parquet files, or ray.data.Dataset
        Arrays and tables are fitted in this process; Parquet and data sets where `engine` says.
    out : path, optional
        Directory to save the model in. Where a run with the same `run_dir`, parameters and files has done so, nothing
        is done, and that model returned; but for averages over neighbours without an encoder.
    overwrite : bool
        Whether `out` may be replaced.
    sample_weight : array-like (n,), optional
        Weights of the rows of an array; of other data, name a column (`weight`).
    callbacks : sequence of callables
        Called with each event of the fit (`raydkm.engine.progress` has their fields), on Ray in the first worker, so
        they are pickled. `raydkm.callbacks` has some.
    **options
        The fields of `raydkm.config.FitConfig`, `FeatureConfig` and `FitRunConfig`. `init` may also be an array
        (K, d) of initial prototypes, the path of an ``.npy`` file that holds one, or a model (or its path) to go on
        from; `marginal` also the path of a file of K numbers.

    Returns
    -------
    Model
        With the rows' `labels`, but for a fit on Ray.

    Raises
    ------
    ConfigError, InputError, OutputError
        Before anything is written.
    """
    named = files_named(options)
    start, options = read_given(options)
    config, made, run = configure(options)
    if out is not None:
        check_path(out)
        files = find_files(data) if names_files(data) else []
        data = files or data  # searched once, as what is skipped is told of
        if run.run_dir and is_local(run.run_dir) and holds(out, run.run_dir):
            raise OutputError(f"out {out} is or holds run_dir {run.run_dir}; choose another place for one of them")
        if run.run_dir and os.path.isdir(out) and not overwrite and files:
            digested = None if start is None else digest(start)
            before = finished_before(out, run.run_dir, config, made, _parquet(data, config, made), digested)
            if before is not None:
                return before
        check_free(out, overwrite=overwrite)
        check_apart(out, [*files, *named])
        dim = (getattr(data, "shape", ()) or (0,))[-1] if _kind(data) == "array" else 0
        check_writable(out, MODEL_BYTES + 8 * config.clusters * dim)
    model, labels = fit_model(data, config, made, run, start=start, sample_weight=sample_weight, callbacks=callbacks)
    if out is not None:
        _save(model, out, overwrite=overwrite)
    return replace(model, labels=labels)


def _save(model: Model, out: str | os.PathLike, *, overwrite: bool) -> None:
    """Save a model; where that fails, keep it in another place, which the error names."""
    try:
        model.save(out, overwrite=overwrite)
    except OutputError as error:
        places = dict.fromkeys((tempfile.gettempdir(), os.path.expanduser("~"), os.getcwd(), "/dev/shm"))
        for place in places:
            kept = os.path.join(place, f"raydkm-model-{uuid.uuid4().hex[:8]}")
            try:
                model.save(kept)
            except OutputError:
                continue
            raise OutputError(f"{error}; the fitted model is kept in {kept}") from None
        raise


def fit_model(
    data: Data,
    config: FitConfig,
    made: FeatureConfig,
    run: FitRunConfig,
    *,
    start: NDArray | None = None,
    sample_weight: ArrayLike | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Model, NDArray[np.int64] | None]:
    """Fit, and return the model with the labels of the rows (None where they were on Ray)."""
    began = time.perf_counter()
    if (start is None) == (config.init == "array"):
        raise ConfigError("init: give an array (K, d) of initial prototypes, or the path of an .npy file with one")
    kind = _kind(data)
    if sample_weight is not None and kind != "array":
        raise InputError("sample_weight goes with arrays; name the weight column of tables, files and data sets")
    if kind == "dataset" and run.engine == "local":
        raise ConfigError("a ray.data.Dataset is fitted on Ray; drop engine, or give Parquet paths")
    if kind in ("array", "table"):
        if run.engine == "ray" or run.workers is not None:
            raise ConfigError("arrays and tables are fitted in this process; for Ray give Parquet paths or a Dataset")
        if run.cache in ("disk", "stream") or run.memory_budget is not None:
            raise ConfigError(
                f"cache and memory_budget go with Parquet files: the rows of an {kind} are in memory already"
            )
    checkpoints = CheckpointFile(run.run_dir, run.checkpoint_every) if run.run_dir else None
    if (made.trains or made.hops) and run.cache == "stream":
        raise ConfigError("cache stream: an encoder and neighbours take rows in any order, which are held; use auto")
    if made.trains and config.max_time is not None:
        raise ConfigError("max_time ends ADM steps, not a training; with an encoder lower its epochs and rounds")
    if made.trains and config.seed_rows == "all":
        raise ConfigError("seed_rows all: learned features are seeded on a sample; give a number of rows, or none")
    if made.trains and start is not None and (made.heads > 1 or made.overclustering > 1 or made.feature_map):
        raise ConfigError("initial prototypes are of an encoder's features; drop heads, overclustering and feature_map")
    if made.trains and (config.weight is not None or sample_weight is not None):
        raise ConfigError("weights: an encoder is trained on every row alike; drop the weights, or the encoder")
    if checkpoints is not None and made.plain and (saved := checkpoints.load()) is not None:
        saved.check_config(config)  # the data are compared when they are known
        saved.check_start(None if start is None else digest(start))
    if isinstance(run.workers, tuple) and checkpoints is None:
        raise ConfigError("workers MIN:MAX needs run_dir: with every change of their number all workers start again")
    rows: Any = _parquet(data, config, made) if kind == "files" else data
    fit_with = fit_rows if made.plain else partial(fit_features, made=made, run=run)
    labels: Tensor | None = None
    if kind == "dataset" or (kind == "files" and on_ray(run)):
        from raydkm.engine.ray_train import fit_on_ray

        fitted = fit_on_ray(rows, config, made, run, start, callbacks, fit_with)
    else:
        device = device_of(config)
        report = reporter(run.run_dir, callbacks)
        tiers, threads, solo = tiers_of(run, device), threads_of(run), Solo()
        try:
            if kind == "files":
                check_room(solo, config, rows, tiers, rows=rows.rows, threads=threads)
            source = _source(rows, kind, config, made, sample_weight, tiers, threads)
            ingested = time.perf_counter() - began
            report("phase", phase="ingest", seconds=ingested)
            labels = torch.empty(source.total, dtype=torch.int64)
            fitted = fit_with(
                source,
                solo,
                config,
                threads=threads,
                device=device,
                start=start,
                labels=labels,
                report=report,
                checkpoints=checkpoints,
            )
        except RaydkmError as error:
            report("failed", error=str(error))
            raise
        fitted.seconds["ingest"] = ingested
        fitted.facts.update(engine="local", threads=threads, device=str(device))
    if kind == "files":
        fitted.facts["files"] = rows.digest
    fitted.seconds["total"] = time.perf_counter() - began
    return model_of(fitted, config, made), None if labels is None else labels.numpy()


def _kind(data: Any) -> str:
    """What was given: "dataset", "files", "table" or "array"."""
    if type(data).__module__.startswith("ray.data"):
        return "dataset"
    if names_files(data):
        return "files"
    return "table" if isinstance(data, pa.Table | pa.RecordBatch) else "array"


def names_files(data: Any) -> bool:
    """Whether `data` is a path or some paths, rather than rows."""
    if isinstance(data, list | tuple | set):
        return len(data) > 0 and all(isinstance(item, str | os.PathLike) for item in data)
    return isinstance(data, str | os.PathLike)


def _source(
    data: Any,
    kind: str,
    config: FitConfig,
    made: FeatureConfig,
    sample_weight: ArrayLike | None,
    tiers: Tiers,
    readers: int,
) -> RowSource:
    unit = config.metric == "cosine" and made.plain
    if kind == "files":
        source = RowSource.of_table(data, tiers, readers=readers)
        logger.info("%s", tiers)
        return source
    if kind == "table":
        columns = Columns.named(config.column, config.weight, data.schema.names, shape=made.dims)
        columns.check(data.schema, "the table")
        if len(data) == 0:
            raise InputError("the table has no rows")
        block = columns.extract(data, "the table", 0, unit=unit)
        weight = None if block.weight is None else torch.from_numpy(block.weight)
        return RowSource.of(as_tensor(block.rows), weight).within(tiers)
    if config.column is not None or config.weight is not None:
        raise InputError("an array has no columns; drop column and weight (weights go in sample_weight)")
    return RowSource.from_array(data, sample_weight, unit=unit).within(tiers)


def _parquet(data: Any, config: FitConfig, made: FeatureConfig) -> ParquetTable:
    unit = config.metric == "cosine" and made.plain
    table = ParquetTable.open(data, config.column, config.weight, unit=unit, shape=made.dims)
    if config.clusters > table.rows:
        raise InputError(f"{config.clusters} clusters but only {table.rows} rows; ask for fewer clusters")
    return table
