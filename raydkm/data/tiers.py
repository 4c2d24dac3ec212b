"""Where a worker's rows are held: device memory, host memory, local disk, or nowhere, to be read again at each pass.

Rows are held in chunks. Each goes to the fastest tier that has room left for it, so that a worker whose rows exceed
one tier uses it to the full and only the rest goes to the next.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydkm.errors import ConfigError, EngineError

#: Part of the disk that is left to others: Ray stops spilling its own objects when it is fuller than this.
FREE_OF_DISK = 0.05


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows in one place.

    Parameters
    ----------
    rows : Tensor (n, d)
    weight : Tensor (n,) of float64, or None
    file : mmap.mmap, optional
        What the rows are mapped from.
    """

    rows: Tensor
    weight: Tensor | None
    file: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + (0 if self.weight is None else self.weight.nbytes)

    def will_be_used(self) -> None:
        """Start reading what is on disk."""
        if self.file is not None:
            self.file.madvise(mmap.MADV_WILLNEED)

    def was_used(self) -> None:
        """Give back the memory of what is on disk."""
        if self.file is not None:
            self.file.madvise(mmap.MADV_DONTNEED)

    def to(self, device: torch.device) -> Chunk:
        return Chunk(self.rows.to(device), None if self.weight is None else self.weight.to(device))


class Tiers:
    """The room that one worker has for its rows.

    Parameters
    ----------
    cache : {"auto", "device", "host", "disk", "stream"}
        The only tier, or all of them in turn.
    memory : int
        Bytes of rows in host memory, with "auto".
    device : torch.device
    device_memory : int
        Bytes of rows in the memory of a device that is not the host.
    """

    def __init__(self, cache: str, memory: int, device: torch.device, device_memory: int = 0):
        if cache == "device" and device.type == "cpu":
            raise ConfigError("cache device: the fit runs on the CPU, whose memory is the host's; choose host")
        self.cache = cache
        self.device = device
        self.device_memory = device_memory
        self._room = {"device": device_memory, "host": memory}
        self.held: Counter[str] = Counter()

    def place(self, size: int) -> str:
        """Choose, and take, the place of `size` bytes: "device", "host", "disk" or "stream", which is none.

        Raises
        ------
        EngineError
            If the only tier that may be used is full.
        """
        if self.cache == "device" and self.held["device"] + size > self._room["device"]:
            raise EngineError(f"the rows exceed the {_gib(self._room['device'])} of free device memory; use cache auto")
        tier = self.cache if self.cache != "auto" else self._first_with_room(size)
        self.held[tier] += size
        return tier

    def _first_with_room(self, size: int) -> str:
        for tier in ("device", "host"):
            if self.held[tier] + size <= self._room[tier]:
                return tier
        return "disk" if _disk_has(size) else "stream"

    def chunk(self, tier: str, rows: NDArray, weight: NDArray | None, file: mmap.mmap | None) -> Chunk:
        chunk = Chunk(torch.from_numpy(rows), None if weight is None else torch.from_numpy(weight), file)
        return chunk.to(self.device) if tier == "device" else chunk

    def __str__(self) -> str:
        """Where rows went, and why."""
        budget = f"; memory budget {_gib(self._room['host'])}" if self.cache == "auto" else f"; cache {self.cache}"
        if self.cache == "stream":
            return f"rows are read again at each pass{budget}"
        where = {
            "device": "in device memory",
            "host": "in memory",
            "disk": "memory-mapped on local disk",
        }
        parts = [f"{_gib(self.held[tier])} {told}" for tier, told in where.items() if self.held[tier]]
        if self.held["stream"]:
            parts.append("the rest read again at each pass, for want of room on local disk")
        return f"rows: {', '.join(parts) or 'none'}{budget}"


def matrix(tier: str, rows: int, dim: int, dtype: np.dtype) -> tuple[NDArray, mmap.mmap | None]:
    """An uninitialised matrix in host memory or, for the tier "disk", in a memory-mapped file (and this)."""
    if tier != "disk":
        return np.empty((rows, dim), dtype), None
    file = file_on_disk(rows * dim * dtype.itemsize)
    return np.frombuffer(file, dtype, rows * dim).reshape(rows, dim), file


def file_on_disk(size: int) -> mmap.mmap:
    """A nameless file of the temporary directory (TMPDIR), of which even a killed process leaves nothing.

    Raises
    ------
    EngineError
        If the disk has no room for it; room is claimed at once, for a memory map that runs out of it kills the process.
    """
    with tempfile.TemporaryFile(prefix="raydkm-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, size))
            return mmap.mmap(file.fileno(), max(1, size))
        except OSError as error:
            place = tempfile.gettempdir()
            raise EngineError(
                f"no room for {_gib(size)} more rows in {place} ({error.strerror}); set TMPDIR to a larger disk, give "
                "more workers, or use cache stream"
            ) from None


def _disk_has(size: int) -> bool:
    usage = shutil.disk_usage(tempfile.gettempdir())
    return usage.free - size >= FREE_OF_DISK * usage.total


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
