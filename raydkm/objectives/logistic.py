"""The logistic family: p = softmax(theta z + b), targets q = softmax((1 + alpha) log p + log s).

    L = l3 (1/N) sum KL(q_i || p_i) - l2 (1/N) sum q log p + l1 KL(q_hat || u) + lambda sum ||theta_k||^2

with alpha = l2 / l3 and beta = l1 / (l1 + l3). The q-step is one sweep of the scalings s a step. The M-step is that of
Boehning (1992): the Hessian of the log-partition is at most I/2, so

    W <- W - [ (c/N) (P - Q)' Z~ + 2 lambda W ] [ (c/2N) Z~'Z~ + 2 lambda I ]^-1,    c = l2 + l3,

with Z~ = [Z, 1], W = [theta, b] and no lambda on b, never increases L; Z~'Z~ is known from the moments.

A member states l1, l2 and l3.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from raydkm.objectives.base import Objective, PassOver, Setting, State, Terms
from raydkm.ops import balance
from raydkm.ops.balance import Balance
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.health import SAME, duplicates
from raydkm.ops.last import LastPass
from raydkm.ops.logistic import logistic_fields, logistic_statistics
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import Local

Mixture: TypeAlias = tuple[float, float, float]

#: logits = (2 / T) score: at this temperature scores are logits.
OF_LOGITS = 2.0


class LogisticObjective(Objective):
    """A discriminative objective on multinomial logistic posteriors."""

    needs_covariance = True
    objective_tol = 1e-6
    ridge: ClassVar[float] = 1.0  # lambda = ridge T / K, unless it is given

    def __init__(self, setting: Setting):
        super().__init__(setting)
        l1, l2, l3 = self.mixture(setting.weights)
        self.alpha = l2 / l3
        self._c, self._entropy_weight, self._cross_weight = l2 + l3, l3, l2 + l3
        self._l1 = l1
        beta = 1.0 if math.isinf(l1) else l1 / (l1 + l3)
        self.balance = Balance(beta, setting.balance.target)
        self.lam = self.ridge * setting.temperature / setting.clusters if setting.lam is None else setting.lam

        moments = setting.moments
        assert moments.covariance is not None
        dim = len(moments.mean)
        gram = torch.empty(dim + 1, dim + 1, dtype=torch.float64)
        gram[:dim, :dim] = moments.covariance + torch.outer(moments.mean, moments.mean)
        gram[dim, :dim] = gram[:dim, dim] = moments.mean
        gram[dim, dim] = 1.0
        ridge = torch.full((dim + 1,), 2.0 * self.lam, dtype=torch.float64)
        ridge[dim] = 0.0
        self._ridge = ridge
        bound = 0.5 * self._c * gram + torch.diag(ridge)
        self._factor, singular = torch.linalg.cholesky_ex(bound)
        if singular:  # products of float32 rows are rounded; a bound that is raised a little is a bound still
            rounding = 1e-6 * bound.diagonal().mean() * torch.eye(dim + 1, dtype=torch.float64)
            self._factor = torch.linalg.cholesky(bound + rounding)
        self._unit = math.sqrt(moments.weight / max(moments.square, 1e-300))  # of theta, that of logits being 1

    @staticmethod
    @abstractmethod
    def mixture(given: Mixture) -> Mixture:
        """(l1, l2, l3), of `tim` the given ones; an infinite l1 holds the marginal to its target."""

    def begin(self, prototypes: Tensor) -> State:
        """The posterior whose targets (without scalings) are those of soft k-means at T."""
        scale = 2.0 / ((1 + self.alpha) * self.setting.temperature)
        return State.at(scale * prototypes, -0.5 * scale * prototypes.square().sum(1))

    def scores(self, state: State) -> Scores:
        """The logits of p."""
        return Scores.linear(state.prototypes, state.bias, OF_LOGITS, self.setting.frame, self.setting.device)

    def fields(self, state: State) -> tuple[Field, ...]:
        return logistic_fields(self.scores(state), self.setting.moments.bounds)

    def e_step(self, state: State, last: LastPass | None = None) -> Local:
        return logistic_statistics(self.scores(state), self.alpha, state.log_s, self.setting.frame)

    def update(
        self, state: State, statistics: Statistics, passes: PassOver | None = None, last: LastPass | None = None
    ) -> tuple[State, Terms]:
        total = self.setting.moments.weight
        counts = statistics["counts"].cpu()
        entropy, cross = float(statistics["entropy"]) / total, float(statistics["cross_entropy"]) / total
        penalty = self.lam * float(state.prototypes.square().sum())
        held = self.balance.beta == 1
        imbalance = 0.0 if held else self._l1 * balance.divergence(counts, self.balance.target)
        objective = self._cross_weight * cross - self._entropy_weight * entropy + imbalance + penalty

        log_s = self.balance.sweep(state.log_s, counts) if self.balance.active else state.log_s
        residual = float((log_s - state.log_s).abs().max())
        weights = torch.cat((state.prototypes, state.bias[:, None]), dim=1)
        excess = (statistics["posterior_counts"].cpu() - counts)[:, None]
        slope = self._c / total * torch.cat((statistics["gradient"].cpu(), excess), dim=1) + self._ridge * weights
        step = torch.cholesky_solve(slope.T, self._factor).T
        weights = weights - step
        prototypes, bias = weights[:, :-1].contiguous(), weights[:, -1].contiguous()
        terms = Terms(
            objective=objective,
            distortion=None,
            cross_entropy=cross,
            penalty=penalty,
            temperature=self.setting.temperature,
            posterior_entropy=entropy,
            marginal_entropy=math.log(len(counts)) - balance.divergence(counts),
            shift=torch.linalg.vector_norm(step[:, :-1]).item(),
            balance_residual=residual,
            smallest=float(counts.min()),
            largest=float(counts.max()),
            relocated=0,
            duplicates=duplicates(prototypes, SAME * self._unit),
            settled=self._settled(state, objective, residual, shift=False),
        )
        return State(state.step + 1, prototypes, bias, log_s, counts / total, objective), terms
