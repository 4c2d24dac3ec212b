"""Where a worker's rows are held: host memory, or a memory-mapped file on local disk."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from raydkm.errors import EngineError

logger = logging.getLogger("raydkm")

#: Makes room for an uninitialised matrix of a shape and dtype.
Allocate = Callable[[tuple[int, int], DTypeLike], NDArray]


def on_host(shape: tuple[int, int], dtype: DTypeLike) -> NDArray:
    return np.empty(shape, dtype)


def on_disk(shape: tuple[int, int], dtype: DTypeLike) -> NDArray:
    """A matrix in a nameless file of the temporary directory (TMPDIR), of which even a killed process leaves nothing.

    Raises
    ------
    EngineError
        If the disk has no room for it; room is claimed at once, for a memory map that runs out of it kills the process.
    """
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    with tempfile.TemporaryFile(prefix="raydkm-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            place = tempfile.gettempdir()
            raise EngineError(
                f"no room for {size / 2**30:.1f} GiB of rows in {place} ({error.strerror}); "
                "set TMPDIR to a larger disk, or give more workers"
            ) from None
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def allocator(cache: str, budget: int) -> Allocate:
    """The place for rows that `cache` names: "host", "disk", or with "auto" host memory up to `budget` bytes."""

    def fitting(shape: tuple[int, int], dtype: DTypeLike) -> NDArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        fits = size <= budget
        where = "in memory" if fits else "memory-mapped on local disk"
        logger.info("%.3g GiB of rows, budget %.3g GiB: held %s", size / 2**30, budget / 2**30, where)
        return on_host(shape, dtype) if fits else on_disk(shape, dtype)

    return {"host": on_host, "disk": on_disk, "auto": fitting}[cache]
