"""The rows with the smallest keys: a bottom-k sketch that any number of threads fill, in any order."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

#: Rows that wait to be sorted in, as a part of those that are kept, and at the least.
_WAITING, _FEW = 0.25, 1000


class Smallest:
    """The `count` smallest different finite keys seen, with one row of each and the number of rows that share it.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int):
        self._count = count
        self._limit = np.inf  # no larger key can be among the smallest any more
        self._parts: list[tuple[NDArray, ...]] = []
        self._size = 0
        self._sorted = 0
        self._lock = threading.Lock()

    @staticmethod
    def nbytes(count: int, row: int) -> int:
        """Bytes, at their peak, of `count` keys and rows of `row` bytes each."""
        return int((2 + _WAITING) * count) * (row + 3 * 8)

    def add(self, keys: NDArray[np.float64], rows: NDArray, weight: NDArray[np.float64] | None) -> None:
        """Look at rows (n, d) with these keys (n,)."""
        which = np.flatnonzero((keys <= self._limit) & np.isfinite(keys))
        if len(which):
            weight = np.ones(len(which)) if weight is None else weight[which]
            part = (keys[which], np.ones(len(which), dtype=np.int64), weight, rows[which])
            with self._lock:
                self._parts.append(part)
                self._size += len(which)
                if self._size > (1 + _WAITING) * self._count + _FEW:
                    self._compact()

    def found(self, below: float = np.inf) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray, NDArray]:
        """Keys, ascending, their numbers of rows, the weight of one row of each and the row; only keys < `below`."""
        with self._lock:
            if not self._parts:
                return np.empty(0), np.empty(0, dtype=np.int64), np.empty(0), np.empty((0, 0))
            if self._size > self._sorted:
                self._compact()
            keys, copies, weight, rows = self._parts[0]
        stop = int(np.searchsorted(keys, below))
        return keys[:stop], copies[:stop], weight[:stop], rows[:stop]

    def _compact(self) -> None:
        keys, copies, weight = (np.concatenate(column) for column in list(zip(*self._parts, strict=True))[:3])
        keys, places, which = np.unique(keys, return_index=True, return_inverse=True)
        copies = np.bincount(which, weights=copies).astype(np.int64)[: self._count]
        keys, places = keys[: self._count], places[: self._count]
        if len(keys) == self._count:
            self._limit = float(keys[-1])
        self._parts = [(keys, copies, weight[places], self._rows_at(places))]
        self._size = self._sorted = len(keys)

    def _rows_at(self, places: NDArray[np.int64]) -> NDArray:
        """Rows by their places among those of all parts, without a copy of these in one."""
        parts = [part[-1] for part in self._parts]
        starts = np.cumsum([0, *(len(part) for part in parts)])
        order = np.argsort(places)
        cuts = np.searchsorted(places[order], starts)
        rows = np.empty((len(places), parts[0].shape[1]), parts[0].dtype)
        for part, start, (low, high) in zip(parts, starts, pairwise(cuts), strict=False):
            into = order[low:high]
            rows[into] = part[places[into] - start]
        return rows
