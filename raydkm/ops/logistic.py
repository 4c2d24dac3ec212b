"""The logistic family's statistics: posteriors p and targets q of each row, from one product.

    p = softmax_k(l_ik),    q = softmax_k((1 + alpha) l_ik + log s_k),    l_ik = theta_k . z_i + b_k

What an M-step needs of them is the gradient sum w (p - q) [z, 1], and the objective a few scalars.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from raydkm.ops.batch import SOFT_TILE, Batch
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.kernels import LEAST_LOGIT, LEAST_SCORE, contrast, shift_rows, tilt
from raydkm.ops.scores import Scores
from raydkm.ops.soft import flushed_denormals
from raydkm.ops.statistics import ROWS, Bounds, Local
from raydkm.ops.workspace import Workspace


def logistic_fields(scores: Scores, bounds: Bounds) -> tuple[Field, ...]:
    """n_k = sum w q_ik, sum w p_ik, G = sum w (p - q) z, and sums of -w q log q and -w q log p.

    The grid of the cross entropy follows from the scores, and so is another one in each step: no logit exceeds
    B = max_k sum_j bound_j |theta_kj| + |b_k|, hence -log p <= 2 B + log K.
    """
    clusters, bound = len(scores), bounds.columns
    most = float((scores.prototypes.cpu().double().abs() @ bound + scores.bias.cpu().double().abs()).max())
    return (
        bounds.field("counts", (clusters,)),
        bounds.field("posterior_counts", (clusters,)),
        bounds.field("gradient", (clusters, len(bound)), bound),
        bounds.field("entropy", (), math.log(clusters) + 1),
        bounds.field("cross_entropy", (), 2.0 * most + math.log(clusters) + 1),
        ROWS,
    )


def logistic_statistics(scores: Scores, alpha: float, log_s: Tensor, frame: Frame) -> Local:
    """The sums of `logistic_fields`, rounded batch by batch; `scores` are the logits l."""
    assign, buffer = LogisticAssignment(scores, alpha, log_s), Workspace()

    def local(batch: Batch, into: Statistics) -> None:
        weight = batch.weights()
        counts, posterior_counts = torch.zeros(2, len(scores), dtype=torch.float64, device=scores.bias.device)
        gradient = torch.zeros_like(scores.prototypes)
        entropy, cross = 0.0, 0.0
        with flushed_denormals():
            for where, z in batch.tiles(frame, len(scores), SOFT_TILE, buffer):
                difference, *terms = assign(z, weight[where], counts, posterior_counts)
                gradient.addmm_(difference.T, z)
                entropy, cross = entropy + terms[0], cross + terms[1]
        into.add("counts", counts)
        into.add("posterior_counts", posterior_counts)
        into.add("gradient", gradient)
        into.add("entropy", entropy)
        into.add("cross_entropy", cross)
        into.add("rows", len(batch))

    return local


class LogisticAssignment:
    """p and q of tiles."""

    def __init__(self, scores: Scores, alpha: float, log_s: Tensor):
        self._scores, self._alpha = scores, alpha
        self._log_s = log_s.to(scores.bias).clamp_(min=-1e30)  # the kernels are of finite numbers
        self._native = scores.bias.dtype == torch.float32 and scores.bias.device.type == "cpu"
        self._buffer = Workspace()

    def __call__(
        self, z: Tensor, weight: Tensor, counts: Tensor, posterior_counts: Tensor
    ) -> tuple[Tensor, float, float]:
        """w_i (p_ik - q_ik) (n, K), and sums of -w q log q and -w q log p; q and p are added to their counts (K,).

        What is returned is overwritten by the thread's next call.
        """
        if not self._native:
            return self._by_tensors(z, weight, counts, posterior_counts)
        scores, shape = self._scores, (len(z), len(counts))
        log_p, log_q, p, q = (self._buffer(name, shape, z) for name in ("log_p", "log_q", "p", "q"))
        torch.addmm(scores.bias, z, scores.prototypes.T, out=log_p)
        shift_rows(log_p.numpy(), np.float32(LEAST_SCORE))
        tilt(log_p.numpy(), np.float32(1 + self._alpha), self._log_s.numpy(), log_q.numpy())
        shift_rows(log_q.numpy(), LEAST_LOGIT)
        torch.clamp(log_p, min=float(LEAST_LOGIT), out=p).exp_()
        torch.exp(log_q, out=q)
        arrays = (x.numpy() for x in (p, q, log_p, log_q, weight, counts, posterior_counts))
        return p, *contrast(*arrays)

    def _by_tensors(
        self, z: Tensor, weight: Tensor, counts: Tensor, posterior_counts: Tensor
    ) -> tuple[Tensor, float, float]:
        log_p = torch.log_softmax(self._scores(z), 1)
        log_q = torch.log_softmax(torch.add(self._log_s, log_p, alpha=1 + self._alpha), 1)
        q, heavy = log_q.exp(), weight.to(z.dtype)[:, None]
        entropy = -torch.dot(weight, log_q.mul_(q).sum(1).double())
        cross = -torch.dot(weight, (log_p * q).sum(1).double())
        p, q = log_p.exp_().mul_(heavy), q.mul_(heavy)
        counts += q.sum(0)
        posterior_counts += p.sum(0)
        return p.sub_(q), float(entropy), float(cross)
