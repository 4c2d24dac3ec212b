"""The distance family: a_ik = -||z_i - theta'_k||^2 / T, prototypes are weighted means.

A member states its loss, and whether targets are hard; everything else is shared.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from raydkm.objectives.base import Objective, State, Terms
from raydkm.ops import balance
from raydkm.ops.exact import Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.hard import has_bf16_units
from raydkm.ops.moments import Moments
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import Local, cluster_fields, hard_statistics, soft_statistics

#: A balanced fit has settled when no scaling changes by more than this in a step.
BALANCE_TOLERANCE = 0.01


class DistanceObjective(Objective):
    """Soft or hard k-means with an optional balance term.

    Parameters
    ----------
    clusters : int
    temperature : float
        T, absolute, in units of squared distance; for a hard objective only the price scale of the balance term.
    beta : float
        Balance strength in [0, 1].
    moments : Moments
    frame : Frame
    tol : float
        Stopping tolerance, as in scikit-learn's KMeans: relative to the mean column variance.
    precision : {"auto", "fp32", "bf16"}
    device : torch.device
    """

    hard: ClassVar[bool] = False

    def __init__(
        self,
        *,
        clusters: int,
        temperature: float,
        beta: float,
        moments: Moments,
        frame: Frame,
        tol: float,
        precision: str,
        device: torch.device,
    ):
        self.temperature = temperature
        self._beta = beta
        self._moments = moments
        self._frame = frame
        self._tol = tol
        self._device = device
        self.screen = precision == "bf16" or (precision == "auto" and has_bf16_units(device))
        self._low_precision_sums = precision == "bf16"
        self.fields = cluster_fields(clusters, moments.rows, moments.max_weight, moments.bound, hard=self.hard)

    @abstractmethod
    def loss(self, distortion: float, entropy: float, imbalance: float) -> float:
        """The objective, from mean distortion, mean posterior entropy and gamma KL(q_hat || u)."""

    @property
    def second_moment(self) -> float:
        """(1/N) sum w ||z||^2."""
        return self._moments.square / self._moments.weight

    @property
    def settled_shift(self) -> float:
        """The shift of the prototypes at which a fit has settled."""
        return math.sqrt(self._tol * self._moments.column_variance)

    def scores(self, state: State) -> Scores:
        return Scores.of(state.prototypes, state.log_s, self.temperature, self._frame.dtype, self._device)

    def e_step(self, state: State) -> Local:
        if self.hard:
            return hard_statistics(self.scores(state), self._frame, screen=self.screen)
        return soft_statistics(self.scores(state), self._frame, low_precision_sums=self._low_precision_sums)

    def update(self, state: State, statistics: Statistics) -> tuple[State, Terms]:
        counts, sums = statistics["counts"].cpu(), statistics["sums"].cpu()
        weight = self._moments.weight
        alive = counts > 0
        means = sums / counts.where(alive, torch.ones_like(counts))[:, None]
        distortion = max(0.0, self._moments.square - float(counts @ means.square().sum(1))) / weight
        entropy = float(statistics["entropy"]) / weight
        empty, donors = self._relocation(counts)
        prototypes = means.index_copy(0, empty, means[donors] + self._nudge(means.shape[1]))
        shift = torch.linalg.vector_norm(prototypes - state.prototypes).item()

        log_s, imbalance, residual = state.log_s, 0.0, 0.0
        kl = balance.divergence(counts)
        if self._beta > 0:
            log_s = balance.sweep(state.log_s, counts, self._beta)
            log_s[empty] = log_s[donors]
            residual = float((log_s - state.log_s).abs().max())
            imbalance = balance.strength(self._beta) * kl if self._beta < 1 else 0.0

        terms = Terms(
            objective=self.loss(distortion, entropy, imbalance),
            distortion=distortion,
            posterior_entropy=entropy,
            marginal_entropy=math.log(len(counts)) - kl,
            shift=shift,
            balance_residual=residual,
            smallest=float(counts.min()),
            largest=float(counts.max()),
            relocated=len(empty),
            settled=shift**2 <= self._tol * self._moments.column_variance and residual <= BALANCE_TOLERANCE,
        )
        return State(state.step + 1, prototypes, log_s), terms

    def _relocation(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Empty clusters, and for each in turn the next largest cluster, beside whose prototype it is placed.

        Moving a prototype without rows cannot raise the loss, and the next step shares the rows between the two.
        """
        empty = (counts == 0).nonzero()[:, 0]
        largest = torch.sort(counts, descending=True, stable=True).indices
        return empty, largest[torch.arange(len(empty)) % (len(counts) - len(empty))]

    def _nudge(self, dim: int) -> Tensor:
        return 2.0**-10 * math.sqrt(self._moments.column_variance) * (1 - 2 * (torch.arange(dim) % 2)).double()
