"""The balance term l1 KL(q_hat || u), carried by K scalings s (an unbalanced Sinkhorn iteration).

A fixed point of the sweep is a minimiser over q of

    (1/N) sum_i KL(q_i || softmax(a_i)) + gamma KL(q_hat || u),    gamma = beta / (1 - beta),

because log s_k = -gamma log(q_hat_k / u_k) there. One sweep needs only the counts of the step just done.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sweep(log_s: Tensor, counts: Tensor, beta: float, target: Tensor | None = None) -> Tensor:
    """s_k <- (u_k s_k N / n_k)^beta, in logs, with the mean of log s normalised away.

    Parameters
    ----------
    log_s, counts : Tensor (K,) of float64
        Scalings that gave rise to the counts n_k = sum_i w_i q_ik.
    beta : float in [0, 1]
    target : Tensor (K,), optional
        Target marginal u; uniform if not given.
    """
    u = torch.full_like(counts, 1 / len(counts)) if target is None else target
    n = counts.sum()
    log_ratio = torch.log(u) - torch.log(torch.maximum(counts / n, u * 1e-6))  # an empty cluster's pull is finite
    log_s = beta * (log_s + log_ratio)
    return log_s - log_s.mean()


def divergence(counts: Tensor, target: Tensor | None = None) -> float:
    """KL(q_hat || u) in nats; for uniform u this is log K minus the marginal entropy."""
    share = counts / counts.sum()
    u = torch.full_like(share, 1 / len(share)) if target is None else target
    return float(torch.special.xlogy(share, share).sum() - torch.special.xlogy(share, u).sum())


def strength(beta: float) -> float:
    """gamma = l1 / l3 = beta / (1 - beta); infinite at beta = 1."""
    return beta / (1 - beta) if beta < 1 else math.inf
