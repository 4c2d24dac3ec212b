"""The logistic family's statistics: posteriors p and targets q of each row, from one product.

    p = softmax_k(l_ik),    q = softmax_k((1 + alpha) l_ik + log s_k),    l_ik = theta_k . z_i + b_k

What an M-step needs of them is the gradient sum w (p - q) [z, 1], and the objective a few scalars.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import ROWS, Local, weighted_field


def logistic_fields(scores: Scores, rows: int, max_weight: float, bound: Tensor) -> tuple[Field, ...]:
    """n_k = sum w q_ik, sum w p_ik, G = sum w (p - q) z, and sums of -w q log q and -w q log p.

    `bound` (d,) is a bound of every |z_ij|. The grid of the cross entropy follows from the scores, and so is another
    one in each step: no logit exceeds B = max_k sum_j bound_j |theta_kj| + |b_k|, hence -log p <= 2 B + log K.
    """

    def field(name: str, shape: tuple[int, ...], bound: Tensor | float) -> Field:
        return weighted_field(name, shape, rows, max_weight, bound, at_once=BATCH_ROWS)

    clusters = len(scores)
    most = float((scores.prototypes.cpu().double().abs() @ bound + scores.bias.cpu().double().abs()).max())
    return (
        field("counts", (clusters,), 1.0),
        field("posterior_counts", (clusters,), 1.0),
        field("gradient", (clusters, len(bound)), bound),
        field("entropy", (), math.log(clusters) + 1),
        field("cross_entropy", (), 2.0 * most + math.log(clusters) + 1),
        ROWS,
    )


def logistic_statistics(scores: Scores, alpha: float, log_s: Tensor, frame: Frame) -> Local:
    """The sums of `logistic_fields`, rounded batch by batch; `scores` are the logits l."""
    log_s = log_s.to(scores.bias)

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        counts, posterior_counts = torch.zeros_like(scores.bias), torch.zeros_like(scores.bias)
        gradient = torch.zeros_like(scores.prototypes)
        entropy, cross = weight.new_zeros(()), weight.new_zeros(())
        for where, z in batch.tiles(frame, len(scores)):
            heavy = weight[where].to(z.dtype)
            log_p = torch.log_softmax(scores(z), 1)
            log_q = torch.log_softmax(torch.add(log_s, log_p, alpha=1 + alpha), 1)
            q = log_q.exp()
            entropy -= torch.dot(weight[where], log_q.mul_(q).sum(1).double())
            cross -= torch.dot(weight[where], (log_p * q).sum(1).double())
            p = log_p.exp_()
            counts.addmv_(q.T, heavy)
            posterior_counts.addmv_(p.T, heavy)
            gradient.addmm_(p.sub_(q).mul_(heavy[:, None]).T, z)
        into.add("counts", counts)
        into.add("posterior_counts", posterior_counts)
        into.add("gradient", gradient)
        into.add("entropy", entropy)
        into.add("cross_entropy", cross)
        into.add("rows", len(batch))

    return local
