"""The first two passes over the data: extent, fingerprint and seeding sample; then the moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import numpy as np
import torch
from torch import Tensor

from raydkm.data.source import RowSource
from raydkm.data.tiers import Chunk
from raydkm.engine.comm import Comm, gathered
from raydkm.engine.passes import Passes, check_rows_seen
from raydkm.errors import InputError
from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.frame import Frame
from raydkm.ops.keys import content_hashes, draw_keys, sample_weights
from raydkm.ops.moments import Extent, Moments, moment_fields, moment_statistics, moments
from raydkm.ops.sample import Smallest
from raydkm.ops.temperature import collapse_temperature, collapse_temperature_of_rows


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
        A weighted sample, without replacement, of the rows of positive weight, sorted by their keys; where it is all
        of them, the different rows, sorted by their hashes.
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

    smallest = Smallest(sample_size + 1)

    def look(batches: Iterator[Batch]) -> _Look:
        seen = _Look()
        for batch in batches:
            frame = Frame.identity(metric, batch.rows.shape[1])
            seen.extent = Extent.of(batch, frame) if seen.extent is None else seen.extent | Extent.of(batch, frame)
            rows = batch.rows.cpu().numpy()
            weight = None if batch.weight is None else batch.weight.cpu().numpy()
            hashes = content_hashes(rows, weight)
            keys = draw_keys(hashes, weight, seed, (source.first + batch.first) // BATCH_ROWS)
            smallest.add(keys, rows, weight)
            seen.dtypes.add(str(rows.dtype))
            seen.counted += int(np.isfinite(keys).sum())
            seen.fingerprint += int(hashes.sum(dtype=np.uint64))
        return seen

    looks = [seen for part in gathered(comm, lambda: passes.each(look)) for seen in part]
    extents = [seen.extent for seen in looks if seen.extent is not None]
    dims = sorted({len(extent.low) for extent in extents})
    if len(dims) > 1:
        raise InputError(f"vectors of {dims[0]} and of {dims[1]} dimensions in one data set")
    dtypes = sorted(set().union(*(seen.dtypes for seen in looks)))
    if len(dtypes) > 1:
        raise InputError(f"vectors of {dtypes[0]} and of {dtypes[1]} in one data set; cast the column")
    extent = reduce(or_, extents, Extent.empty(dims[0] if dims else 0))
    check_rows_seen(extent.rows, source.total)
    counted = sum(seen.counted for seen in looks)
    if counted == 0:
        raise InputError("all weights are zero: no row counts")
    fingerprint = sum(seen.fingerprint for seen in looks) % 2**64
    rows, weight, complete = _draw(comm, smallest, sample_size)
    return Survey(extent, f"{extent.rows}x{dims[0]}:{fingerprint:016x}", counted, rows, weight, complete)


@dataclass
class _Look:
    """What one thread has seen."""

    extent: Extent | None = None
    counted: int = 0
    fingerprint: int = 0
    dtypes: set[str] = field(default_factory=set)


def measure(passes: Passes, extent: Extent, frame: Frame, *, covariance: bool, fine: bool = False) -> Moments:
    """The moments of all rows in the frame: the second pass."""
    fields = moment_fields(extent, frame, covariance=covariance)
    statistics = passes.sum(fields, moment_statistics(frame, extent.max_weight, covariance=covariance))
    return moments(statistics, extent, frame, covariance=covariance, fine=fine)


def measure_spread(
    passes: Passes, look: Survey, extent: Extent, frame: Frame, *, covariance: bool
) -> tuple[Moments, float]:
    """The moments of all rows, with their covariance if it is asked for, and the collapse temperature T_c.

    Of fewer rows than dimensions T_c is computed without a covariance.
    """
    fine = extent.needs_fine(frame, look.sample_rows)
    few = look.sample_is_all and len(look.sample_rows) < look.sample_rows.shape[1] and not covariance
    facts = measure(passes, extent, frame, covariance=not few, fine=fine)
    if facts.covariance is not None:
        return facts, collapse_temperature(facts.covariance)
    z = frame.tile(look.sample_rows).double().cpu()
    return facts, collapse_temperature_of_rows(z, look.sample_weight, facts.mean.cpu())


def condensed(passes: Passes, look: Survey, metric: str) -> tuple[Passes, Extent]:
    """Passes over the different rows, each with the weight of all its copies, where the sample holds them all.

    A whole weight then is the same as a repetition, and neither the order of the rows nor how they lie in files
    changes a bit. Where the sample is a part of the rows, these are the passes given.
    """
    if not look.sample_is_all:
        return passes, look.extent
    rows, comm = len(look.sample_rows), passes.comm
    weight = None if bool((look.sample_weight == 1).all()) else look.sample_weight
    everything = RowSource.of(look.sample_rows, weight)
    frame = Frame.identity(metric, look.sample_rows.shape[1])
    extent = reduce(or_, (Extent.of(batch, frame) for batch in everything.batches()))
    batches = -(-rows // BATCH_ROWS)
    start, stop = (batches * rank // comm.world_size * BATCH_ROWS for rank in (comm.rank, comm.rank + 1))
    mine = Chunk(0, look.sample_rows[start:stop], None if weight is None else weight[start:stop])
    source = RowSource([mine], start, rows).to(passes.device)
    return Passes(source, comm, passes.device, passes.threads, passes.map), extent


def _draw(comm: Comm, smallest: Smallest, count: int) -> tuple[Tensor, Tensor, bool]:
    """Rows, weights and completeness of the sample: the `count` smallest different keys over all workers, sorted.

    Rows that share a key are identical; one of them stands for all, with their number as a factor of its weight. Where
    the sample is complete, so does one for those identical rows that have other weights, and so other keys.
    """
    everyone = np.unique(np.concatenate(comm.all_gather(smallest.found()[0])))
    threshold = everyone[count] if count < len(everyone) else np.inf
    parts = [part for part in comm.all_gather(smallest.found(threshold)) if len(part[0])]
    keys, copies, weight, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    _, places, which = np.unique(keys, return_index=True, return_inverse=True)
    copies = np.bincount(which, weights=copies)
    weight, rows = copies * sample_weights(weight[places], threshold), rows[places]
    if complete := bool(np.isinf(threshold)):
        _, places, which = np.unique(content_hashes(rows, None), return_index=True, return_inverse=True)
        weight, rows = np.bincount(which, weights=weight), rows[places]
    return torch.from_numpy(rows), torch.from_numpy(weight), complete
