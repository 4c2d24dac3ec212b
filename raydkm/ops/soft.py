"""Posteriors q_ik = softmax_k(2 score_ik / T) of a tile of rows; N x K is never held."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.ops.scores import Scores


@dataclass(frozen=True)
class Posterior:
    """Unnormalised posteriors of a tile: q = exp_logits / normaliser.

    Parameters
    ----------
    exp_logits : Tensor (n, K)
        exp(logits - their row maximum).
    normaliser : Tensor (n,)
        Row sums of `exp_logits`, at least 1.
    entropy : Tensor (n,)
        -sum_k q log q, in nats.
    """

    exp_logits: Tensor
    normaliser: Tensor
    entropy: Tensor

    def dense(self) -> Tensor:
        """q (n, K)."""
        return self.exp_logits / self.normaliser[:, None]


class SoftAssignment:
    """The softmax of scores at the temperature of `scores`, which is positive."""

    def __init__(self, scores: Scores):
        scale = 2.0 / scores.temperature
        self._logits = Scores(scores.prototypes * scale, scores.bias * scale, scores.temperature)

    def __call__(self, z: Tensor) -> Posterior:
        logits = self._logits(z)
        logits.sub_(logits.amax(1, keepdim=True))
        exp = torch.exp(logits)
        normaliser = exp.sum(1)
        # q log q = q (logit - log normaliser); a logit of -inf has q = 0 and would give nan
        mean_logit = logits.clamp_(min=-1e4).mul_(exp).sum(1).div_(normaliser)
        return Posterior(exp, normaliser, torch.log(normaliser).sub_(mean_logit))
