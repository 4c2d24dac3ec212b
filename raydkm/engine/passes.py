"""One pass over every row of every worker, the only way in which anything is computed from the data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from raydkm.engine.comm import Comm
from raydkm.engine.where import torch_threads
from raydkm.errors import EngineError
from raydkm.ops.batch import Batch
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.statistics import Local

T = TypeVar("T")


class Source(Protocol):
    """What a pass asks of a worker's rows; `raydkm.data.source` has them."""

    first: int
    total: int

    @property
    def rows(self) -> int: ...
    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Batch: ...
    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]: ...


class Passes:
    """A worker's rows, its communicator and its threads (by default the calling thread alone).

    Each canonical batch is computed by one thread and threads share out batches, so that the arithmetic of a
    batch, and with exact sums every result, does not depend on how many threads or workers there are.

    Parameters
    ----------
    source : Source
    comm : Comm
    device : torch.device
    threads : int
    map : callable
        Like the built-in, in `threads` threads: the `map` of a `thread_pool`.
    """

    def __init__(self, source: Source, comm: Comm, device: torch.device, threads: int = 1, map: Callable = map):
        self.source = source
        self.comm = comm
        self.device = device
        self.threads = threads
        self.map = map

    def sum(self, fields: tuple[Field, ...], local: Local) -> Statistics:
        """Sum `local` over all batches of all workers.

        Raises
        ------
        EngineError
            If the rows seen are not the rows there are.
        """

        def share(batches: Iterator[Batch]) -> Statistics:
            into = Statistics(fields, device=self.device)
            for batch in batches:
                local(batch, into)
            return into

        total = reduce(add, self.each(share))
        self.comm.all_reduce(total.buffer)
        seen = int(total["rows"])
        if seen != self.source.total:
            raise EngineError(f"a pass saw {seen} rows of {self.source.total}: rows were lost or counted twice")
        return total

    def each(self, task: Callable[[Iterator[Batch]], T]) -> list[T]:
        """Run `task` in every thread on this worker's batches, each of which goes to one thread."""
        numbers = itertools.count()  # next() on it is atomic

        def batches() -> Iterator[Batch]:
            while (number := next(numbers)) < len(self.source):
                yield self.source[number]

        return list(self.map(lambda _: task(batches()), range(self.threads)))


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in which (as in the calling thread) torch's operations use one thread each."""
    with torch_threads(1), ThreadPoolExecutor(threads, "raydkm", initializer=_prepare_thread) as pool:
        yield pool


def _prepare_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # tiny posteriors would slow the products down by half
