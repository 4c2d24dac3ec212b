"""Exact hard labels on a GPU: bf16 screening in one kernel, and a recheck of the rows it cannot tell.

The label of a row is the lowest k of those of the least cost (`raydkm.ops.cost`). It therefore does not depend on how
rows are screened: first by one bf16 product, then, where the best two scores lie within its error, by three products of
split operands, and where those cannot tell either, by their costs in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from raydkm.ops.frame import RowTile
from raydkm.ops.scores import Scores
from raydkm.ops.screen import rounding
from raydkm.ops.triton_product import (
    BLOCK_K,
    BLOCK_N,
    OPERAND_SIZE,
    Operand,
    block_d,
    padded_bias,
    scores_tile,
    split,
)


class FusedLabels:
    """argmax_k score_ik without N x K scores.

    Parameters
    ----------
    scores : Scores
        In float32, on a CUDA device (or on the CPU, under Triton's interpreter).
    """

    def __init__(self, scores: Scores):
        self._scores = scores
        self._theta = split(scores.prototypes, both=True, block=BLOCK_K)
        self._bias = padded_bias(scores.bias, len(self._theta.high))
        self._norms = self._theta.norms.amax(1)
        self._bias_scale = scores.bias.abs().max()
        self._rounding = rounding(scores)

    def __call__(self, rows: RowTile | Tensor) -> Tensor:
        """Labels (n,) int64 of rows, as of `Scores.tile`."""
        rows = self._scores.tile(rows)
        return torch.cat([self._labels(part) for part in rows.split(OPERAND_SIZE // self._theta.high.shape[1])])

    def _labels(self, rows: RowTile) -> Tensor:
        labels, unsure = self.screen(rows.z, split_product=False)
        index = unsure.nonzero()[:, 0]
        if len(index):
            labels[index], unsure = self.screen(rows.z[index], split_product=True)
            index = index[unsure]
            if len(index):
                labels[index] = self._scores.costs.labels(rows.x[index])
        return labels

    def screen(self, z: Tensor, *, split_product: bool) -> tuple[Tensor, Tensor]:
        """Labels (n,) int64 by low-precision scores, and whether each is in doubt (n,) bool."""
        operand = split(z, both=split_product, block=BLOCK_N)
        rows, dim = operand.high.shape
        labels = torch.empty(rows, dtype=torch.int32, device=z.device)
        gaps = torch.empty(rows, device=z.device)
        _best[(rows // BLOCK_N,)](
            operand.high,
            operand.low,
            self._theta.high,
            self._theta.low,
            self._bias,
            labels,
            gaps,
            len(self._bias),
            dim,
            BLOCK_N,
            BLOCK_K,
            block_d(dim, split=split_product),
            split_product,
            num_warps=8,
            num_stages=3,
        )
        # "not above", so that a row whose scores are not finite is in doubt too
        unsure = ~(gaps > 2 * self.error(operand, split_product=split_product))
        return labels[: len(z)].long(), unsure[: len(z)]

    def error(self, z: Operand, *, split_product: bool) -> Tensor:
        """Bound (n',) of |low-precision score - exact score| over all prototypes, by Cauchy-Schwarz.

        With z = h + l + r and theta = h' + l' + r' (high and low parts, and what both leave),

            |z.theta - h.h'|               <= ||l + r|| ||theta|| + ||h|| ||l' + r'||
            |z.theta - h.h' - h.l' - l.h'| <= ||l|| ||l'|| + ||r|| ||theta|| + (||h|| + ||l||) ||r'||

        Each addition of a matrix unit may lose 2^-22 of the largest magnitude so far, which is at most about
        ||h|| ||h'||: they truncate. Norms are rounded up, and by what their squares may lose to underflow.
        """
        dim = z.high.shape[1]

        def up(norms: Tensor) -> Tensor:
            return norms * (1.001 + 2.0**-23 * dim) + 2.0**-63 * dim**0.5

        high, low, rest = up(z.norms)
        theta_high, theta_low, theta_rest = up(self._norms)
        theta = theta_high + theta_low
        if split_product:
            lost = low * theta_low + rest * theta + (high + low) * theta_rest
        else:
            lost = low * theta + high * theta_low
        additions = (3 if split_product else 1) * dim + 1
        summed = 2.0**-22 * 1.02 * additions * high * theta_high
        of_norm, absolute, own = self._rounding  # of float32 numbers themselves
        rounded = of_norm * (high + low) + absolute + own * (high + low).double().square()
        return 1.001 * (lost + summed + 2.0**-22 * self._bias_scale + 2.0**-125 * dim + rounded.float())


@triton.jit
def _best(  # type: ignore[no-untyped-def]
    z_high,
    z_low,
    theta_high,
    theta_low,
    bias,
    labels,
    gaps,
    clusters,
    width: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    split: tl.constexpr,
):
    """Label of each row and the gap between its best two scores, over all tiles of prototypes."""
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)
    best = tl.full((block_n,), float("-inf"), tl.float32)
    second = tl.full((block_n,), float("-inf"), tl.float32)
    label = tl.zeros((block_n,), tl.int32)
    for start in range(0, clusters, block_k):
        column = start + tl.arange(0, block_k)
        score = scores_tile(
            z_high, z_low, theta_high, theta_low, bias, row, column, width, block_n, block_k, block_d, split
        )
        here, winner = tl.max(score, 1, return_indices=True)
        others = tl.where((start + winner)[:, None] == column[None, :], float("-inf"), score)
        second = tl.maximum(tl.minimum(best, here), tl.maximum(second, tl.max(others, 1)))
        label = tl.where(here > best, start + winner, label)
        best = tl.maximum(best, here)
    tl.store(labels + row, label)
    tl.store(gaps + row, best - second)
