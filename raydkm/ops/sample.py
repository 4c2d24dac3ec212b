"""The rows with the smallest keys: a bottom-k sketch that is filled batch by batch and merged in any order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class Smallest:
    """The `count` smallest different finite keys seen, with one row of each and the number of rows that share it.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int):
        self._count = count
        self._limit = np.inf  # no larger key can be among the smallest any more
        self._waiting: list[tuple[NDArray, ...]] = []
        self._rows_waiting = 0

    def add(self, keys: NDArray[np.float64], rows: NDArray, weight: NDArray[np.float64] | None) -> None:
        """Look at rows (n, d) with these keys (n,)."""
        which = np.flatnonzero((keys <= self._limit) & np.isfinite(keys))
        if len(which):
            weight = np.ones(len(which)) if weight is None else weight[which]
            self._wait(keys[which], np.ones(len(which), dtype=np.int64), rows[which], weight)

    def merge(self, others: Iterable[Smallest]) -> None:
        """Look at all that others have kept."""
        for other in others:
            for part in other._waiting:
                self._wait(*part)

    def found(self, below: float = np.inf) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray, NDArray]:
        """Keys, ascending, their numbers of rows, one row of each and its weight; only keys < `below`."""
        if not self._waiting:
            return np.empty(0), np.empty(0, dtype=np.int64), np.empty((0, 0)), np.empty(0)
        self._compact()
        keys = self._waiting[0][0]
        stop = int(np.searchsorted(keys, below))
        keys, copies, rows, weight = (part[:stop] for part in self._waiting[0])
        return keys, copies, rows, weight

    def _wait(self, *part: NDArray) -> None:
        self._waiting.append(part)
        self._rows_waiting += len(part[0])
        if self._rows_waiting > 2 * self._count + 1000:
            self._compact()

    def _compact(self) -> None:
        keys, copies, rows, weight = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        keys, places, which = np.unique(keys, return_index=True, return_inverse=True)
        copies = np.bincount(which, weights=copies).astype(np.int64)[: self._count]
        keys, places = keys[: self._count], places[: self._count]
        self._waiting = [(keys, copies, rows[places], weight[places])]
        self._rows_waiting = len(keys)
        if len(keys) == self._count:
            self._limit = float(keys[-1])
