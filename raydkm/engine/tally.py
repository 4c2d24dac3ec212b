"""What a run adds up on the way: rows, entropy and distances of each cluster, and the rows closest to each prototype.

Parts are added in the order of the ranges, so that the sums are the same whoever made them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydkm.data.rows import take

#: A distance's bucket is what is left of its float32 after this many bits: 5 bits of the fraction.
_DROPPED_BITS = 18
_BUCKETS = 1 << (31 - _DROPPED_BITS)

#: Largest relative error of a quantile.
QUANTILE_ERROR = 2.0**-6

#: Percentages of the rows whose distances are at most a quantile.
QUANTILES = (5, 25, 50, 75, 95)

_PENDING_ROWS = 1_000_000


@dataclass(frozen=True)
class Tally:
    """Rows and entropy by cluster and bucket of distance; tallies add up.

    Parameters
    ----------
    keys : ndarray (m,) of int64
        Ascending: cluster times the number of buckets, plus the bucket.
    rows : ndarray (m,) of int64
    entropy : ndarray (m,) of float64
        Sums, in nats.
    """

    keys: NDArray[np.int64]
    rows: NDArray[np.int64]
    entropy: NDArray[np.float64]

    @classmethod
    def of(cls, table: pa.Table) -> Tally:
        """The tally of rows with columns `cluster`, `distance`, `entropy`."""
        buckets = table["distance"].to_numpy().view(np.uint32) >> _DROPPED_BITS
        keys = table["cluster"].to_numpy().astype(np.int64) * _BUCKETS + buckets
        return cls._grouped(keys, np.ones(len(keys), dtype=np.int64), table["entropy"].to_numpy().astype(np.float64))

    @classmethod
    def _grouped(cls, keys: NDArray, rows: NDArray, entropy: NDArray) -> Tally:
        order = np.argsort(keys, kind="stable")
        keys, rows, entropy = keys[order], rows[order], entropy[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        if not len(starts):
            return cls(keys, rows, entropy)
        return cls(keys[starts], np.add.reduceat(rows, starts), np.add.reduceat(entropy, starts))

    @classmethod
    def sum(cls, parts: Iterable[Tally]) -> Tally:
        """Add up parts, of which few are held at a time."""
        pending = [cls._grouped(*(np.zeros(0, dtype=kind) for kind in (np.int64, np.int64, np.float64)))]
        for part in parts:
            pending.append(part)
            if sum(len(each.keys) for each in pending[1:]) > max(_PENDING_ROWS, len(pending[0].keys)):
                pending = [cls._joined(pending)]
        return cls._joined(pending)

    @classmethod
    def _joined(cls, parts: list[Tally]) -> Tally:
        return cls._grouped(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))

    def table(self) -> pa.Table:
        return pa.table({name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def read(cls, table: pa.Table) -> Tally:
        return cls(*(table[name].to_numpy() for name in _FIELDS))

    def by_cluster(self, clusters: int) -> pa.Table:
        """One row for each cluster: rows, mean entropy and quantiles of the distance (null where it has no rows)."""
        own = self.keys // _BUCKETS
        rows = np.zeros(clusters, dtype=np.int64)
        np.add.at(rows, own, self.rows)
        entropy = np.bincount(own, weights=self.entropy, minlength=clusters)
        empty = rows == 0
        columns = {
            "cluster": pa.array(np.arange(clusters, dtype=np.int32)),
            "rows": pa.array(rows),
            "mean_entropy": pa.array(entropy / np.maximum(rows, 1), mask=empty),
        }
        ends = np.cumsum(self.rows)
        before = np.cumsum(rows) - rows
        for quantile in QUANTILES:
            rank = before + np.maximum(-(-quantile * rows // 100), 1)
            at = np.minimum(np.searchsorted(ends, rank), len(ends) - 1)
            columns[f"distance_q{quantile:02d}"] = pa.array(_middle(self.keys[at] % _BUCKETS), mask=empty)
        return pa.table(columns)

    def overall(self) -> dict[str, float]:
        """Mean entropy and quantiles of the distance of all rows."""
        total = Tally._grouped(self.keys % _BUCKETS, self.rows, self.entropy)
        one = total.by_cluster(1)
        return {name: one[name][0].as_py() for name in one.column_names if name not in ("cluster", "rows")}


_FIELDS = ("keys", "rows", "entropy")


def _middle(buckets: NDArray[np.int64]) -> NDArray[np.float32]:
    """A distance in the middle of each bucket; zero of the one that holds zero."""
    edges = [((buckets + after) << _DROPPED_BITS).astype(np.uint32).view(np.float32) for after in (0, 1)]
    return np.where(buckets == 0, np.float32(0), edges[0] + (edges[1] - edges[0]) / 2).astype(np.float32)


def closest(rows: pa.Table, count: int) -> pa.Table:
    """The `count` rows of each cluster with the smallest distances, which come first; equal ones stay in order."""
    clusters, distance = rows["cluster"].to_numpy(), rows["distance"].to_numpy()
    order = np.lexsort((distance, clusters))
    ranked = clusters[order]
    rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
    return take(rows, order[rank < count])


def closest_of(parts: Iterable[pa.Table], count: int) -> pa.Table:
    """The closest rows of all `parts`, of which few are held at a time."""
    pending: list[pa.Table] = []
    for part in parts:
        pending.append(part)
        if len(pending) > 1 and sum(map(len, pending[1:])) > max(_PENDING_ROWS, len(pending[0])):
            pending = [closest(_together(pending), count)]
    return closest(_together(pending), count)


def _together(parts: list[pa.Table]) -> pa.Table:
    """One table, where a column is nullable if it is in any part."""
    return pa.concat_tables(parts, promote_options="default")
