"""Dynamic batching that counts vectors: a batch is what has come while the last one was computed.

No timer waits for a batch to fill. A lone request is computed at once; under load requests wait for the processor, and
all that wait (up to `batch_vectors`) are the next batch.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydkm.ops.labeller import Assignment
from raydkm.serve.errors import BusyError
from raydkm.serve.versions import BLOCK_ROWS, Version, slice_of

#: Most seconds after which a refused request is asked to come again.
LONGEST_RETRY = 30


@dataclass(frozen=True, eq=False)
class _Waiting:
    number: int
    version: Version
    rows: NDArray
    top: int | None
    answer: asyncio.Future[Assignment]

    @property
    def key(self) -> tuple:
        """What all of a batch have in common: the model, the precision, and whether one cluster is asked for."""
        return id(self.version), self.rows.dtype, self.top is None


class Batcher:
    """Assigns the vectors of all requests of a process, one batch at a time.

    Requests that can be computed together wait in one queue; the next batch is of the queue whose head is the oldest.

    Parameters
    ----------
    executor : Executor
        Where batches are computed.
    batch_vectors : int
        Vectors of a batch; a request of more is a batch of its own.
    queue_vectors : int
        Vectors that may wait.
    tell : callable of (vectors, requests)
        Is called before each batch.
    """

    def __init__(
        self, executor: Executor, batch_vectors: int, queue_vectors: int, tell: Callable[[int, int], None]
    ) -> None:
        self._executor = executor
        self._batch_vectors = batch_vectors
        self._queue_vectors = queue_vectors
        self._tell = tell
        self._queues: dict[tuple, deque[_Waiting]] = {}
        self._numbers = itertools.count()
        self._running: asyncio.Task[None] | None = None
        self._seconds_a_vector = 0.0
        self.waiting = 0  # vectors

    async def assign(self, version: Version, rows: NDArray, top: int | None) -> Assignment:
        """Assign rows (n, d) with the next batch; refuse them (`BusyError`) where too many wait."""
        if self.waiting and self.waiting + len(rows) > self._queue_vectors:
            seconds = min(LONGEST_RETRY, max(1, math.ceil(self.waiting * self._seconds_a_vector)))
            raise BusyError(f"{self.waiting} vectors are waiting; try again in {seconds} s", seconds)
        item = _Waiting(next(self._numbers), version, rows, top, asyncio.get_running_loop().create_future())
        self._queues.setdefault(item.key, deque()).append(item)
        self.waiting += len(rows)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        try:
            return await item.answer
        except asyncio.CancelledError:  # nobody waits for it any more
            if item in self._queues.get(item.key, ()):
                self._queues[item.key].remove(item)
                self._left(item)
            raise

    def _left(self, item: _Waiting) -> None:
        self.waiting -= len(item.rows)
        if not self._queues[item.key]:
            del self._queues[item.key]

    async def _run(self) -> None:
        while self._queues:
            await self._compute(self._next())

    def _next(self) -> list[_Waiting]:
        """Take a batch from the head of the queue whose head came first."""
        queue = min(self._queues.values(), key=lambda queue: queue[0].number)
        batch: list[_Waiting] = []
        count = 0
        while queue and (not batch or count + len(queue[0].rows) <= self._batch_vectors):
            item = queue.popleft()
            self._left(item)
            batch.append(item)
            count += len(item.rows)
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        vectors, began = sum(len(item.rows) for item in batch), time.perf_counter()
        try:
            self._tell(vectors, len(batch))
            answers = await asyncio.get_running_loop().run_in_executor(self._executor, _assigned, batch)
        except Exception as error:  # noqa: BLE001 - goes to each of those who wait
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        seconds = (time.perf_counter() - began) / max(vectors, BLOCK_ROWS)
        self._seconds_a_vector += 0.2 * (seconds - self._seconds_a_vector)
        for item, answer in zip(batch, answers, strict=True):
            if not item.answer.done():
                item.answer.set_result(answer)


def _assigned(batch: list[_Waiting]) -> list[Assignment]:
    rows = batch[0].rows if len(batch) == 1 else np.concatenate([item.rows for item in batch])
    top = batch[0].top and max(item.top or 1 for item in batch)
    found = batch[0].version.assign(rows, top)
    stops = np.cumsum([len(item.rows) for item in batch])
    return [slice_of(found, stop - len(item.rows), stop, item.top) for item, stop in zip(batch, stops, strict=True)]
