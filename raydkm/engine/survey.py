"""The first two passes over the data: extent, fingerprint and seeding sample; then the moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import torch
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
    sample_rows : Tensor (m, d)
        A weighted sample without replacement of the rows of positive weight, sorted by their keys.
    sample_weight : Tensor (m,) of float64
        Weights with which the sample stands for all rows.
    """

    extent: Extent
    fingerprint: str
    sample_rows: Tensor
    sample_weight: Tensor


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
    rows, weight = _smallest(passes, keys, sample_size)
    if len(rows) == 0:
        raise InputError("all weights are zero: no row counts")
    return Survey(extent, f"{extent.rows}x{dims[0]}:{fingerprint:016x}", rows, weight)


def measure(passes: Passes, extent: Extent, frame: Frame, *, covariance: bool) -> Moments:
    """The moments of all rows in the frame: the second pass."""
    fields = moment_fields(extent, frame, covariance=covariance)
    statistics = passes.sum(fields, moment_statistics(frame, covariance=covariance))
    return moments(statistics, extent, frame, covariance=covariance)


def _smallest(passes: Passes, keys: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """Rows and weights of the sample: the `count` smallest keys over all workers, sorted."""
    source, comm = passes.source, passes.comm
    eligible = keys[np.isfinite(keys)]
    mine = np.partition(eligible, count)[: count + 1] if count < len(eligible) else eligible
    everyone = np.concatenate(comm.all_gather(mine))
    threshold = np.partition(everyone, count)[count] if count < len(everyone) else np.inf
    positions = np.flatnonzero(keys < threshold)
    positions = positions[np.argsort(keys[positions], kind="stable")]
    parts = comm.all_gather((keys[positions], *source.take(torch.from_numpy(positions))))
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return torch.empty(0, source.dim), torch.empty(0, dtype=torch.float64)
    order = torch.from_numpy(np.argsort(np.concatenate([part[0] for part in parts]), kind="stable"))
    weight = sample_weights(torch.cat([part[2] for part in parts])[order].numpy(), threshold)
    return torch.cat([part[1] for part in parts])[order], torch.from_numpy(weight)
