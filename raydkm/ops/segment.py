"""Sums of rows by label on a GPU, exact: rows are sorted by label, and each run of a label is added up at once.

Addends are multiples of a grid's step in int64, so that no order of additions matters, that of atomics included.
`Statistics.add_rows` computes the same integers by one atomic addition for each element.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from raydkm.ops.exact import Grid

_ROWS, _COLUMNS = 64, 64


def segment_sums(labels: Tensor, z: Tensor, weight: Tensor | None, grid: Grid, clusters: int) -> Tensor:
    """sum_{i: labels_i = k} w_i z_i in units of `grid`, (K, d) int64; each addend is rounded once, as by `Grid.units`.

    Parameters
    ----------
    labels : Tensor (n,) of int64
    z : Tensor (n, d) of float32
    weight : Tensor (n,) of float64, or None for weights of 1
    grid : Grid
    clusters : int
    """
    n, dim = z.shape
    order = torch.sort(labels, stable=True)
    sums = torch.zeros(clusters, dim, dtype=torch.int64, device=z.device)
    scale = torch.from_numpy(np.ldexp(1.0, grid.exponent.expand(dim).numpy())).to(z.device)
    _segment_sums[(triton.cdiv(n, _ROWS), triton.cdiv(dim, _COLUMNS))](
        z.contiguous(), weight if weight is not None else scale, order.values, order.indices, scale, sums,
        n, dim, weight is not None, _ROWS, _COLUMNS,
    )  # fmt: skip
    return sums


@triton.jit
def _segment_sums(  # type: ignore[no-untyped-def]
    z,
    weight,
    labels,
    order,
    scale,
    sums,
    rows,
    dim,
    weighted: tl.constexpr,
    block_n: tl.constexpr,
    block_d: tl.constexpr,
):
    """Add `block_n` rows in the order of their labels to the sums of the labels among them."""
    first = tl.program_id(0) * block_n
    place = first + tl.arange(0, block_n)
    column = tl.program_id(1) * block_d + tl.arange(0, block_d)
    here, within = place < rows, column < dim
    label = tl.load(labels + place, mask=here, other=-1)
    row = tl.load(order + place, mask=here, other=0)
    inside = here[:, None] & within[None, :]
    value = tl.load(z + row[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float64)
    if weighted:
        value *= tl.load(weight + row, mask=here, other=0.0)[:, None]
    value = value * tl.load(scale + column, mask=within, other=0.0)[None, :]
    # 1.5 * 2^52 leaves the nearest integer in the low bits of the sum; from 2^51 on, numbers are multiples of a half
    near = (value + 6755399441055744.0).to(tl.int64, bitcast=True) - 0x4338000000000000
    units = tl.where(tl.abs(value) < 2251799813685248.0, near, tl.floor(value + 0.5).to(tl.int64))
    k = tl.load(labels + first)
    last = tl.load(labels + tl.minimum(first + block_n, rows) - 1)
    while k <= last:
        member = label == k
        total = tl.sum(tl.where(member[:, None], units, 0), 0)
        tl.atomic_add(sums + k * dim + column, total, mask=within)
        k = tl.min(tl.where(label > k, label, last + 1), 0)
