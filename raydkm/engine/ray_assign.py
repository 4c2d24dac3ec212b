"""Assignment on Ray: Ray Data streams the list of ranges to a pool of actors that hold the model's index."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import ray.data
import ray.exceptions
from numpy.typing import NDArray

from raydkm import errors
from raydkm.config import RunConfig
from raydkm.engine.assign import AssignTask, assign_range, assigner_of
from raydkm.engine.manifest import Range
from raydkm.engine.passes import thread_pool
from raydkm.engine.ray_train import connect, cpus_each, cpus_of_nodes
from raydkm.errors import EngineError, RaydkmError

logger = logging.getLogger("raydkm")

#: Passes in a row in which nothing was done, after which a run gives up.
IDLE_PASSES = 3


class _RangeAssigner:
    def __init__(self, task: AssignTask, threads: int):
        self._task, self._threads = task, threads
        self._assigner = assigner_of(task)
        self._kept = thread_pool(threads)
        self._pool = self._kept.__enter__()  # as long as the actor lives

    def __call__(self, numbers: dict[str, NDArray]) -> dict[str, Any]:
        [number] = numbers["range"]
        each, kind, refusal = self._task.ranges[number], "", ""
        try:
            assign_range(self._assigner, self._task, each, self._pool, self._threads)
        except RaydkmError as error:  # raised by the driver: one sentence instead of a task's traceback
            kind, refusal = type(error).__name__, str(error)
        except Exception as error:  # noqa: BLE001 - it would be taken for a lost actor, and tried again
            kind, refusal = "EngineError", f"{each.source}, row {each.start}: {type(error).__name__}: {error}"
        return {"range": np.array([number]), "kind": [kind], "refusal": [refusal]}


def assign_on_ray(task: AssignTask, run: RunConfig, missing: list[Range]) -> Iterator[Range]:
    """Do the `missing` ranges on the connected cluster; yield each that is done.

    An actor that dies loses the range that it was at, and Ray starts it again where there is room. What has been lost
    is done in another pass, on the nodes that there are by then.

    Raises
    ------
    EngineError
        If several passes in a row do nothing.
    """
    connect()
    # it logs the tracebacks of lost actors; a log that is kept keeps these actors, and their CPUs, from the next pass
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)
    left, idle = {each.number: each for each in missing}, 0
    workers = run.workers or len(cpus_of_nodes())
    least, most = workers if isinstance(workers, tuple) else (workers, workers)
    while left:
        before = len(left)
        try:
            for number in _pass(task, run, list(left), min(least, len(left)), min(most, len(left))):
                yield left.pop(number)
        except ray.exceptions.RayError as error:
            logger.warning("%s", str(error).splitlines()[0])
        if left:
            idle = idle + 1 if len(left) == before else 0
            if idle == IDLE_PASSES:
                raise EngineError(f"{len(left)} ranges could not be assigned: the actors of {idle} passes were lost")
            logger.warning("%d ranges were lost with their actors; doing them again", len(left))
            least = 1  # nodes may have gone
            gc.collect()  # Ray Data ends its actors with their last reference: they would keep their CPUs from others


def _pass(task: AssignTask, run: RunConfig, numbers: list[int], least: int, most: int) -> Iterator[int]:
    cpus = cpus_each((least, most))
    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a range whose actor has died is done later
    with ray.data.DataContext.current(context):
        results = ray.data.from_items([{"range": n} for n in numbers], override_num_blocks=len(numbers)).map_batches(
            _RangeAssigner,
            fn_constructor_args=(task, run.threads or cpus),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
            num_cpus=cpus,
            max_restarts=-1,
            max_task_retries=0,  # or a range would wait for an actor whose node does not return
        )
        for result in results.iter_rows():
            if result["refusal"]:
                raise getattr(errors, result["kind"])(result["refusal"])
            yield int(result["range"])
