"""Posteriors q_ik = softmax_k(2 score_ik / T) of a tile of rows; N x K is never held.

An error of a score is multiplied by 2 / T. Rows whose posteriors float32 scores may leave far off, because they or the
prototypes near them lie far from the origin for the temperature, have theirs from costs in float64 (`raydkm.ops.cost`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from raydkm.ops.batch import SOFT_TILE
from raydkm.ops.cost import Costs
from raydkm.ops.frame import RowTile
from raydkm.ops.kernels import soften
from raydkm.ops.scores import Scores
from raydkm.ops.workspace import Workspace

#: Logits of float32 that are typically off by more than this are computed anew: posteriors are then off by 1e-3.
DOUBTFUL = 2.0**-11

#: Dimensions up to which a product is rounded about as a single term is.
FEW_TERMS = 32

#: Logits that are far below the largest float32.
OVERFLOWING = 1e30

#: Costs in float64 that are held at once.
AT_ONCE = 2**20


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
        self.costs, self._tile = scores.costs, scores.tile
        self._native = scores.bias.dtype == torch.float32 and scores.bias.device.type == "cpu"
        self.temperature = scores.temperature
        more = max(1.0, scores.prototypes.shape[1] / FEW_TERMS) ** 0.5  # sums of many terms are rounded many times
        self._rounded = 2.0**-24 * more * 2 / scores.temperature if scores.bias.dtype == torch.float32 else 0.0
        self._longest, self._shortest = float(scores.lengths.max()), float(scores.lengths.min())
        self._plain = not self.costs.linear and not bool(self.costs.offset.any())  # costs are squared distances
        self._bias = float(scores.bias.abs().max()) + (0.0 if self.costs.linear else self._longest**2 / 2)
        self._buffer = Workspace()

    def __call__(self, rows: RowTile | Tensor) -> Posterior:
        """Posteriors of rows, as of `Scores.tile`."""
        rows = self._tile(rows)
        logits = self.logits(rows.z)
        return self._of_logits(rows, logits.sub_(logits.amax(1, keepdim=True)).mul_(math.log(2.0)))

    def of_scores(self, rows: RowTile, scores: Tensor) -> Posterior:
        """The same, from the scores (n, K) of the rows, which are overwritten."""
        return self._of_logits(rows, scores.sub_(scores.amax(1, keepdim=True)).mul_(2.0 / self.temperature))

    def _of_logits(self, rows: RowTile, logits: Tensor) -> Posterior:
        exp = torch.exp(logits)  # exp2 gives a row other last bits in other places of a batch
        normaliser = exp.sum(1)
        mean_logit = logits.mul_(exp).sum(1).div_(normaliser)
        entropy = torch.log(normaliser).sub_(mean_logit)
        for some in self.doubtful(rows.z).nonzero()[:, 0].split(max(1, AT_ONCE // len(self.costs))):
            q, own = exact_posteriors(self.costs, self.temperature, rows.x[some])
            exp[some], normaliser[some], entropy[some] = q.to(exp), 1.0, own.to(exp)
        return Posterior(exp, normaliser, entropy)

    def may_doubt(self, bound: Tensor) -> bool:
        """Whether a row with |z_j| <= bound (d,) may be `doubtful`."""
        return bool(self._is_doubtful(torch.linalg.vector_norm(bound)[None]))

    def doubtful(self, z: Tensor) -> Tensor:
        """Whether (n,) the posterior of a row z (n, d) by float32 scores may be far off, or overflows."""
        return self._is_doubtful(torch.linalg.vector_norm(z, dim=1).double())

    def _is_doubtful(self, norm: Tensor) -> Tensor:
        logits = 2 / self.temperature * self._longest * norm.clamp(min=1)
        return (self._error(norm) > DOUBTFUL) | (logits > OVERFLOWING)

    def _error(self, norm: Tensor) -> Tensor:
        """How far the logits of rows of these norms (n,) may typically be, of prototypes that a row may belong to.

        A prototype three times as far from the origin as the row and the shortest prototype together is not among them:
        however it is rounded, its logit is far below theirs.
        """
        if not self._plain:
            return self._rounded * (norm * self._longest + self._bias)
        reach = (3 * (norm + self._shortest)).clamp_(max=self._longest)
        return self._rounded * (norm * reach + reach.square() / 2)

    def targets(self, z: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, float]:
        """w_i q_ik (n, K), added to counts (K,), and -sum_i w_i sum_k q_ik log q_ik; weights and counts are float64.

        The targets are overwritten by the thread's next call.
        """
        if not self._native:
            logits = self.logits(z).mul_(math.log(2.0))
            log_q = logits.sub_(torch.logsumexp(logits, 1, keepdim=True))
            entropy = -float(torch.dot(weight, torch.special.xlogy(q := log_q.exp(), q).sum(1).double()))
            q.mul_(weight.to(z.dtype)[:, None])
            counts += q.sum(0)
            return q, entropy
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

    def __call__(self, tiles: Iterable[tuple[RowTile, Tensor]]) -> tuple[Tensor, Tensor, float]:
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


def exact_posteriors(costs: Costs, temperature: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """q (n, K) and its entropies (n,) in nats, in float64, of rows (n, d) as they are stored."""
    logits, rest = costs.in_two(x)
    logits.sub_(logits.amin(1, keepdim=True)).add_(rest.sub_(rest.amin(1, keepdim=True))).div_(-temperature)
    logits.sub_(logits.amax(1, keepdim=True))
    q = logits.exp()
    total = q.sum(1)
    entropy = total.log() - logits.mul_(q).nan_to_num_(nan=0.0).sum(1) / total  # 0 times -inf
    return q.div_(total[:, None]), entropy


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Tiny posteriors count as zero: in products of them a processor is twice as slow."""
    before = not bool(torch.full((1,), 5e-324, dtype=torch.float64).mul_(1.0).any())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class ExactSums:
    """Sums of q_i over rows of a batch, by costs in float64.

    Parameters
    ----------
    costs : Costs
    temperature : float
    """

    def __init__(self, costs: Costs, temperature: float, device: torch.device):
        self._costs, self._temperature = costs, temperature
        self.counts = torch.zeros(len(costs), dtype=torch.float64, device=device)
        self.sums = torch.zeros(costs.prototypes.shape, dtype=torch.float64, device=device)
        self.entropy = 0.0

    def add(self, rows: RowTile, weight: Tensor) -> None:
        size = max(1, AT_ONCE // len(self._costs))
        for part, w in zip(rows.split(size), weight.split(size), strict=True):
            q, entropy = exact_posteriors(self._costs, self._temperature, part.x)
            q.mul_(w[:, None])
            self.counts += q.sum(0)
            self.sums.addmm_(q.T, part.double())
            self.entropy += float(torch.dot(w, entropy))

    def without_doubtful(
        self, assign: SoftAssignment, tiles: Iterable[tuple[RowTile, Tensor]]
    ) -> Iterator[tuple[RowTile, Tensor]]:
        """Yield tiles and their rows' weights; doubtful rows are added here, and are rows at the origin of weight 0."""
        for rows, weight in tiles:
            doubtful = assign.doubtful(rows.z)
            if not bool(doubtful.any()):
                yield rows, weight
                continue
            self.add(rows.some(doubtful), weight[doubtful])
            if not bool(doubtful.all()):
                yield rows.without(doubtful), weight.masked_fill(doubtful, 0.0)
