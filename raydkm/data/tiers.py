"""Where a worker's rows are held: device memory, host memory, local disk, or nowhere, to be read again at each pass.

Rows are held in chunks. Each goes to the fastest tier that has room left for it, so that a worker whose rows exceed
one tier uses it to the full and only the rest goes to the next.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydkm.data.columns import Block
from raydkm.errors import ConfigError, EngineError

#: Part of the disk that is left to others: Ray stops spilling its own objects when it is fuller than this.
FREE_OF_DISK = 0.05

_FASTEST_FIRST = ("device", "host", "disk")


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows in one place.

    Parameters
    ----------
    first : int
        Position of the first row among this worker's.
    rows : Tensor (n, d)
    weight : Tensor (n,) of float64, or None
    file : mmap.mmap, optional
        What the rows are mapped from.
    """

    first: int
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
        return Chunk(self.first, self.rows.to(device), None if self.weight is None else self.weight.to(device))


class Tiers:
    """The room that one worker has for its rows, for any number of threads that bring them.

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
        self.memory = memory
        self.device_memory = device_memory
        self._room = {"device": device_memory, "host": memory}
        self.held: Counter[str] = Counter()
        self._lock = threading.Lock()

    def room(self, rows: int, dim: int, dtype: np.dtype, *, weighted: bool, again: bool) -> Room | None:
        """Make room for a chunk in the fastest tier that has it, or None if the rows are to be read `again`.

        Raises
        ------
        EngineError
            If there is none, in the only tier that may be used, or for rows that cannot be read again.
        """
        size = size_of(rows, dim, dtype, weighted=weighted)
        with self._lock:
            tier = next((tier for tier in _FASTEST_FIRST if self.takes(tier, size)), "stream")
            try:
                if tier == "stream":
                    raise EngineError(f"no room for {gib(size)} more ({self}); {self._way_out()}")
                room = Room(tier, rows, dim, dtype, weighted)
            except EngineError:
                if self.cache != "auto" or not again:
                    raise
                tier, room = "stream", None
            self.held[tier] += size
            return room

    def _way_out(self) -> str:
        return "use cache auto" if self.cache == "device" else "set TMPDIR to a larger disk, or use cache stream"

    def takes(self, tier: str, size: int) -> bool:
        """Whether `size` more bytes may go to a tier, as far as one can know before trying."""
        if self.cache == "auto" and tier == "disk":
            return size <= disk_left()
        if self.cache == "auto" or self.cache == tier == "device":
            return self.held[tier] + size <= self._room[tier]
        return self.cache == tier

    def chunk(self, room: Room, first: int) -> Chunk:
        """What a room that has been filled holds: rows from number `first` on."""
        rows, weight = room.filled()
        chunk = Chunk(first, rows, weight, room.file)
        chunk.was_used()
        return chunk.to(self.device) if room.tier == "device" else chunk

    def __str__(self) -> str:
        """Where rows went, and why."""
        budget = f"; memory budget {gib(self._room['host'])}" if self.cache == "auto" else f"; cache {self.cache}"
        if self.cache == "stream":
            return f"rows are read again at each pass{budget}"
        where = {
            "device": "in device memory",
            "host": "in memory",
            "disk": "memory-mapped on local disk",
        }
        parts = [f"{gib(self.held[tier])} {told}" for tier, told in where.items() if self.held[tier]]
        if self.held["stream"]:
            parts.append("the rest read again at each pass, for want of room on local disk")
        return f"rows: {', '.join(parts) or 'none'}{budget}"


class Room:
    """A place for consecutive rows that is being filled: host memory, or with the tier "disk" a memory-mapped file."""

    def __init__(self, tier: str, rows: int, dim: int, dtype: np.dtype, weighted: bool):
        self.tier = tier
        self.file = file_on_disk(rows * dim * dtype.itemsize) if tier == "disk" else None
        if self.file is None:
            self._rows = np.empty((rows, dim), dtype)
        else:
            self._rows = np.frombuffer(self.file, dtype, rows * dim).reshape(rows, dim)
        self._weight = np.empty(rows) if weighted else None
        self._filled = 0

    def add(self, block: Block, start: int) -> int:
        """Copy what fits of the block's rows from `start` on; return how many."""
        into = slice(self._filled, min(len(self._rows), self._filled + len(block.rows) - start))
        count = into.stop - into.start
        self._rows[into] = block.rows[start : start + count]
        if self._weight is not None:
            self._weight[into] = block.weight[start : start + count]  # type: ignore[index]
        self._filled += count
        return count

    def __len__(self) -> int:
        return self._filled

    @property
    def full(self) -> bool:
        return self._filled == len(self._rows)

    def filled(self) -> tuple[Tensor, Tensor | None]:
        """The rows and their weights so far."""
        weight = None if self._weight is None else torch.from_numpy(self._weight[: self._filled])
        return torch.from_numpy(self._rows[: self._filled]), weight


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
                f"no room for {gib(size)} more rows in {place} ({error.strerror}); set TMPDIR to a larger disk, give "
                "more workers, or use cache stream"
            ) from None


def size_of(rows: int, dim: int, dtype: np.dtype, *, weighted: bool) -> int:
    """Bytes of rows and their weights."""
    return rows * (dim * dtype.itemsize + 8 * weighted)


def disk_left() -> int:
    """Bytes that rows may still take of the disk of the temporary directory."""
    usage = shutil.disk_usage(tempfile.gettempdir())
    return usage.free - int(FREE_OF_DISK * usage.total)


def gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
