"""`raydkm.fit`: rows in, model out, in this process or on Ray."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from raydkm.atomic import check_apart, check_free
from raydkm.config import FitConfig, FitRunConfig, configure
from raydkm.data.columns import Columns
from raydkm.data.files import find_files
from raydkm.data.parquet import ParquetTable
from raydkm.data.source import MemorySource
from raydkm.engine.checkpoint import CheckpointFile
from raydkm.engine.comm import Solo
from raydkm.engine.fit import Fitted, fit_rows
from raydkm.engine.progress import StepLog
from raydkm.engine.where import device_of, on_ray, row_allocator, threads_of
from raydkm.errors import ConfigError, InputError
from raydkm.model import Model

if TYPE_CHECKING:
    import ray.data

    Data: TypeAlias = NDArray | Tensor | pa.Table | str | os.PathLike | Iterable[str | os.PathLike] | ray.data.Dataset


def fit(
    data: Data,
    *,
    out: str | os.PathLike | None = None,
    overwrite: bool = False,
    sample_weight: ArrayLike | None = None,
    **options: Any,
) -> Model:
    """Fit a model.

    Parameters
    ----------
    data : array (n, d), torch.Tensor, pyarrow.Table, path or paths of Parquet files, or ray.data.Dataset
        Arrays and tables are fitted in this process; Parquet and data sets where `engine` says.
    out : path, optional
        Directory to save the model in.
    overwrite : bool
        Whether `out` may be replaced.
    sample_weight : array-like (n,), optional
        Weights of the rows of an array; of other data, name a column (`weight`).
    **options
        The fields of `raydkm.config.FitConfig` and `raydkm.config.FitRunConfig`. `init` may also be an array
        (K, d) of initial prototypes, or the path of an ``.npy`` file that holds one.

    Returns
    -------
    Model

    Raises
    ------
    ConfigError, InputError, OutputError
        Before anything is written.
    """
    prototypes = [str(options.get("init"))] if str(options.get("init")).endswith(".npy") else []
    start = initial_prototypes(options)
    config, run = configure(options)
    if out is not None:
        check_free(out, overwrite=overwrite)
        check_apart(out, [*(find_files(data) if names_files(data) else []), *prototypes])
    model, _ = fit_model(data, config, run, start=start, sample_weight=sample_weight)
    if out is not None:
        model.save(out, overwrite=overwrite)
    return model


def initial_prototypes(options: dict[str, Any]) -> NDArray[np.float64] | None:
    """Take an array of initial prototypes out of ``options["init"]``, leaving the word "array" there."""
    init = options.get("init")
    if init is None or (isinstance(init, str) and not init.endswith(".npy")):
        return None
    try:
        loaded = np.load(init, allow_pickle=False) if isinstance(init, str | os.PathLike) else init
        start = np.array(loaded, dtype=np.float64)
    except (EOFError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"init: not an array of numbers ({error})") from None
    options["init"] = "array"
    return start


def fit_model(
    data: Data,
    config: FitConfig,
    run: FitRunConfig,
    *,
    start: NDArray | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[Model, NDArray[np.int64] | None]:
    """Fit, and return the model with the labels of the rows (None where they were on Ray)."""
    began = time.perf_counter()
    if (start is None) == (config.init == "array"):
        raise ConfigError("init: give an array (K, d) of initial prototypes, or the path of an .npy file with one")
    is_dataset = type(data).__module__.startswith("ray.data")
    is_paths = not is_dataset and names_files(data)
    if not is_paths and (run.cache == "disk" or run.memory_budget is not None):
        raise ConfigError("cache and memory_budget go with Parquet files: other rows are in memory already")
    if is_dataset and run.engine == "local":
        raise ConfigError("a ray.data.Dataset is fitted on Ray; drop engine, or give Parquet paths")
    if sample_weight is not None and (is_dataset or is_paths):
        raise InputError("sample_weight goes with arrays; name the weight column of files and data sets")
    if is_dataset or (is_paths and on_ray(run)):
        from raydkm.engine.ray_train import fit_on_ray

        rows: Any = data if is_dataset else _parquet(data, config)
        fitted, labels = fit_on_ray(rows, config, run, start), None
    else:
        if not is_paths and (run.engine == "ray" or run.workers is not None):
            raise ConfigError("arrays and tables are fitted in this process; for Ray give Parquet paths or a Dataset")
        device = device_of(config)
        source = _source(data, config, run, sample_weight)
        ingested = time.perf_counter()
        kept = torch.empty(source.rows, dtype=torch.int64)
        threads = threads_of(run)
        fitted = fit_rows(
            source.to(device),
            Solo(),
            config,
            threads=threads,
            device=device,
            start=start,
            labels=kept,
            watch=StepLog(),
            checkpoints=CheckpointFile(run.run_dir, run.checkpoint_every) if run.run_dir else None,
        )
        labels = kept.numpy()
        fitted.seconds["ingest"] = ingested - began
        fitted.facts.update(engine="local", threads=threads, device=str(device))
    fitted.seconds["total"] = time.perf_counter() - began
    return _model(fitted, config), labels


def names_files(data: Any) -> bool:
    """Whether `data` is a path or some paths, rather than rows."""
    if isinstance(data, list | tuple | set):
        return len(data) > 0 and all(isinstance(item, str | os.PathLike) for item in data)
    return isinstance(data, str | os.PathLike)


def _source(data: Any, config: FitConfig, run: FitRunConfig, sample_weight: ArrayLike | None) -> MemorySource:
    unit = config.metric == "cosine"
    if not isinstance(data, pa.Table) and not names_files(data):
        if config.column is not None or config.weight is not None:
            raise InputError("an array has no columns; drop column and weight (weights go in sample_weight)")
        weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        return MemorySource.from_array(data, weight, unit=unit)
    if isinstance(data, pa.Table):
        if sample_weight is not None:
            raise InputError("sample_weight goes with arrays; name the weight column of a table")
        columns = Columns.named(config.column, config.weight, data.schema.names)
        columns.check(data.schema, "the table")
        if len(data) == 0:
            raise InputError("the table has no rows")
        block = columns.extract(data, "the table", 0, unit=unit)
        return MemorySource.from_blocks([block], len(data))
    table = _parquet(data, config)
    return MemorySource.from_blocks(table.read(), table.rows, allocate=row_allocator(run))


def _parquet(data: Any, config: FitConfig) -> ParquetTable:
    table = ParquetTable.open(data, config.column, config.weight, unit=config.metric == "cosine")
    if config.clusters > table.rows:
        raise InputError(f"{config.clusters} clusters but only {table.rows} rows; ask for fewer clusters")
    return table


def _model(fitted: Fitted, config: FitConfig) -> Model:
    packages = ("raydkm", "torch", "numpy", "pyarrow", "ray")
    return Model(
        config=config,
        temperature=fitted.temperature,
        prototypes=fitted.state.prototypes.float(),
        shift=fitted.shift,
        log_s=fitted.state.log_s,
        counts=fitted.counts,
        record={
            **fitted.facts,
            "inertia": fitted.inertia,
            "steps": fitted.state.step,
            "settled": fitted.settled,
            "collapse_temperature": fitted.collapse_temperature,
            "seconds": {name: round(value, 4) for name, value in fitted.seconds.items()},
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        },
        history=fitted.history,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
