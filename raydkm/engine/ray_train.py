"""The Ray wiring: the same fit in every worker of a Ray Train run.

A Parquet table reaches the workers as a Ray Data stream of row ranges, which each worker reads straight from
storage; a `ray.data.Dataset` (somebody's pipeline) as a stream of its blocks.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from raydkm.config import FitConfig, FitRunConfig
from raydkm.data.columns import Block, Columns
from raydkm.data.parquet import READ_ROWS, ParquetTable
from raydkm.data.source import MemorySource
from raydkm.data.tiers import Allocate
from raydkm.engine.checkpoint import CheckpointFile
from raydkm.engine.comm import Comm, ProcessGroup
from raydkm.engine.fit import Fitted, fit_rows
from raydkm.engine.progress import StepLog
from raydkm.engine.where import row_allocator, threads_of
from raydkm.errors import ConfigError, EngineError, InputError, RaydkmError
from raydkm.ops.batch import BATCH_ROWS

#: A rank that does not answer for this long fails the run (torch's default is 1800 s).
PROCESS_GROUP_TIMEOUT_S = 300


class EveryRow(ray.train.DataConfig):
    """Hands every row to exactly one worker.

    Ray's own split is even to the row, and drops what is left over.

    Parameters
    ----------
    rows : int
        Rows of the table, if the data set streams row ranges; they are cut between canonical batches.
    """

    def __init__(self, rows: int | None):
        super().__init__()
        self._rows = rows

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        data = datasets["rows"]
        if self._rows is not None:
            parts = [ray.data.from_items(part) for part in row_ranges(self._rows, world_size)]
            return [{"rows": part.iterator()} for part in parts]
        parts = data.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
        return [{"rows": part} for part in parts]


def row_ranges(rows: int, world_size: int) -> list[list[dict[str, int]]]:
    """For each worker, one contiguous range of rows, cut between canonical batches."""
    batches = -(-rows // BATCH_ROWS)
    cuts = [min(rows, batches * rank // world_size * BATCH_ROWS) for rank in range(world_size + 1)]
    return [[{"start": start, "stop": stop}] for start, stop in pairwise(cuts)]


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; keep one that is connected."""
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    quiet_ray_data()


def quiet_ray_data() -> None:
    """Silence Ray Data's own progress, which would tell of row ranges and file names, not of clustering."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def fit_on_ray(
    data: ParquetTable | ray.data.Dataset, config: FitConfig, run: FitRunConfig, start: np.ndarray | None
) -> Fitted:
    """Fit on the connected Ray cluster; the result is that of `fit_rows` on all rows."""
    began = time.time()
    connect()
    workers, cpus, use_gpu = _resources(config, run)
    task: dict[str, Any] = {"config": config, "run": run, "start": start, "cpus": cpus, "submitted": began}
    if isinstance(data, ParquetTable):
        task["table"] = data
        rows, stream = data.rows, ray.data.from_items([{"rows": data.rows}])
    else:
        schema = data.schema()
        if schema is None:
            raise InputError("the data set has no rows")
        columns = Columns.named(config.column, config.weight, schema.names)
        missing = [name for name in columns.needed if name not in schema.names]
        if missing:
            raise InputError(f"the data set has no column '{missing[0]}'; there are: {', '.join(schema.names)}")
        task["columns"] = columns
        # Run the pipeline now, once, while no worker holds the CPUs that it needs. Whole blocks are handed out later:
        # with few of them a rank might get none.
        rows, stream = None, data.select_columns(columns.needed).materialize()
        if stream.num_blocks() < 4 * workers:
            stream = stream.repartition(4 * workers).materialize()
        task["total"] = stream.count()
        if task["total"] == 0:
            raise InputError("the data set has no rows")
    with tempfile.TemporaryDirectory(prefix="raydkm-") as storage:
        trainer = TorchTrainer(
            _work,  # type: ignore[arg-type]
            train_loop_config=task,
            torch_config=TorchConfig(timeout_s=PROCESS_GROUP_TIMEOUT_S),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus}
            ),
            datasets={"rows": stream},
            dataset_config=EveryRow(rows),
            run_config=ray.train.RunConfig(
                name="fit",
                storage_path=storage,
                failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            ),
        )
        try:
            outcome = trainer.fit().return_value  # type: ignore[attr-defined]
        except ray.train.TrainingFailedError as error:
            raise EngineError(f"the Ray run failed: {error}") from error
    if isinstance(outcome, RaydkmError):
        raise outcome
    return outcome


def _resources(config: FitConfig, run: FitRunConfig) -> tuple[int, int, bool]:
    """Number of workers, CPUs of each, and whether each has a GPU: one worker a GPU, else one a node."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = config.device != "cpu" and gpus > 0
    if config.device.startswith("cuda") and not gpus:
        raise ConfigError(f"device {config.device}: the Ray cluster has no GPUs")
    workers = run.workers or (gpus if use_gpu else sum(node["Alive"] for node in ray.nodes()))
    if use_gpu and workers > gpus:
        raise ConfigError(f"{workers} workers, but the Ray cluster has {gpus} GPUs")
    return workers, cpus_each(workers), use_gpu


def cpus_each(workers: int) -> int:
    """The most CPUs that each of `workers` equal workers can have on the nodes there are."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    for cpus in range(max(nodes), 0, -1):
        if sum(node // cpus for node in nodes) >= workers:
            return cpus
    raise ConfigError(f"{workers} workers, but the Ray cluster has {sum(nodes)} CPUs")


def _work(task: dict[str, Any]) -> Fitted | RaydkmError | None:
    """What every worker runs. Errors that a user can mend are returned, alike by all ranks."""
    began, comm, config, run = time.time(), ProcessGroup(), task["config"], task["run"]
    ray_device = ray.train.torch.get_device()
    device = ray_device if ray_device.type == "cuda" else torch.device("cpu")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_ray_data()
    try:
        source = _ingest(task, comm).to(device)
        ingested = time.time()
        fitted = fit_rows(
            source,
            comm,
            config,
            threads=threads_of(run, task["cpus"]),
            device=device,
            start=task["start"],
            watch=StepLog() if comm.rank == 0 else None,
            checkpoints=CheckpointFile(run.run_dir, run.checkpoint_every) if run.run_dir else None,
        )
    except RaydkmError as error:
        return error
    fitted.seconds.update(start=began - task["submitted"], ingest=ingested - began)
    fitted.facts.update(engine="ray", workers=comm.world_size, device=str(device))
    return fitted if comm.rank == 0 else None


def _ingest(task: dict[str, Any], comm: Comm) -> MemorySource:
    """This worker's rows; where any worker refuses its own, all raise that error."""
    shard = ray.train.get_dataset_shard("rows")
    refusal: RaydkmError | None = None
    try:
        if "table" in task:
            workers_here = ray.train.get_context().get_local_world_size()
            source = _read_ranges(task["table"], shard, row_allocator(task["run"], workers_here))
        else:
            source = _read_blocks(task, shard)
    except RaydkmError as error:
        refusal = error
    refusals = [error for error in comm.all_gather(refusal) if error is not None]
    if refusals:
        raise refusals[0]
    return source


def _read_ranges(table: ParquetTable, shard: Any, allocate: Allocate) -> MemorySource:
    ranges = [(row["start"], row["stop"]) for row in shard.iter_rows()]

    def blocks() -> Iterator[Block]:
        for start, stop in ranges:
            yield from table.read(start, stop)

    rows = sum(stop - start for start, stop in ranges)
    return MemorySource.from_blocks(blocks(), rows, first=ranges[0][0], total=table.rows, allocate=allocate)


def _read_blocks(task: dict[str, Any], shard: Any) -> MemorySource:
    columns, unit = task["columns"], task["config"].metric == "cosine"
    blocks: list[Block] = []
    rows = 0
    for table in shard.iter_batches(batch_size=READ_ROWS, batch_format="pyarrow"):
        columns.check(table.schema, "the data set")
        blocks.append(columns.extract(table, "the data set (this worker's part)", rows, unit=unit))
        rows += table.num_rows
    return MemorySource.from_blocks(blocks, rows, total=task["total"])
