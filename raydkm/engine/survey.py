"""The first two passes over the data: extent, fingerprint and seeding sample; then the moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydkm.engine.passes import Passes
from raydkm.errors import InputError
from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.frame import Frame
from raydkm.ops.keys import content_hashes, draw_keys, sample_weights
from raydkm.ops.moments import Extent, Moments, moment_fields, moment_statistics, moments


@dataclass(frozen=True)
class Survey:
    """What is known after one look.

    Parameters
    ----------
    extent : Extent
        Of the rows of all workers.
    fingerprint : str
        Of the rows' contents and weights, whatever their order, files or distribution.
    counted : int
        Rows of positive weight.
    sample_rows : Tensor (m, d)
        A weighted sample, without replacement, of the rows of positive weight, sorted by their keys.
    sample_weight : Tensor (m,) of float64
        Weights with which the sample stands for all rows.
    sample_is_all : bool
        Whether every row (of positive weight) is in the sample, or is identical to one that is.
    """

    extent: Extent
    fingerprint: str
    counted: int
    sample_rows: Tensor
    sample_weight: Tensor
    sample_is_all: bool


def survey(passes: Passes, metric: str, sample_size: int, seed: int) -> Survey:
    source, comm = passes.source, passes.comm
    dims = sorted({dim for dim, rows in comm.all_gather((source.dim, source.rows)) if rows})
    if len(dims) > 1:
        raise InputError(f"vectors of {dims[0]} and of {dims[1]} dimensions in one data set")
    frame = Frame.identity(metric, dims[0])
    keys = np.empty(source.rows)

    def look(batches: Iterator[Batch]) -> tuple[Extent, int]:
        extent, fingerprint = Extent.empty(dims[0]), 0
        for batch in batches:
            extent |= Extent.of(batch, frame)
            weight = None if batch.weight is None else batch.weight.cpu().numpy()
            hashes = content_hashes(batch.rows.cpu().numpy(), weight)
            number = (source.first + batch.first) // BATCH_ROWS
            keys[batch.first : batch.first + len(batch)] = draw_keys(hashes, weight, seed, number)
            fingerprint += int(hashes.sum(dtype=np.uint64))
        return extent, fingerprint

    looks = [look for part in comm.all_gather(passes.each(look)) for look in part]
    extent = reduce(or_, (extent for extent, _ in looks))
    fingerprint = sum(fingerprint for _, fingerprint in looks) % 2**64
    counted = sum(comm.all_gather(int(np.isfinite(keys).sum())))
    if counted == 0:
        raise InputError("all weights are zero: no row counts")
    rows, weight, complete = _draw(passes, keys, sample_size)
    return Survey(extent, f"{extent.rows}x{dims[0]}:{fingerprint:016x}", counted, rows, weight, complete)


def measure(passes: Passes, extent: Extent, frame: Frame, *, covariance: bool) -> Moments:
    """The moments of all rows in the frame: the second pass."""
    fields = moment_fields(extent, frame, covariance=covariance)
    statistics = passes.sum(fields, moment_statistics(frame, covariance=covariance))
    return moments(statistics, extent, frame, covariance=covariance)


def _draw(passes: Passes, keys: NDArray[np.float64], count: int) -> tuple[Tensor, Tensor, bool]:
    """Rows, weights and completeness of the sample: the `count` smallest different keys over all workers, sorted.

    Rows that share a key are identical; one of them stands for all, with their number as a factor of its weight.
    """
    source, comm = passes.source, passes.comm
    everyone = np.unique(np.concatenate(comm.all_gather(_smallest(keys, count + 1))))
    threshold = everyone[count] if count < len(everyone) else np.inf
    positions = np.flatnonzero(keys < threshold)
    mine, places, copies = np.unique(keys[positions], return_index=True, return_counts=True)
    parts = comm.all_gather((mine, copies, *source.take(torch.from_numpy(positions[places]))))
    parts = [part for part in parts if len(part[0])]
    found = np.concatenate([part[0] for part in parts])
    _, places, which = np.unique(found, return_index=True, return_inverse=True)
    copies = np.bincount(which, weights=np.concatenate([part[1] for part in parts]))
    weight = copies * sample_weights(torch.cat([part[3] for part in parts]).numpy()[places], threshold)
    rows = torch.cat([part[2] for part in parts])[torch.from_numpy(places)]
    return rows, torch.from_numpy(weight), bool(np.isinf(threshold))


def _smallest(keys: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The `count` smallest different finite keys, or all there are, sorted."""
    keys = keys[np.isfinite(keys)]
    looked_at = count
    while looked_at < len(keys):
        found = np.unique(np.partition(keys, looked_at)[:looked_at])
        if len(found) == count:
            return found
        looked_at *= 2
    return np.unique(keys)[:count]
