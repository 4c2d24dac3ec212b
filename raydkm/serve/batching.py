"""Dynamic batching that counts vectors: a batch is what has come while the last one was computed.

No timer waits for a batch to fill. A lone request is computed at once; under load requests wait for the processor, and
all that wait (up to `batch_vectors`) are the next batch.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydkm.engine.assign import Assignment
from raydkm.serve.errors import BusyError
from raydkm.serve.versions import Version, slice_of


@dataclass(frozen=True)
class _Waiting:
    version: Version
    rows: NDArray
    top: int | None
    answer: asyncio.Future[Assignment]

    def goes_with(self, other: _Waiting) -> bool:
        """Whether both may be computed as one batch: the same model, in the same precision."""
        same = self.version is other.version and self.rows.dtype == other.rows.dtype
        return same and (self.top is None) == (other.top is None)


class Batcher:
    """Assigns the vectors of all requests of a process, one batch at a time.

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
        self._queue: deque[_Waiting] = deque()
        self._running: asyncio.Task[None] | None = None
        self._seconds_a_vector = 0.0
        self.waiting = 0  # vectors

    async def assign(self, version: Version, rows: NDArray, top: int | None) -> Assignment:
        """Assign rows (n, d) with the next batch; refuse them (`BusyError`) where too many wait."""
        if self._queue and self.waiting + len(rows) > self._queue_vectors:
            seconds = max(1, math.ceil(self.waiting * self._seconds_a_vector))
            raise BusyError(f"{self.waiting} vectors are waiting; try again in {seconds} s", seconds)
        item = _Waiting(version, rows, top, asyncio.get_running_loop().create_future())
        self._queue.append(item)
        self.waiting += len(rows)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await item.answer

    async def _run(self) -> None:
        while self._queue:
            batch = self._next()
            if batch:
                await self._compute(batch)

    def _next(self) -> list[_Waiting]:
        """Take a batch from the head of the queue, but for requests that nobody waits for any more."""
        batch: list[_Waiting] = []
        count = 0
        while self._queue:
            item = self._queue[0]
            if batch and (not item.goes_with(batch[0]) or count + len(item.rows) > self._batch_vectors):
                break
            self._queue.popleft()
            self.waiting -= len(item.rows)
            if not item.answer.done():
                batch.append(item)
                count += len(item.rows)
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        rows = batch[0].rows if len(batch) == 1 else np.concatenate([item.rows for item in batch])
        top = batch[0].top and max(item.top or 1 for item in batch)
        self._tell(len(rows), len(batch))
        began = time.perf_counter()
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, batch[0].version.assign, rows, top)
        except Exception as error:  # noqa: BLE001 - goes to each of those who wait
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        self._seconds_a_vector = (time.perf_counter() - began) / len(rows)
        start = 0
        for item in batch:
            if not item.answer.done():
                item.answer.set_result(slice_of(found, start, start + len(item.rows), item.top))
            start += len(item.rows)
