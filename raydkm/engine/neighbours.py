"""The graph of nearest neighbours among the rows of all workers, and averages along it.

Every worker's rows go round in blocks; the others search each block, or take from it what they need, and let it go. So
a worker holds its own rows, one block, and the edges of its own rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.engine.comm import Comm
from raydkm.errors import InputError
from raydkm.ops.nearest import NearestRows

#: Rows of a block.
BLOCK_ROWS = 2**20


@dataclass(frozen=True)
class Graph:
    """The nearest neighbours of a worker's rows.

    Parameters
    ----------
    first : int
        Number of the worker's first row among all workers' rows.
    ids : Tensor (n, k) of int64
        Numbers of the neighbours among all workers' rows, the nearest first, of equal ones that of the lowest number.
    squares : Tensor (n, k) of float32
        Their squared distances.
    """

    first: int
    ids: Tensor
    squares: Tensor


def neighbours(rows: Tensor, comm: Comm, count: int, *, threads: int) -> Graph:
    """The `count` nearest neighbours of each row, but for itself.

    With blocks that are searched exactly (see `NearestRows`) they do not depend on the number of workers, but where
    distances are equal to float32.

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
    first, nowhere = sum(sizes[: comm.rank]), torch.iinfo(torch.int64).max
    own = torch.arange(first, first + len(rows))[:, None]
    ids = torch.full((len(rows), count), nowhere)
    squares = torch.full((len(rows), count), torch.inf)
    for start, block in _blocks(rows, sizes, comm):
        if not len(rows):
            continue
        away, found = NearestRows(block, threads)(rows, count + 1)
        found = torch.where(found < 0, nowhere, found + start)
        away = away.masked_fill((found == own) | (found == nowhere), torch.inf)
        away, found = torch.cat([squares, away], dim=1), torch.cat([ids, found], dim=1)
        by_id = found.argsort(dim=1, stable=True)
        away, found = away.gather(1, by_id), found.gather(1, by_id)
        best = away.argsort(dim=1, stable=True)[:, :count]
        squares, ids = away.gather(1, best), found.gather(1, best)
    return Graph(first, ids, squares)


def smoothed(rows: Tensor, graph: Graph, hops: int, comm: Comm) -> Tensor:
    """Averages (n, d) over the neighbours of each row, and again of these, `hops` times.

    The graph is made symmetric: a row's neighbours are its nearest ones and those whose nearest it is, twice where it
    is both. So it is a random walk whose steps from a row to another and back are as likely (Zhou et al. 2003), which
    keeps rows in the middle of many from drawing the others.
    """
    sizes = comm.all_gather(len(rows))
    edges = [_edges(graph, start, ids) for start, ids in _blocks(graph.ids, sizes, comm)]
    degrees = sum((matrix.sum(1, keepdim=True).to_dense() for matrix in edges), torch.zeros(len(rows), 1))
    for _ in range(hops):
        total = torch.zeros_like(rows)
        for matrix, (_, block) in zip(edges, _blocks(rows, sizes, comm), strict=True):
            total += matrix @ block
        rows = total / degrees
    return rows


def agreement(labels: Tensor, graph: Graph, comm: Comm) -> Tensor:
    """For each row the share (n,) of its nearest neighbours that have its label; labels (n,) of int64."""
    same = torch.zeros(len(labels))
    for start, block in _blocks(labels[:, None], comm.all_gather(len(labels)), comm):
        ids = graph.ids - start
        inside = (ids >= 0) & (ids < len(block))
        of = block[ids.clamp(0, len(block) - 1), 0]
        same += (inside & (of == labels[:, None])).sum(1)
    return same / graph.ids.shape[1]


def _edges(graph: Graph, start: int, ids: Tensor) -> Tensor:
    """Edges between this worker's rows and those from number `start` on, whose neighbours are `ids`: (n, m), sparse."""
    rows, count = len(graph.ids), len(ids)
    here = torch.nonzero((graph.ids >= start) & (graph.ids < start + count))
    forward = torch.stack([here[:, 0], graph.ids[here[:, 0], here[:, 1]] - start])
    there = torch.nonzero((ids >= graph.first) & (ids < graph.first + rows))
    backward = torch.stack([ids[there[:, 0], there[:, 1]] - graph.first, there[:, 0]])
    places = torch.cat([forward, backward], dim=1)
    ones = torch.ones(places.shape[1])
    matrix = torch.sparse_coo_tensor(places, ones, (rows, count), check_invariants=False).coalesce()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        return matrix.to_sparse_csr()


def _blocks(rows: Tensor, sizes: list[int], comm: Comm) -> Iterator[tuple[int, Tensor]]:
    """All workers' rows, block after block, each with the number of its first row; all workers come to all of them."""
    start = 0
    widths = {width for width in comm.all_gather(rows.shape[1] if len(rows) else None) if width is not None}
    for rank, size in enumerate(sizes):
        for low in range(0, size, BLOCK_ROWS):
            shape = (min(BLOCK_ROWS, size - low), *widths)
            mine = rank == comm.rank
            block = rows[low : low + shape[0]].contiguous() if mine else torch.empty(shape, dtype=rows.dtype)
            comm.broadcast(block, rank)
            yield start + low, block
        start += size
