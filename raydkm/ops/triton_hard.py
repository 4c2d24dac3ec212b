"""Exact hard labels on a GPU: bf16 screening in one kernel, and a recheck of the rows it cannot tell.

The label of a row is the lowest k of those of the maximal score, with scores computed in float64 from float32 z,
theta and b. It therefore does not depend on how rows are screened: first by one bf16 product, then, where the best
two scores lie within its error, by three products of split operands, and where those cannot tell either, in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from raydkm.ops.scores import Scores
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

#: Float64 scores that a recheck holds.
EXACT_SIZE = 2**24


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

    def __call__(self, z: Tensor) -> Tensor:
        """Labels (n,) int64 of z (n, d) float32."""
        labels = torch.empty(len(z), dtype=torch.int64, device=z.device)
        at_once = OPERAND_SIZE // self._theta.high.shape[1]
        for start in range(0, len(z), at_once):
            where = slice(start, start + at_once)
            labels[where] = self._labels(z[where])
        return labels

    def _labels(self, z: Tensor) -> Tensor:
        labels, unsure = self.screen(z, split_product=False)
        rows = unsure.nonzero()[:, 0]
        if len(rows):
            labels[rows], unsure = self.screen(z[rows], split_product=True)
            rows = rows[unsure]
            labels[rows] = exact_labels(z[rows], self._scores)
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
        return 1.001 * (lost + summed + 2.0**-22 * self._bias_scale + 2.0**-125 * dim)


def exact_labels(z: Tensor, scores: Scores) -> Tensor:
    """Labels (n,) int64 by float64 scores of z (n, d).

    A product may add up the same numbers in another order for another column. Scores that lie within its rounding
    error of the best are therefore computed one by one, so that equal prototypes have equal scores.
    """
    theta, bias = scores.prototypes.double(), scores.bias.double()
    largest = torch.linalg.vector_norm(theta, dim=1).max()
    at_once = max(1, EXACT_SIZE // len(scores))
    labels = torch.empty(len(z), dtype=torch.int64, device=z.device)
    for start in range(0, len(z), at_once):
        part = z[start : start + at_once].double()
        score = torch.addmm(bias, part, theta.T)
        best, label = score.max(1)
        error = 2.0**-52 * (z.shape[1] + 2) * (torch.linalg.vector_norm(part, dim=1) * largest + bias.abs().max())
        near = score >= (best - 2 * error)[:, None]
        tied = (near.sum(1) > 1).nonzero()[:, 0]
        if len(tied):
            label[tied] = _first_best(part[tied], near[tied], theta, bias)
        labels[start : start + at_once] = label
    return labels


def _first_best(z: Tensor, near: Tensor, theta: Tensor, bias: Tensor) -> Tensor:
    """The lowest k of the highest score among the prototypes that `near` (n, K) marks."""
    row, k = near.nonzero().unbind(1)
    at_once = max(1, EXACT_SIZE // z.shape[1])
    pairs = zip(row.split(at_once), k.split(at_once), strict=True)
    score = torch.cat([(z[i] * theta[j]).sum(1) + bias[j] for i, j in pairs])
    best = torch.full_like(z[:, 0], -torch.inf).scatter_reduce_(0, row, score, "amax")
    winner = score == best[row]
    return torch.full_like(row[: len(z)], len(theta)).scatter_reduce_(0, row[winner], k[winner], "amin")


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
