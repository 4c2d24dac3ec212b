"""One pass over every row of every worker, the only way in which anything is computed from the data."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from itertools import cycle
from operator import iadd
from typing import Protocol, TypeVar

import torch

from raydkm.engine.comm import Comm
from raydkm.engine.where import torch_threads
from raydkm.errors import EngineError, RaydkmError
from raydkm.ops.batch import Batch
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.last import LastPass
from raydkm.ops.statistics import Local, RowByRow

T = TypeVar("T")

#: Memory of so many bytes and more is mapped for itself.
MAPPED_BYTES = 2**22
_M_MMAP_THRESHOLD = -3

#: Bytes that the sums of a worker's threads may take together where each has its own, and where threads share them.
OWN_SUMS_BYTES = 2**25
SUMS_BYTES = 2**27

#: Where few rows are added, threads share sums of more bytes than this: they need not wait long for each other.
FEW_SUMS_BYTES = 2**22

#: Batches that are computed as one, at the most, where sums are of rows, not of batches.
AT_ONCE = 8

#: Threads that may share sums without waiting for each other for long.
SHARED_BY = 4


class Source(Protocol):
    """What a pass asks of a worker's rows; `raydkm.data.source` has them."""

    first: int  # number of this worker's first row
    total: int  # rows of all workers
    repeats: bool  # whether rows come in the same order in each pass

    def batches(self, at_once: int = 1, sharers: int = 0) -> Generator[Batch, None, None]: ...


@dataclass(frozen=True)
class Timing:
    """Seconds of a pass in this worker: computing, waiting for the slowest worker, and adding up."""

    compute: float
    wait: float
    reduce: float


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
        self.timing = Timing(0.0, 0.0, 0.0)

    def sum(self, fields: tuple[Field, ...], local: Local, last: LastPass | None = None) -> Statistics:
        """Sum `local` over all batches of all workers, going on from this worker's sums of the `last` pass.

        Raises
        ------
        EngineError
            If the rows seen are not the rows there are.
        RaydkmError
            What any worker raised.
        """

        copies = copies_of_sums(size_of_sums(fields), self.threads, few=last is not None and last.known)
        sums = [] if last is None else [last.begin(fields)]
        sums += [Statistics(fields, device=self.device) for _ in range(copies - len(sums))]
        next_of_sums = cycle(sums)

        def share(batches: Iterator[Batch]) -> None:
            into = next(next_of_sums)
            for batch in batches:
                local(batch, into)

        began = time.perf_counter()
        refusal: RaydkmError | None = None
        try:
            self.each(share, AT_ONCE if isinstance(local, RowByRow) else 1)
            total = reduce(iadd, sums)
            if total.buffer.nbytes >= MAPPED_BYTES:
                trim_memory()
            if last is not None and self.comm.world_size > 1:
                total = total.copy()  # to be reduced; the next pass goes on from this worker's own
        except RaydkmError as error:  # others wait for this worker's sum: let the missing rows tell them
            refusal, total = error, Statistics(fields, device=self.device)
        computed = time.perf_counter()
        self.comm.wait()
        waited = time.perf_counter()
        self.comm.all_reduce(total.buffer)
        seen = int(total["rows"])
        self.timing = Timing(computed - began, waited - computed, time.perf_counter() - waited)
        if seen != self.source.total:
            for found in self.comm.all_gather(refusal):
                if found is not None:
                    raise found
            check_rows_seen(seen, self.source.total)
        return total

    def each(self, task: Callable[[Iterator[Batch]], T], at_once: int = 1) -> list[T]:
        """Run `task` in every thread on this worker's batches, each of which goes to one thread.

        Up to `at_once` of them may come as one.
        """
        lock = threading.Lock()

        def share(batches: Iterator[Batch]) -> Iterator[Batch]:
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch.to(self.device)

        batches = self.source.batches(at_once, self.threads)
        try:
            return list(self.map(lambda _: task(share(batches)), range(self.threads)))
        finally:
            with lock:  # after an error in one thread, others may be at it still
                batches.close()


def size_of_sums(fields: tuple[Field, ...]) -> int:
    """Bytes of the sums of some fields."""
    return 8 * sum(field.size for field in fields)


def copies_of_sums(size: int, threads: int, *, few: bool = False) -> int:
    """How many copies of sums of `size` bytes a worker's threads add to; one that is shared has to be waited for.

    `few` says that many rows are not added.
    """
    if few and size > FEW_SUMS_BYTES:
        return 1
    if threads * size <= OWN_SUMS_BYTES:
        return threads
    return max(1, min(-(-threads // SHARED_BY), SUMS_BYTES // size))


def check_rows_seen(seen: int, total: int) -> None:
    if seen != total:
        raise EngineError(f"a pass saw {seen} rows of {total}: rows were lost or counted twice")


def give_memory_back() -> None:
    """Let glibc return arrays of some MiB to the system when they are freed, whatever sizes it has seen before.

    It would keep them, and in pieces between smaller ones they are of no use to the next step.
    """
    with suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def trim_memory() -> None:
    """Let glibc return what small arrays of all threads have left: some milliseconds, to be spent on large steps."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in which (as in the calling thread) torch's operations use one thread each.

    An interrupt does not wait for what they are at.
    """
    give_memory_back()
    pool, interrupted = ThreadPoolExecutor(threads, "raydkm", initializer=_prepare_thread), False
    try:
        with torch_threads(1):
            yield pool
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        pool.shutdown(wait=not interrupted, cancel_futures=interrupted)


def _prepare_thread() -> None:
    torch.set_num_threads(1)
