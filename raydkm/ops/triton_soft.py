"""The soft step on a GPU in two kernels: online softmax over tiles of prototypes, then the sums of q z.

The first computes logits by three bf16 products of split operands (an error in z . theta is multiplied by 2 / T, so
one is not enough) and keeps each row's maximum, normaliser and entropy term while it goes through the prototypes. The
second sums exp(logit - maximum) w / normaliser times z over a canonical batch, rows in order, without atomics: the
sums of a batch do not depend on what else is computed. Between the two, the logits of the batches of a launch are
held, `LOGITS_SIZE` of them or those of one batch: to compute them again, once for each slice of columns that fits the
registers, takes longer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.scores import Scores
from raydkm.ops.triton_product import (
    BLOCK_K,
    BLOCK_N,
    OPERAND_SIZE,
    block_d,
    high_part,
    padded_bias,
    scores_tile,
    split,
)

#: Logits held between the two kernels, 256 MiB.
LOGITS_SIZE = 2**26


class FusedSoft:
    """Sums of q_i = softmax_k(2 score_ik / T) over canonical batches.

    Parameters
    ----------
    scores : Scores
        In float32, on a CUDA device (or on the CPU, under Triton's interpreter).
    low_precision_sums : bool
        Sum q z in bf16, in place of split bf16.
    """

    def __init__(self, scores: Scores, *, low_precision_sums: bool):
        scale = 2.0 / scores.temperature
        self._theta = split(scores.prototypes * scale, both=True, block=BLOCK_K)
        self._bias = padded_bias(scores.bias * scale, len(self._theta.high))
        self._shape = scores.prototypes.shape
        self._split_sums = not low_precision_sums
        batches = min(LOGITS_SIZE // len(self._bias), OPERAND_SIZE // self._theta.high.shape[1]) // BATCH_ROWS
        #: Rows to pass at once: as many canonical batches as the memory between the kernels has room for.
        self.at_once = max(1, batches) * BATCH_ROWS

    def __call__(self, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Statistics of each canonical batch of z (n, d) float32 with weight (n,) float64; n up to `at_once`.

        Returns
        -------
        counts : Tensor (batches, K)
            n_k = sum w q_ik.
        sums : Tensor (batches, K, d)
            S_k = sum w q_ik z_i.
        entropy : Tensor (batches,) float64
            -sum w q log q.
        """
        operand = split(z, both=True, block=BLOCK_N)
        (rows, dim), clusters = operand.high.shape, len(self._bias)
        logits = torch.empty(rows, clusters, device=z.device)
        largest, normaliser, entropy = torch.empty(3, rows, device=z.device)
        _softmax[(rows // BLOCK_N,)](
            operand.high,
            operand.low,
            self._theta.high,
            self._theta.low,
            self._bias,
            logits,
            largest,
            normaliser,
            entropy,
            clusters,
            dim,
            BLOCK_N,
            BLOCK_K,
            block_d(dim, split=True),
            num_warps=8,
            num_stages=3,
        )
        factor = torch.zeros_like(normaliser)  # rows that pad have no weight
        factor[: len(z)] = weight.float() / normaliser[: len(z)]
        batches, columns = triton.cdiv(rows, BATCH_ROWS), next(size for size in (128, 64, 32, 16) if dim % size == 0)
        counts = torch.empty(batches, clusters, device=z.device)
        sums = torch.empty(batches, clusters, dim, device=z.device)
        _sums[(clusters // BLOCK_K, dim // columns, batches)](
            logits,
            largest,
            factor,
            operand.high,
            operand.low,
            counts,
            sums,
            rows,
            clusters,
            dim,
            BATCH_ROWS,
            64,
            BLOCK_K,
            columns,
            self._split_sums,
            num_warps=8,
            num_stages=2,
        )
        weighted = entropy[: len(z)] * weight  # each batch by itself, for its sum not to depend on their number
        return (
            counts[:, : self._shape[0]],
            sums[:, : self._shape[0], : self._shape[1]],
            torch.stack([part.sum() for part in weighted.split(BATCH_ROWS)]),
        )


@triton.jit
def _softmax(  # type: ignore[no-untyped-def]
    z_high,
    z_low,
    theta_high,
    theta_low,
    bias,
    logits,
    largest,
    normaliser,
    entropy,
    clusters,
    width: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
):
    """Logits l, and of each row m = max l, Z = sum exp(l - m) and the entropy log Z - sum exp(l - m) (l - m) / Z."""
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)
    top = tl.full((block_n,), -1e30, tl.float32)
    total = tl.zeros((block_n,), tl.float32)
    moment = tl.zeros((block_n,), tl.float32)
    for start in range(0, clusters, block_k):
        column = start + tl.arange(0, block_k)
        logit = scores_tile(
            z_high, z_low, theta_high, theta_low, bias, row, column, width, block_n, block_k, block_d, True
        )
        tl.store(logits + row.to(tl.int64)[:, None] * clusters + column[None, :], logit)
        higher = tl.maximum(top, tl.max(logit, 1))
        # where exp is 0, any finite number in place of -inf gives the 0 of q log q
        below = tl.maximum(logit - higher[:, None], -1e4)
        shift = tl.maximum(top - higher, -1e4)
        exp = tl.exp(below)
        moment = tl.exp(shift) * (moment + shift * total) + tl.sum(exp * below, 1)
        total = tl.exp(shift) * total + tl.sum(exp, 1)
        top = higher
    tl.store(largest + row, top)
    tl.store(normaliser + row, total)
    tl.store(entropy + row, tl.log(total) - moment / total)


@triton.jit
def _sums(  # type: ignore[no-untyped-def]
    logits,
    largest,
    factor,
    z_high,
    z_low,
    counts,
    sums,
    rows,
    clusters,
    width: tl.constexpr,
    batch_rows: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    split: tl.constexpr,
):
    """sum_i q_ik and sum_i q_ik z_ij of one canonical batch, for a tile of prototypes k and of columns j."""
    column = tl.program_id(0) * block_k + tl.arange(0, block_k)
    d = tl.program_id(1) * block_d + tl.arange(0, block_d)
    batch = tl.program_id(2)
    total = tl.zeros((block_k, block_d), tl.float32)
    count = tl.zeros((block_k,), tl.float32)
    for start in range(batch * batch_rows, tl.minimum((batch + 1) * batch_rows, rows), block_n):
        row = start + tl.arange(0, block_n)
        logit = tl.load(logits + row.to(tl.int64)[None, :] * clusters + column[:, None])
        q = tl.exp(logit - tl.load(largest + row)[None, :]) * tl.load(factor + row)[None, :]
        count += tl.sum(q, 1)
        high = high_part(q)
        at = row[:, None] * width + d[None, :]
        z = tl.load(z_high + at)
        total = tl.dot(high.to(z.dtype), z, total)
        if split:
            total = tl.dot(high.to(z.dtype), tl.load(z_low + at), total)
            total = tl.dot(high_part(q - high).to(z.dtype), z, total)
    at = batch.to(tl.int64) * clusters + column
    tl.store(sums + at[:, None] * width + d[None, :], total)
    if tl.program_id(1) == 0:
        tl.store(counts + at, count)
