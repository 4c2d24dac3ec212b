"""The Ray wiring: the same fit in every worker of a Ray Train run.

Each worker reads its range of a Parquet table straight from storage; a `ray.data.Dataset` (somebody's pipeline) reaches
it as a stream of blocks.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
import ray.train
import ray.train.torch
import torch
from ray._private.services import canonicalize_bootstrap_address
from ray.data.dataset import MaterializedDataset
from ray.train.torch import TorchTrainer

from raydkm.config import FeatureConfig, FitConfig, FitRunConfig
from raydkm.data.columns import Block, Columns, decode_blocks
from raydkm.data.parquet import READ_IMAGES, READ_ROWS, ParquetTable
from raydkm.data.source import RowSource
from raydkm.engine.checkpoint import CheckpointFile
from raydkm.engine.comm import OWN_END, ProcessGroup, gathered
from raydkm.engine.fit import Fitted, fit_rows
from raydkm.engine.preflight import check_room, check_workers
from raydkm.engine.progress import Callback, Reporter, reporter
from raydkm.engine.ray_local import TorchOnNodeAddress, has_dashboard, start_local_cluster, warn_of_open_cluster
from raydkm.engine.where import threads_of, tiers_of
from raydkm.errors import ConfigError, EngineError, InputError, RaydkmError, WorkerLostError
from raydkm.ops.batch import BATCH_ROWS

logger = logging.getLogger("raydkm")

#: Settings that Ray Train reads from the driver's environment, where the user has set no others: how often workers are
#: looked at, how long a worker may take to answer that, and how long workers may take to start before it tries anew.
_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
}


class EveryRow(ray.train.DataConfig):
    """Hands every row of a data set to exactly one worker; Ray's own split is even to the row, and drops the rest."""

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        parts = datasets["rows"].streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
        return [{"rows": part} for part in parts]


class _Trainer(TorchTrainer):
    """Starts no actor that has nothing to do: to hand out data sets, or to ask a dashboard that is not there."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        needed = {"DatasetsCallback": bool(self.datasets), "PlacementGroupCleanerCallback": has_dashboard()}
        return [callback for callback in callbacks if needed.get(type(callback).__name__, True)]


def row_range(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The contiguous range of a table's rows that a worker reads, cut between canonical batches."""
    batches = -(-rows // BATCH_ROWS)
    start, stop = (min(rows, batches * cut // world_size * BATCH_ROWS) for cut in (rank, rank + 1))
    return start, stop


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or that runs on this machine, or start one; keep one that is connected.

    Raises
    ------
    EngineError
        If nothing answers at RAY_ADDRESS.
    """
    if not ray.is_initialized():
        address = _address()
        if address == "local":
            start_local_cluster()
        else:
            ray.init(address=address, logging_level=logging.WARNING)
            warn_of_open_cluster(address)
    quiet_ray_data()


def _address() -> str:
    """Where `ray.init` is to connect to; Ray itself would wait for minutes for a cluster that is no more."""
    given = os.environ.get("RAY_ADDRESS", "")
    if "://" in given:  # a Ray client's
        return given
    try:
        address = canonicalize_bootstrap_address(None)  # type: ignore[arg-type]
        if address is None:
            return "local"
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        return address
    except (OSError, ValueError) as error:
        if given:
            raise EngineError(f"no Ray cluster answers at RAY_ADDRESS {given} ({error})") from None
        return "local"  # one that was killed, and left its address behind


def quiet_ray_data() -> None:
    """Silence Ray Data's own progress, which would tell of row ranges and file names, not of clustering."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def fit_on_ray(
    data: ParquetTable | ray.data.Dataset,
    config: FitConfig,
    made: FeatureConfig,
    run: FitRunConfig,
    start: np.ndarray | None,
    callbacks: Sequence[Callback],
    fit_with: Callable[..., Fitted] = fit_rows,
) -> Fitted:
    """Fit on the connected Ray cluster; the result is that of `fit_with` (as `fit_rows`) on all rows."""
    began = time.time()
    connect()
    task: dict[str, Any] = {"config": config, "made": made, "run": run, "start": start, "callbacks": callbacks}
    task |= {"submitted": began, "fit_with": fit_with}
    streams: dict[str, Any] = {}
    if isinstance(data, ParquetTable):
        task["table"] = data
        workers, cpus, use_gpu = _resources(config, run, rows=data.rows)
    else:
        task["columns"], task["total"], streams["rows"] = _checked(data, config, made, run)
        workers, cpus, use_gpu = _resources(config, run, spare=1)  # without a CPU the data set would never come
    task["cpus"] = cpus
    with tempfile.TemporaryDirectory(prefix="raydkm-") as storage, _defaults_in_environment(_TRAIN_ENVIRONMENT):
        trainer = _Trainer(
            # the task not as train_loop_config, which Train's controller unpickles: it would import torch
            partial(_work, task),  # type: ignore[arg-type]
            torch_config=TorchOnNodeAddress(timeout_s=int(2 * run.timeout) + 1),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,  # type: ignore[arg-type]
                use_gpu=use_gpu,
                resources_per_worker={"CPU": cpus},
            ),
            datasets=streams,
            dataset_config=EveryRow(),
            run_config=ray.train.RunConfig(
                name="fit",
                storage_path=storage,
                failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            ),
        )
        try:
            outcome = trainer.fit().return_value  # type: ignore[attr-defined]
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            reason = _reason(error)
            reporter(run.run_dir, callbacks)("failed", error=reason)
            raise EngineError(f"the Ray run failed: {reason}") from error
    if isinstance(outcome, RaydkmError):
        raise outcome
    return outcome


@contextmanager
def _defaults_in_environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment that are not set, and take them out again."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _reason(error: Exception) -> str:
    """The last line of the first worker's error that tells more than that another was lost."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    told = [str(failure).strip().splitlines()[-1] for _, failure in sorted(failures.items()) if str(failure).strip()]
    return next((line for line in told if not line.endswith(OWN_END)), str(error))


def _checked(
    data: ray.data.Dataset, config: FitConfig, made: FeatureConfig, run: FitRunConfig
) -> tuple[Columns, int | None, ray.data.Dataset]:
    """The columns of a data set, its number of rows where that is known, and the stream of its blocks.

    Of a pipeline that has not run, Ray tells schema and count by running it: these are found when its rows arrive.
    """
    if run.cache == "stream" and config.seed_rows == "all":
        raise ConfigError("seed_rows all needs rows that come in the same order again: drop it, or cache stream")
    schema = data.schema(fetch_if_missing=False)
    columns = Columns.named(config.column, config.weight, [] if schema is None else schema.names, shape=made.dims)
    missing = [name for name in columns.needed if schema is not None and name not in schema.names]
    if schema is not None and missing:
        raise InputError(f"the data set has no column '{missing[0]}'; there are: {', '.join(schema.names)}")
    known = isinstance(data, MaterializedDataset) or run.cache == "stream"
    stream = data.select_columns(columns.needed)
    base = None if schema is None else schema.base_schema
    # decoded by Ray Data's tasks, on nodes that do not train too; of frames no schema tells whether there are images
    if schema is not None and (not isinstance(base, pa.Schema) or columns.encoded(base)):
        stream = stream.map_batches(
            partial(decode_blocks, columns=columns), batch_format="pyarrow", batch_size=READ_IMAGES
        )
    # whole blocks are handed out: with few of them a worker might get none
    stream = stream.repartition(target_num_rows_per_block=READ_ROWS)
    with _errors_of_tasks():
        return columns, data.count() if known else None, stream


def _resources(
    config: FitConfig, run: FitRunConfig, spare: int = 0, rows: int | None = None
) -> tuple[int | tuple[int, int], int, bool]:
    """Number of workers, CPUs of each, and whether each has a GPU, with `spare` CPUs left for the tasks of Ray Data.

    Unless told otherwise there is one worker a GPU, else one a node; of known `rows`, no worker is left without any.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = config.device != "cpu" and gpus > 0
    if config.device.startswith("cuda") and not gpus:
        raise ConfigError(f"device {config.device}: the Ray cluster has no GPUs")
    nodes = cpus_of_nodes()
    workers = run.workers or (gpus if use_gpu else len(nodes) - (nodes[0] == spare and len(nodes) > 1))
    least = workers[0] if isinstance(workers, tuple) else workers
    if use_gpu and least > gpus:
        raise ConfigError(f"{least} workers, but the Ray cluster has {gpus} GPUs")
    cpus = cpus_each(workers, spare)
    most = workers[1] if isinstance(workers, tuple) else workers
    batches = most if rows is None else -(-rows // BATCH_ROWS)  # which are shared out
    if most > batches:
        logger.info("%d rows are for %d workers, not %d: each takes %d or more", rows, batches, most, BATCH_ROWS)
        workers = (least, batches) if least < batches else batches
        cpus = cpus_each(workers, spare)
    return workers, cpus, use_gpu


def cpus_of_nodes() -> list[int]:
    """CPUs of each node that has any (the head often offers none), most first."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return sorted((cpus for cpus in nodes if cpus), reverse=True) or [0]


def cpus_each(workers: int | tuple[int, int], spare: int = 0) -> int:
    """The most CPUs that each of `workers` equal workers can have on the nodes there are.

    Of a range (MIN, MAX), MAX workers if there is room for them now, else one a node, else MIN.
    """
    nodes = cpus_of_nodes()
    nodes[0] -= spare
    least, most = workers if isinstance(workers, tuple) else (workers, workers)
    for wanted in dict.fromkeys((most, max(least, len(nodes)), least)):
        for cpus in range(max(nodes), 0, -1):
            if sum(node // cpus for node in nodes) >= wanted:
                return cpus
    kept = f", {spare} of them for Ray Data" if spare else ""
    raise ConfigError(f"{least} workers, but the Ray cluster has {sum(nodes) + spare} CPUs{kept}")


def _work(task: dict[str, Any]) -> Fitted | RaydkmError | None:
    """What every worker runs. Errors that a user can mend are returned, alike by all ranks; others restart all."""
    began, config, run = time.time(), task["config"], task["run"]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_ray_data()
    comm = ProcessGroup(run.timeout)
    report = reporter(run.run_dir, task["callbacks"]) if comm.rank == 0 else Reporter([])
    ray_device = ray.train.torch.get_device()
    device = ray_device if ray_device.type == "cuda" else torch.device("cpu")
    try:
        check_workers(comm)
        source = _ingest(task, comm, device)
        ingested = time.time()
        report("phase", phase="ingest", seconds=ingested - began)
        fitted = task["fit_with"](
            source,
            comm,
            config,
            threads=threads_of(run, task["cpus"]),
            device=device,
            start=task["start"],
            report=report,
            checkpoints=CheckpointFile(run.run_dir, run.checkpoint_every) if run.run_dir else None,
        )
    except WorkerLostError as error:
        if error.names_the_lost:
            (report if comm.rank == 0 else reporter(run.run_dir, []))("lost", error=str(error))
        raise
    except RaydkmError as error:
        report("failed", error=str(error))
        return error
    fitted.seconds.update(start=began - task["submitted"], ingest=ingested - began)
    fitted.facts.update(engine="ray", workers=comm.world_size, device=str(device))
    return fitted if comm.rank == 0 else None


def _ingest(task: dict[str, Any], comm: ProcessGroup, device: torch.device) -> RowSource:
    """This worker's rows; where any worker refuses its own, all raise that error."""
    run, table = task["run"], task.get("table")
    neighbours = ray.train.get_context().get_local_world_size()
    tiers = tiers_of(run, device, neighbours)
    if table is not None:
        start, stop = row_range(table.rows, comm.rank, comm.world_size)
        threads = threads_of(run, task["cpus"])
        rows = stop - start
        check_room(comm, task["config"], table, tiers, rows=rows, threads=threads, neighbours=neighbours)
    held: list[RowSource] = []

    def hold() -> tuple[str, int]:
        if table is not None:
            held.append(RowSource.of_table(table, tiers, start, stop, readers=threads))
        else:
            shard = ray.train.get_dataset_shard("rows")
            readings = itertools.count()
            held.append(
                RowSource.of_stream(lambda: _read_blocks(task, shard, comm, next(readings)), tiers, task["total"])
            )
        return str(tiers), held[0].held

    parts = gathered(comm, hold)
    if table is None and task["total"] is None:
        held[0].total = sum(rows for _, rows in parts)
    if held[0].total == 0:
        raise InputError("the data set has no rows")
    if comm.rank == 0:
        for name, (told, _) in zip(comm.names, parts, strict=True):
            logger.info("%s: %s", name, told)
    return held[0]


def _batches(shard: Any) -> Iterator[pa.Table]:
    """A shard's batches."""
    with _errors_of_tasks():
        yield from shard.iter_batches(batch_size=READ_ROWS, batch_format="pyarrow")


@contextmanager
def _errors_of_tasks() -> Iterator[None]:
    """Raise what the tasks that make a data set have refused, and errors of a user's functions, as `InputError`."""
    try:
        yield
    except ray.exceptions.RayError as error:  # Ray keeps the text alone
        refusal = re.search(r"^raydkm\.errors\.InputError: (.*)$", str(error), re.MULTILINE)
        if refusal is not None:
            raise InputError(refusal[1]) from None
        if "UserCodeException" in str(error):
            raise InputError(f"a function of the data set failed: {_first_error(str(error))}") from None
        raise


def _first_error(text: str) -> str:
    """The first of the errors in a traceback, in one line."""
    first = text.partition("\n\nThe above exception was the direct cause")[0]
    told = itertools.takewhile(lambda line: not line.startswith(" "), reversed(first.strip().splitlines()))
    return " ".join(reversed(list(told)))


def _read_blocks(task: dict[str, Any], shard: Any, comm: ProcessGroup, reading: int) -> Generator[Block, None, None]:
    """This worker's blocks in the data set's reading number `reading`; where one worker stops early, all do.

    Ray Data hands blocks out in turn. A worker that no longer took its own would keep the others from theirs, so it
    goes on taking them until all have stopped.
    """
    columns, unit, rows = task["columns"], task["config"].metric == "cosine" and task["made"].plain, 0
    stopped, done = f"reading {reading} stopped", f"reading {reading} done"
    tables = _batches(shard)
    try:
        for table in tables:
            if comm.signal(stopped, count=0):
                break
            columns.check(table.schema, "the data set")
            yield columns.extract(table, "the data set (this worker's part)", rows, unit=unit)
            rows += table.num_rows
    except BaseException:  # a refusal, here or (GeneratorExit) where the blocks go
        comm.signal(stopped)
        raise
    finally:
        with suppress(Exception):  # of whatever kind: it must not take the place of a refusal
            everyone = comm.signal(done) == comm.world_size
            while not everyone and comm.signal(stopped, count=0) and next(tables, None) is not None:
                everyone = comm.signal(done, count=0) == comm.world_size
