"""One worker's rows, served as canonical batches.

An algorithm asks a source for nothing but its batches; it does not know where they live.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from raydkm.data.columns import Block, check_rows, check_weight
from raydkm.data.parquet import READ_ROWS, ParquetTable
from raydkm.data.prefetch import prefetched
from raydkm.data.tiers import Chunk, Room, Tiers
from raydkm.errors import EngineError, InputError
from raydkm.ops.batch import BATCH_ROWS, Batch

#: Bytes of a chunk of rows, as near as whole canonical batches come to it.
CHUNK_BYTES = 2**26

#: Canonical batches that are put together at a time where rows are read again at each pass.
STREAM_BATCHES = 4

#: Blocks or pieces that are read ahead.
READ_AHEAD = 4

#: Bytes that the readers of a worker may take together, if they are more than one.
READING_BYTES = 2**30


#: Canonical batches that are mapped before the first of them is needed.
MAPPED_AHEAD = 16

#: Rows from which on it pays to have another thread read.
ROWS_A_READER = 4 * READ_ROWS


@dataclass(frozen=True)
class Rest:
    """Rows that are read again at each pass, from position `first` among this worker's rows on."""

    first: int
    read: Callable[[], Generator[Block, None, None]]


class RowSource:
    """Rows that are held, in memory or memory-mapped, and such as are read again at each pass.

    Parameters
    ----------
    chunks : sequence of Chunk
        All that rows follow hold whole canonical batches.
    first : int
        Number of this worker's first row among those of all workers, a multiple of `BATCH_ROWS`.
    total : int, optional
        Rows of all workers together; those held if not given.
    rests : sequence of Rest
        Are read at the same time, each by a thread.
    repeats : bool
        Whether rows come in the same order in each pass.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        first: int = 0,
        total: int | None = None,
        rests: Sequence[Rest] = (),
        *,
        repeats: bool = True,
    ):
        self._chunks = chunks
        self.repeats = repeats
        self._rests = rests
        self.first = first
        self.held = sum(len(chunk) for chunk in chunks)
        self.total = self.held if total is None else total

    @classmethod
    def of(cls, rows: Tensor, weight: Tensor | None = None) -> RowSource:
        """A source of rows (n, d) and weights (n,) of float64 in memory, host or device."""
        return cls([Chunk(0, rows, weight)])

    @classmethod
    def from_array(cls, x: NDArray | Tensor, weight: ArrayLike | None = None, *, unit: bool = False) -> RowSource:
        """Check an array (n, d) of numbers, and weights (n,), and hold them without a copy where possible.

        Raises
        ------
        InputError
            Naming the row, as `raydkm.data.columns.check_rows` does.
        """
        array = np.asarray(numpy_of(x))
        if array.ndim != 2:
            raise InputError(f"expected a matrix of rows × features, got {array.ndim} dimension(s); reshape it first")
        if array.dtype.kind == "b":
            array = array.astype(np.uint8)
        if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
            array = array.astype(np.float64)
        if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
            raise InputError(f"dtype {array.dtype}: features are floats or integers of up to 64 bits; convert them")
        if 0 in array.shape:
            raise InputError(f"an array of shape {array.shape} has no {'rows' if len(array) == 0 else 'features'}")
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        check_rows(array, "row {}".format, unit=unit)
        if weight is None:
            return cls.of(as_tensor(array))
        weight = np.asarray(numpy_of(weight), dtype=np.float64)
        if weight.shape != array.shape[:1]:
            raise InputError(f"{len(array)} rows but weights of shape {weight.shape}")
        check_weight(weight, "row {}".format)
        return cls.of(as_tensor(array), torch.from_numpy(weight))

    @classmethod
    def of_table(
        cls, table: ParquetTable, tiers: Tiers, start: int = 0, stop: int | None = None, readers: int = 1
    ) -> RowSource:
        """Rows [start, stop) of Parquet files, read by up to `readers` threads, as many as memory is spared for."""
        stop = table.rows if stop is None else stop
        most = min(readers, 1 + (stop - start) // ROWS_A_READER, max(1, READING_BYTES // table.bytes_a_reader))
        ranges = list(pairwise(table.cuts(start, stop, most)))
        ahead = max(1, READ_AHEAD // len(ranges)) if ranges else 1
        failed = threading.Event()

        def hold(low: int, high: int) -> tuple[list[Chunk], Rest | None]:
            def read(after: int) -> Generator[Block, None, None]:
                for block in table.read(low + after, high):
                    if failed.is_set():  # elsewhere, where the error is raised
                        return
                    yield block

            try:
                return hold_rows(read, tiers, rows=high - low, first=low - start, ahead=ahead)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(max(1, len(ranges)), "raydkm-ingest") as pool:
            try:
                held = list(pool.map(lambda part: hold(*part), ranges))
            except BaseException:  # an interrupt comes here
                failed.set()
                raise
        chunks = [chunk for some, _ in held for chunk in some]
        return cls(chunks, start, table.rows, [rest for _, rest in held if rest is not None])

    @classmethod
    def of_stream(
        cls, read: Callable[[], Generator[Block, None, None]], tiers: Tiers, total: int | None = None
    ) -> RowSource:
        """Rows that come in another order, if they are read again."""
        chunks, rest = hold_rows(lambda _: read(), tiers, again=False)
        return cls(chunks, 0, total, [rest] if rest is not None else [], repeats=rest is None)

    def batches(self, at_once: int = 1, sharers: int = 0) -> Generator[Batch, None, None]:
        """The canonical batches of this worker; those that are held in order, the others as they are read.

        Up to `at_once` of them that follow each other may come as one, fewer of the last of those that are held, so
        that the `sharers` of them are done at about the same time.
        """
        left = self.held
        for number, chunk in enumerate(self._chunks):
            for following in self._chunks[number + 1 : number + 2]:
                following.will_be_used()
            left -= len(chunk)
            yield from _cut(chunk, at_once, sharers, left)
            chunk.was_used()
        pieces = (_pieces(rest) for rest in self._rests)
        with prefetched(*pieces, ahead=max(1, READ_AHEAD // max(1, len(self._rests)))) as readers:
            waiting = deque(readers)
            while waiting:
                piece = next(waiting[0], None)
                if piece is None:
                    waiting.popleft()
                else:
                    yield from _cut(piece, at_once)
                    waiting.rotate(-1)

    def mapped(self, function: Callable[[Tensor], Tensor], tiers: Tiers, map: Callable = map) -> RowSource:
        """A source of function(rows) in place of rows, held where `tiers` has room for them.

        Rows that are read again at each pass, and those that find no room, are mapped again at each pass, by the thread
        that reads them.

        Parameters
        ----------
        function : callable
            Rows (n, d) of a canonical batch, where they are held → (n, D) of float32.
        tiers : Tiers
        map : callable
            Like the built-in, perhaps in several threads, none of which may be in a pass at the time.
        """
        chunks: list[Chunk] = []
        rests: list[Rest] = []
        for run in _runs(self._chunks):
            rows, first = sum(len(chunk) for chunk in run), run[0].first
            held, rest = hold_rows(partial(_mapped_run, run, function, map=map), tiers, rows=rows, first=first)
            chunks += held
            if rest is not None:  # read in a pass, for which the threads of `map` wait
                rests.append(Rest(rest.first, partial(_mapped_run, run, function, rest.first - first)))
        rests += [Rest(rest.first, partial(_mapped_rest, rest, function)) for rest in self._rests]
        return RowSource(chunks, self.first, self.total, rests, repeats=self.repeats)

    def within(self, tiers: Tiers) -> RowSource:
        """The same rows on the device, if there is one and it has the room; for rows that are in memory already."""
        fits = tiers.takes("device", sum(chunk.nbytes for chunk in self._chunks))
        return self.to(tiers.device) if fits else self

    def to(self, device: torch.device) -> RowSource:
        chunks = [chunk.to(device) for chunk in self._chunks]
        return RowSource(chunks, self.first, self.total, self._rests, repeats=self.repeats)

    def take(self, positions: Tensor) -> Tensor:
        """Rows (m, d) at positions (m,) among this worker's, all of which must be held, on the host if any of them are.

        Raises
        ------
        EngineError
            If some are read again at each pass.
        """
        self.check_held()
        if len(self._chunks) == 1:
            rows = self._chunks[0].rows
            return rows[positions.to(rows.device)]
        of = np.searchsorted([chunk.first for chunk in self._chunks], positions.numpy(), side="right") - 1
        taken = self.everything(slice(0, 0)).new_empty(len(positions), self._chunks[0].rows.shape[1])
        for number in np.unique(of):
            chunk, here = self._chunks[number], torch.from_numpy(np.flatnonzero(of == number))
            taken[here] = chunk.rows[(positions[here] - chunk.first).to(chunk.rows.device)].to(taken.device)
        return taken

    def everything(self, part: slice = slice(None)) -> Tensor:
        """All rows (n, d) of this worker, or a part of each chunk; raises as `take` does."""
        self.check_held()
        parts = [chunk.rows[part] for chunk in self._chunks]
        return parts[0] if len(parts) == 1 else torch.cat([rows.cpu() for rows in parts])

    def with_rows(self, rows: Tensor) -> RowSource:
        """Other rows (n, D) in the place of this worker's, with their weights; raises as `take` does."""
        self.check_held()
        weights = [chunk.weight for chunk in self._chunks if chunk.weight is not None]
        weight = torch.cat([each.to(rows.device) for each in weights]) if weights else None
        return RowSource([Chunk(0, rows, weight)], self.first, self.total, repeats=self.repeats)

    def check_held(self) -> None:
        """Raise `EngineError` if there are no rows, or some are read again at each pass."""
        if self._rests or not self._chunks:
            if self._rests:
                reason = "cannot hold them: give memory, disk (TMPDIR) or more workers"
            else:
                reason = f"has none: {self.total} are for at most {-(-self.total // BATCH_ROWS)} workers"
            raise EngineError(f"rows are to be taken in any order, and a worker {reason}")


def hold_rows(
    read: Callable[[int], Generator[Block, None, None]],
    tiers: Tiers,
    *,
    rows: int | None = None,
    first: int = 0,
    again: bool = True,
    ahead: int = READ_AHEAD,
) -> tuple[list[Chunk], Rest | None]:
    """Read rows once and keep them, as far as there is room.

    Parameters
    ----------
    read : callable
        ``read(n)`` starts reading after the first n rows.
    tiers : Tiers
        With the tier "stream" nothing is read yet.
    rows : int, optional
        How many rows there are, if that is known beforehand.
    first : int
        Position of the first of them among this worker's rows.
    again : bool
        Whether rows come in the same order when they are read again.
    ahead : int
        Blocks that are read before they are asked for.

    Raises
    ------
    EngineError
        If there is no room, and no reading again.
    """
    if tiers.cache == "stream":
        return [], Rest(first, lambda: read(0))
    left, held, full = rows, 0, False

    def room(dim: int, dtype: np.dtype, weighted: bool) -> Room | None:
        nonlocal left, full
        size = max(1, CHUNK_BYTES // (BATCH_ROWS * dim * dtype.itemsize)) * BATCH_ROWS
        size = size if left is None else min(size, left)
        left = None if left is None else left - size
        made = tiers.room(size, dim, dtype, weighted=weighted, again=again)
        full = made is None
        return made

    chunks = []
    with prefetched(read(0), ahead=ahead) as [blocks]:
        for filled in packed(blocks, room):
            chunks.append(tiers.chunk(filled, first + held))
            held += len(chunks[-1])
    return chunks, Rest(first + held, lambda: read(held)) if full else None


def _pieces(rest: Rest) -> Generator[Chunk, None, None]:
    """A few canonical batches at a time."""

    def room(dim: int, dtype: np.dtype, weighted: bool) -> Room:
        return Room("host", STREAM_BATCHES * BATCH_ROWS, dim, dtype, weighted)

    first = rest.first
    for piece in packed(rest.read(), room):
        yield Chunk(first, *piece.filled())
        first += len(piece)


def packed(blocks: Iterable[Block], make: Callable[[int, np.dtype, bool], Room | None]) -> Iterator[Room]:
    """Fill rooms, made for (dim, dtype, whether weighted), with blocks of any sizes, until one cannot be made.

    Raises
    ------
    InputError
        If the blocks differ in dimension or dtype.
    """
    room: Room | None = None
    kind: tuple[int, np.dtype] | None = None
    for block in blocks:
        now = (block.rows.shape[1], block.rows.dtype)
        kind = kind or now
        if now[0] != kind[0]:
            raise InputError(f"vectors of {kind[0]} and of {now[0]} dimensions in one data set")
        if now[1] != kind[1]:
            raise InputError(f"vectors of {kind[1]} and of {now[1]} in one data set; cast the column")
        start = 0
        while start < len(block.rows):
            room = room or make(*now, block.weight is not None)
            if room is None:
                return
            start += room.add(block, start)
            if room.full:
                yield room
                room = None
    if room is not None:
        yield room


def _runs(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Chunks, in runs of which each follows the one before."""
    runs: list[list[Chunk]] = []
    for chunk in chunks:
        if runs and runs[-1][-1].first + len(runs[-1][-1]) == chunk.first:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    return runs


def _mapped_run(
    run: list[Chunk], function: Callable[[Tensor], Tensor], after: int, map: Callable = map
) -> Generator[Block, None, None]:
    """The mapped rows of consecutive chunks, but for the first `after`, which are whole canonical batches."""
    for chunk in run:
        done = max(0, run[0].first + after - chunk.first)
        batches = list(_cut(chunk))[done // BATCH_ROWS :]
        for start in range(0, len(batches), MAPPED_AHEAD):
            some = batches[start : start + MAPPED_AHEAD]
            for batch, rows in zip(some, map(function, [batch.rows for batch in some]), strict=True):
                yield _block(rows, batch.weight)
        chunk.was_used()


def _mapped_rest(rest: Rest, function: Callable[[Tensor], Tensor]) -> Generator[Block, None, None]:
    """The mapped rows of a rest, by canonical batches, for how it is cut in blocks may depend on where it begins."""
    for piece in _pieces(rest):
        for batch in _cut(piece):
            yield _block(function(batch.rows), batch.weight)


def _block(rows: Tensor, weight: Tensor | None) -> Block:
    return Block(rows.cpu().numpy(), None if weight is None else weight.cpu().numpy())


def _cut(chunk: Chunk, at_once: int = 1, sharers: int = 0, after: int = 0) -> Iterator[Batch]:
    """Its batches, of which each sharer takes a part of what is left of them and of the rows that come `after`."""
    start = 0
    while start < len(chunk):
        share = (len(chunk) - start + after) // ((sharers + 1) * BATCH_ROWS)
        where = slice(start, start + max(1, min(at_once, share)) * BATCH_ROWS)
        yield Batch(chunk.first + start, chunk.rows[where], None if chunk.weight is None else chunk.weight[where])
        start = where.stop


def numpy_of(x: Any) -> Any:
    """The NumPy array of a tensor, which holds bfloat16 and the like as float32; anything else as it is.

    Raises
    ------
    InputError
        If values are masked, or a tensor has none that NumPy could hold.
    """
    if np.ma.is_masked(x):
        raise InputError(
            "a masked array: fill its masked values (x.filled(0)) or drop their rows (np.ma.compress_rows(x))"
        )
    if not isinstance(x, Tensor):
        return x
    if x.layout != torch.strided or x.is_quantized or x.is_meta:
        kind = "quantised" if x.is_quantized else "meta" if x.is_meta else "sparse"
        raise InputError(f"a {kind} tensor; give a dense one of numbers")
    if x.is_floating_point() and x.dtype not in (torch.float16, torch.float32, torch.float64):
        x = x.float()
    return x.detach().cpu().resolve_conj().resolve_neg().numpy()


def as_tensor(array: NDArray) -> Tensor:
    """Share the array's memory, of which nothing is written here, also where it may only be read (as of a file)."""
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Shared(np.ascontiguousarray(array))))


class _Shared:
    """An array's memory as NumPy describes it, but for that it may only be read, of which torch would warn."""

    def __init__(self, array: NDArray):
        self._array = array  # keeps the memory
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}
