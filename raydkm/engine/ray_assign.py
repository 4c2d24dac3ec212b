"""Assignment on Ray: Ray Data streams the list of ranges to a pool of actors that hold the model's index."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import ray
import ray.data
import ray.exceptions
from numpy.typing import NDArray

from raydkm import errors
from raydkm.assigner import Assigner
from raydkm.engine.assign import AssignTask, assign_range, assigner_of
from raydkm.engine.manifest import Range
from raydkm.engine.passes import thread_pool
from raydkm.engine.ray_train import connect, cpus_each, cpus_of_nodes
from raydkm.errors import EngineError, RaydkmError

logger = logging.getLogger("raydkm")

#: Seconds for nodes to come, after each of the passes in a row in which nothing was done; one more, and a run gives up.
IDLE_WAITS_S = (5.0, 20.0, 60.0, 180.0)


class _RangeAssigner:
    def __init__(self, task: AssignTask, threads: int):
        self._task, self._threads = task, threads
        self._kept = thread_pool(threads)
        self._pool = self._kept.__enter__()  # as long as the actor lives

    @cached_property
    def _assigner(self) -> Assigner:  # made at the first range, whose row tells the driver what is wrong with it
        return assigner_of(self._task)

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


def assign_on_ray(task: AssignTask, missing: list[Range]) -> Iterator[Range]:
    """Do the `missing` ranges on the connected cluster; yield each that is done.

    An actor that dies loses the range that it was at, and Ray starts it again where there is room. What has been lost
    is done in another pass, on the nodes that there are by then; after one in which nothing was done, a while later.

    Raises
    ------
    EngineError
        If several passes in a row do nothing.
    """
    connect()
    left, idle = {each.number: each for each in missing}, 0
    workers = task.config.workers or len(cpus_of_nodes())
    least, most = workers if isinstance(workers, tuple) else (workers, workers)
    cpus = cpus_each((min(least, len(left)), min(most, len(left))))
    while left:
        before, told = len(left), "their actors were lost" if cpus else "no node has CPUs"
        try:
            if cpus:
                for number in _pass(task, list(left), cpus, min(least, len(left)), min(most, len(left))):
                    yield left.pop(number)
        except ray.exceptions.RayError as error:
            told = str(error).splitlines()[0]
        if not left:
            return
        logger.warning("%d ranges are left (%s); doing them again", len(left), told)
        idle = idle + 1 if len(left) == before else 0
        if idle > len(IDLE_WAITS_S):
            raise EngineError(f"{len(left)} ranges could not be assigned: {idle} passes did none ({told})")
        gc.collect()  # Ray Data ends its actors with their last reference: they would keep their CPUs from others
        if idle:
            time.sleep(IDLE_WAITS_S[idle - 1])
        least = 1  # nodes may have gone
        cpus = cpus_each((least, min(most, len(left)))) if any(cpus_of_nodes()) else 0


def _pass(task: AssignTask, numbers: list[int], cpus: int, least: int, most: int) -> Iterator[int]:
    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a range whose actor has died is done later
    with ray.data.DataContext.current(context), _silent(_EXECUTOR_LOG):
        results = ray.data.from_items([{"range": n} for n in numbers], override_num_blocks=len(numbers)).map_batches(
            _RangeAssigner,
            fn_constructor_args=(task, task.config.threads or cpus),
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


#: It logs the tracebacks of lost actors; a log that is kept keeps these actors, and their CPUs, from the next pass.
_EXECUTOR_LOG = logging.getLogger("ray.data._internal.execution.streaming_executor_state")


@contextmanager
def _silent(log: logging.Logger) -> Iterator[None]:
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
