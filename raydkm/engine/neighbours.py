"""Nearest neighbours among the rows of all workers, and averages over them.

Every worker's rows go round in blocks; the others search each block, or take from it what they need, and let it go. So
a worker holds its own rows, one block, and k numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.engine.comm import Comm
from raydkm.errors import InputError
from raydkm.ops.nearest import NearestRows

#: Rows of a block.
BLOCK_ROWS = 2**20

#: Rows that are averaged at a time.
TILE = 4096


@dataclass(frozen=True)
class Graph:
    """The nearest neighbours of a worker's rows.

    Parameters
    ----------
    first : int
        Number of the worker's first row among all workers' rows.
    ids : Tensor (n, k) of int64
        Numbers of the neighbours among all workers' rows, the nearest first, of equal ones that of the lowest number.
    similarities : Tensor (n, k) of float32
        Inner products.
    """

    first: int
    ids: Tensor
    similarities: Tensor


def neighbours(rows: Tensor, comm: Comm, count: int, *, threads: int) -> Graph:
    """The `count` nearest neighbours of each row, but for itself, by inner products; of unit vectors by distance.

    With blocks that are searched exactly (see `NearestRows`) they do not depend on the number of workers, but where
    inner products are equal to float32.

    Parameters
    ----------
    rows : Tensor (n, d) of float32
        This worker's, on the host.
    comm : Comm
    count : int
    threads : int

    Raises
    ------
    InputError
        If there are not so many other rows.
    WorkerLostError
    """
    sizes = comm.all_gather(len(rows))
    if sum(sizes) <= count:
        raise InputError(f"{count} neighbours of each row, but only {sum(sizes)} rows; ask for fewer neighbours")
    first = sum(sizes[: comm.rank])
    own = torch.arange(first, first + len(rows))[:, None]
    ids = torch.full((len(rows), count), torch.iinfo(torch.int64).max)
    similarities = torch.full((len(rows), count), -torch.inf)
    for start, block in _blocks(rows, sizes, comm):
        if not len(rows):
            continue
        products, found = NearestRows(block, threads)(rows, count + 1)
        found = torch.where(found < 0, ids.new_tensor(torch.iinfo(torch.int64).max), found + start)
        products = products.masked_fill((found == own) | (found == torch.iinfo(torch.int64).max), -torch.inf)
        products, found = torch.cat([similarities, products], dim=1), torch.cat([ids, found], dim=1)
        by_id = found.argsort(dim=1, stable=True)
        products, found = products.gather(1, by_id), found.gather(1, by_id)
        best = products.argsort(dim=1, descending=True, stable=True)[:, :count]
        similarities, ids = products.gather(1, best), found.gather(1, best)
    return Graph(first, ids, similarities)


def smoothed(rows: Tensor, graph: Graph, hops: int, comm: Comm, *, unit: bool) -> Tensor:
    """Averages (n, d) of each row and its neighbours, and again of these, `hops` times; scaled to unit length if asked.

    Sums are of float32, in the order of the rows' numbers within blocks.
    """
    sizes = comm.all_gather(len(rows))
    for _ in range(hops):
        total = rows.clone()
        for start, block in _blocks(rows, sizes, comm):
            for part in torch.arange(len(rows)).split(TILE):
                ids = graph.ids[part] - start
                inside = (ids >= 0) & (ids < len(block))
                for column in range(ids.shape[1]):
                    of = torch.nonzero(inside[:, column]).flatten()
                    total[part[of]] += block[ids[of, column]]
        rows = total / (1 + graph.ids.shape[1])
        if unit:
            rows = torch.nn.functional.normalize(rows, dim=1)
    return rows


def _blocks(rows: Tensor, sizes: list[int], comm: Comm) -> Iterator[tuple[int, Tensor]]:
    """All workers' rows, block after block, each with the number of its first row; all workers come to all of them."""
    start = 0
    dims = {dim for dim in comm.all_gather(rows.shape[1] if len(rows) else None) if dim is not None}
    for rank, size in enumerate(sizes):
        for low in range(0, size, BLOCK_ROWS):
            count = min(BLOCK_ROWS, size - low)
            block = rows[low : low + count].contiguous() if rank == comm.rank else torch.empty(count, *dims)
            comm.broadcast(block, rank)
            yield start + low, block
        start += size
