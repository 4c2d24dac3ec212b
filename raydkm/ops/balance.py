"""The balance term l1 KL(q_hat || u), carried by K scalings s (an unbalanced Sinkhorn iteration).

A fixed point of the sweep is a minimiser over q of

    (1/N) sum_i KL(q_i || softmax(a_i)) + gamma KL(q_hat || u),    gamma = beta / (1 - beta),

because log s_k = -gamma log(q_hat_k / u_k) there. One sweep needs only the counts of the step just done.

Bounds low <= q_hat_k <= high are carried by the same scalings: of a cluster within them s_k = 1, of one at a bound
it is what keeps it there (the range constraint of Chizat, Peyre, Schmitzer and Vialard 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Balance:
    """What is asked of the clusters' shares of the weight.

    Parameters
    ----------
    beta : float in [0, 1]
        Strength of the pull towards the target marginal; 1 holds the shares to it.
    target : Tensor (K,) of float64, optional
        Target marginal u, which sums to 1; uniform if not given.
    low, high : float
        Bounds of every share, instead of a pull (beta = 0).
    """

    beta: float = 0.0
    target: Tensor | None = None
    low: float = 0.0
    high: float = 1.0

    @property
    def bounded(self) -> bool:
        return self.low > 0 or self.high < 1

    @property
    def active(self) -> bool:
        return self.beta > 0 or self.bounded

    @property
    def held(self) -> bool:
        """Whether shares are held to what is asked, and not merely pulled."""
        return self.beta == 1 or self.bounded

    def sweep(self, log_s: Tensor, counts: Tensor) -> Tensor:
        """The scalings (K,) of the next step, from those of this one and the counts that they gave rise to."""
        if self.bounded:
            return sweep_within(log_s, counts, self.low, self.high)
        return sweep(log_s, counts, self.beta, self.target)

    def term(self, counts: Tensor) -> float:
        """gamma KL(q_hat || u), which an objective adds; 0 where shares are held to what is asked."""
        return strength(self.beta) * divergence(counts, self.target) if 0 < self.beta < 1 else 0.0


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
    log_s = beta * (log_s + _log_ratio(u, counts))
    return log_s - log_s.mean()


def sweep_within(log_s: Tensor, counts: Tensor, low: float, high: float) -> Tensor:
    """log s_k <- max(log(low s_k N / n_k), min(log(high s_k N / n_k), 0)): 1 where a share is within its bounds."""
    up = log_s + _log_ratio(torch.full_like(counts, low), counts)
    down = log_s + _log_ratio(torch.full_like(counts, high), counts)
    log_s = torch.maximum(up, down.clamp(max=0.0))
    return log_s - log_s.min().clamp(min=0.0) - log_s.max().clamp(max=0.0)  # a softmax does not see a common factor


def _log_ratio(target: Tensor, counts: Tensor) -> Tensor:
    """log(u_k N / n_k); an empty cluster's pull is finite."""
    share = torch.maximum(counts / counts.sum(), target * 1e-6)
    return torch.log(target) - torch.log(share.clamp_min(torch.finfo(share.dtype).tiny))


def divergence(counts: Tensor, target: Tensor | None = None) -> float:
    """KL(q_hat || u) in nats; for uniform u this is log K minus the marginal entropy."""
    share = counts / counts.sum()
    u = torch.full_like(share, 1 / len(share)) if target is None else target
    return float(torch.special.xlogy(share, share).sum() - torch.special.xlogy(share, u).sum())


def strength(beta: float) -> float:
    """gamma = l1 / l3 = beta / (1 - beta); infinite at beta = 1."""
    return beta / (1 - beta) if beta < 1 else math.inf
