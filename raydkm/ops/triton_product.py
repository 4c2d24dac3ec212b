"""Scores by bf16 matrix units: rounded operands, and the tile of scores that the kernels of steps share.

A float32 x is the sum of `high`, the bf16 nearest to it, of `low`, the bf16 nearest to what is left, and of a rest.
One product of high parts is fast and has an error of about 2^-9; three products, high high + high low + low high,
have one of about 2^-17 and still take half the time that TF32 matrix units need for as much.

Operands are padded with zeros to whole blocks, so that no kernel masks a load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Rows and prototypes in a tile of scores.
BLOCK_N = 128
BLOCK_K = 128

#: Elements of an operand, so many that a launch fills the device and so few that indices fit 32 bits.
OPERAND_SIZE = 2**26


@dataclass(frozen=True)
class Operand:
    """A matrix (n, d) in parts, padded to (n', d').

    Parameters
    ----------
    high, low : Tensor (n', d') of bf16
        `low` is `high` where the matrix was not split.
    norms : Tensor (3, n')
        Norms of the rows of high, of x - high, and of x less both parts that were kept.
    """

    high: Tensor
    low: Tensor
    norms: Tensor


def width(dim: int) -> int:
    """d padded for the products."""
    block = max(16, min(64, triton.next_power_of_2(dim)))
    return triton.cdiv(dim, block) * block


def block_d(width: int, *, split: bool) -> int:
    """Columns that a step of a product takes; two parts of them need the room of twice as many."""
    return min(32 if split else 64, width)


def split(x: Tensor, *, both: bool, block: int) -> Operand:
    """Round float32 `x` (n, d) to its high part, or to `both`; rows are padded to multiples of `block`."""
    rows, columns = triton.cdiv(len(x), block) * block, width(x.shape[1])
    # the interpreter, which runs on the CPU, cannot multiply bf16: there, float32 holds the same rounded values
    dtype = torch.bfloat16 if x.device.type == "cuda" else torch.float32
    high = torch.empty(rows, columns, dtype=dtype, device=x.device)
    low = torch.empty_like(high) if both else high
    norms = torch.empty(3, rows, device=x.device)
    _split[(rows // block,)](
        x.contiguous(), high, low, norms, len(x), x.shape[1], rows, columns, block, min(64, columns), both, num_warps=8
    )
    return Operand(high, low, norms)


@triton.jit
def high_part(x):  # type: ignore[no-untyped-def]
    """The bf16 nearest to float32 `x`, in float32."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x8000) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def _split(  # type: ignore[no-untyped-def]
    x,
    high,
    low,
    norms,
    rows,
    dim,
    padded,
    width: tl.constexpr,
    block_n: tl.constexpr,
    block_d: tl.constexpr,
    both: tl.constexpr,
):
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)
    high_square = tl.zeros((block_n,), tl.float32)
    low_square = tl.zeros((block_n,), tl.float32)
    rest_square = tl.zeros((block_n,), tl.float32)
    for start in range(0, width, block_d):
        column = start + tl.arange(0, block_d)
        inside = (row < rows)[:, None] & (column < dim)[None, :]
        value = tl.load(x + row[:, None] * dim + column[None, :], mask=inside, other=0.0)
        at = row[:, None] * width + column[None, :]
        first = high_part(value)
        rest = value - first
        tl.store(high + at, first.to(high.dtype.element_ty))
        high_square += tl.sum(first * first, 1)
        low_square += tl.sum(rest * rest, 1)
        if both:
            second = high_part(rest)
            tl.store(low + at, second.to(low.dtype.element_ty))
            rest -= second
        rest_square += tl.sum(rest * rest, 1)
    tl.store(norms + row, tl.sqrt(high_square))
    tl.store(norms + padded + row, tl.sqrt(low_square))
    tl.store(norms + 2 * padded + row, tl.sqrt(rest_square))


@triton.jit
def scores_tile(  # type: ignore[no-untyped-def]
    z_high,
    z_low,
    theta_high,
    theta_low,
    bias,
    row,
    column,
    width: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    split: tl.constexpr,
):
    """z . theta + b (block_n, block_k) of the rows and prototypes numbered `row` and `column`."""
    total = tl.zeros((block_n, block_k), tl.float32)
    for start in range(0, width, block_d):
        d = start + tl.arange(0, block_d)
        z_at = row[:, None] * width + d[None, :]
        theta_at = column[None, :] * width + d[:, None]
        z = tl.load(z_high + z_at)
        theta = tl.load(theta_high + theta_at)
        total = tl.dot(z, theta, total)
        if split:
            total = tl.dot(z, tl.load(theta_low + theta_at), total)
            total = tl.dot(tl.load(z_low + z_at), theta, total)
    return total + tl.load(bias + column)[None, :]


def padded_bias(bias: Tensor, clusters: int) -> Tensor:
    """`bias` (K,) with a score of -inf for the prototypes that pad K to `clusters`."""
    return torch.nn.functional.pad(bias, (0, clusters - len(bias)), value=-torch.inf)
