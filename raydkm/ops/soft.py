"""Posteriors q_ik = softmax_k(2 score_ik / T) of a tile of rows; N x K is never held."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.ops.batch import SOFT_TILE
from raydkm.ops.frame import Shifted
from raydkm.ops.kernels import soften
from raydkm.ops.scores import Scores
from raydkm.ops.workspace import Workspace


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
    """The softmax of scores at the temperature of `scores`, which is positive; `logits` are to the base of 2."""

    def __init__(self, scores: Scores):
        scale = 2.0 / scores.temperature / math.log(2.0)
        # a scaling of zero has the logarithm -inf: the kernels are of finite numbers
        self.logits = Scores(scores.prototypes * scale, (scores.bias * scale).clamp_(min=-1e30), scores.temperature)
        self._native = scores.bias.dtype == torch.float32 and scores.bias.device.type == "cpu"
        self._buffer = Workspace()

    def __call__(self, z: Tensor) -> Posterior:
        logits = self.logits(z)
        logits.sub_(logits.amax(1, keepdim=True)).mul_(math.log(2.0))
        exp = torch.exp(logits)  # exp2 gives a row other last bits in other places of a batch
        normaliser = exp.sum(1)
        mean_logit = logits.mul_(exp).sum(1).div_(normaliser)
        return Posterior(exp, normaliser, torch.log(normaliser).sub_(mean_logit))

    def targets(self, z: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, float]:
        """w_i q_ik (n, K), added to counts (K,), and -sum_i w_i sum_k q_ik log q_ik; weights and counts are float64.

        The targets are overwritten by the thread's next call.
        """
        if not self._native:
            posterior = self(z)
            q = posterior.exp_logits.mul_((weight / posterior.normaliser).to(z.dtype)[:, None])
            counts += q.sum(0)
            return q, float(torch.dot(weight, posterior.entropy.double()))
        q = torch.mm(z, self.logits.prototypes.T, out=self._buffer("targets", (len(z), len(counts)), z))
        return q, soften(q.numpy(), self.logits.bias.numpy(), weight.numpy(), counts.numpy(), 0)


class SoftByProducts:
    """Sums of q_i over a batch, by matrix products of its tiles; any number of threads may call one.

    Parameters
    ----------
    assign : SoftAssignment
    low_precision_sums : bool
        Sum q z in bf16.
    """

    #: Numbers of a tile.
    tile = SOFT_TILE

    def __init__(self, assign: SoftAssignment, *, low_precision_sums: bool):
        self._assign = assign
        self._low = low_precision_sums
        self._buffer = Workspace()

    def __call__(self, tiles: Iterable[tuple[Shifted, Tensor]]) -> tuple[Tensor, Tensor, float]:
        """n (K,), S (K, d) and -sum_i w_i sum_k q_ik log q_ik of tiles: rows (n, d), weights (n,) of float64.

        S is overwritten by the thread's next call.
        """
        theta, entropy = self._assign.logits.prototypes, 0.0
        counts = theta.new_zeros(len(theta), dtype=torch.float64)
        sums = self._buffer("sums", theta.shape, theta).zero_()
        for rows, weight in tiles:
            z = rows.z
            q, uncertainty = self._assign.targets(z, weight, counts)
            if self._low:
                sums += torch.mm(q.T.to(torch.bfloat16), z.to(torch.bfloat16))
            else:
                sums.addmm_(q.T, z)
            entropy += uncertainty
        return counts, sums, entropy
