"""The distance family: a_ik = -||z_i - theta'_k||^2 / T, prototypes are weighted means.

A member states its loss, and whether targets are hard; everything else is shared.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from raydkm.objectives.base import Objective, PassOver, Setting, State, Terms
from raydkm.ops import balance
from raydkm.ops.approximate import EFFORTS, MISS_FIELDS, approximate_statistics
from raydkm.ops.cost import Costs
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.health import change, duplicates, same_at
from raydkm.ops.last import LastPass
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import (
    Local,
    cluster_fields,
    distances_within,
    hard_statistics,
    soft_distances_within,
    soft_statistics,
)

#: The distortion is the second moment less that of the clusters' means. Where it is less than this part of the latter,
#: too few digits are left, and it is summed from differences.
CANCELLED = 2.0**-16

#: Where shares are held to what is asked, prototypes wait while a scaling changes by more than this in a sweep, but not
#: for longer than some steps. Else means that jump and scalings that lag behind drive each other in circles.
HELD_TOLERANCE = 0.1
MOVE_EVERY = 5


class DistanceObjective(Objective):
    """Soft or hard k-means with an optional balance term."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._fields = cluster_fields(setting.clusters, setting.moments.bounds)

    @abstractmethod
    def loss(self, distortion: float, entropy: float, imbalance: float, temperature: float) -> float:
        """The objective but for its constant, from mean distortion, mean posterior entropy and gamma KL(q_hat || u)."""

    def constant(self, temperature: float) -> float:
        """What the objective has besides the loss; it does not change with the targets or the prototypes."""
        return 0.0

    @property
    def second_moment(self) -> float:
        """(1/N) sum w ||z||^2."""
        return self.setting.moments.square / self.setting.moments.weight

    @property
    def settled_shift(self) -> float:
        return math.sqrt(self.setting.tol * self.setting.moments.column_variance)

    def begin(self, prototypes: Tensor) -> State:
        return State.at(self.setting.frame.on_sphere(prototypes, prototypes) if self.setting.spherical else prototypes)

    def fields(self, state: State) -> tuple[Field, ...]:
        return (*self._fields, *MISS_FIELDS) if self.approximates(state) else self._fields

    def approximates(self, state: State) -> bool:
        """Whether the next assignment is approximate."""
        return self.setting.approximate and state.effort < len(EFFORTS)

    def scores(self, state: State) -> Scores:
        temperature = self.temperature_at(state.step)
        return Scores.of(state.prototypes, state.log_s, temperature, self.setting.frame, self.setting.device)

    @property
    def remembers(self) -> bool:
        return self.hard and self.setting.device.type == "cpu"

    def e_step(self, state: State, last: LastPass | None = None) -> Local:
        frame = self.setting.frame
        if last is not None and self.approximates(state):
            last.forget()
        if self.approximates(state):
            part, rows = EFFORTS[state.effort], self.setting.moments.rows
            return approximate_statistics(self.scores(state), frame, part, rows, precision=self.setting.precision)
        if self.hard:
            setting = self.setting
            return hard_statistics(
                self.scores(state), frame, precision=setting.precision, directions=setting.directions, last=last
            )
        bound, precision = self.setting.moments.bound, self.setting.precision
        return soft_statistics(self.scores(state), frame, bound=bound, precision=precision)

    def update(
        self, state: State, statistics: Statistics, passes: PassOver | None = None, last: LastPass | None = None
    ) -> tuple[State, Terms]:
        setting, moments = self.setting, self.setting.moments
        counts, sums = statistics["counts"].cpu(), statistics["sums"].cpu()
        alive = counts > 0
        means = sums.div_(counts.where(alive, torch.ones_like(counts))[:, None])
        lengths = torch.linalg.vector_norm(means, dim=1)
        between = float(counts @ lengths.square())
        within = moments.square - between
        if passes is not None and within < CANCELLED * between and not self.approximates(state):
            within = self._summed_within(state, means, float(lengths.max()), passes, last)
        entropy = float(statistics["entropy"]) / moments.weight
        prototypes = means
        if setting.spherical:  # of all of unit length these have the least distortion (Dhillon and Modha 2001)
            prototypes = setting.frame.on_sphere(means, state.prototypes)
            within += float(counts @ (prototypes - means).square().sum(1))
        empty, donors = self._donors(counts)
        split = self._split(state.shares, counts)[empty]
        if len(empty):
            prototypes = torch.where(alive[:, None], prototypes, state.prototypes)
            beside = prototypes[donors[split]] + self._nudge(means.shape[1])
            prototypes[empty[split]] = setting.frame.on_sphere(beside, beside) if setting.spherical else beside
        log_s, residual = state.log_s, 0.0
        if self.balance.active:
            log_s = self.balance.sweep(state.log_s, counts)
            if setting.empty != "keep":
                log_s[empty] = log_s[donors]
            residual = float((log_s - state.log_s).abs().max())
            waits = self.balance.held and residual > HELD_TOLERANCE and (state.step + 1) % MOVE_EVERY > 0
            if waits and bool(alive.all()):
                within += float(counts @ ((state.prototypes - means).square() - (prototypes - means).square()).sum(1))
                prototypes = state.prototypes
        shift = change(state.prototypes, prototypes)
        missed = float(statistics["missed"] / statistics["sampled"]) if self.approximates(state) else None
        effort = state.effort + (missed is not None and missed > setting.max_miss)

        distortion = max(0.0, within) / moments.weight
        temperature = self.temperature_at(state.step)
        objective = self.loss(distortion, entropy, self.balance.term(counts), temperature)
        settled = self._settled(state, objective, residual, shift=shift**2 <= setting.tol * moments.column_variance)
        relocated = int(split.sum())
        terms = Terms(
            objective=objective + self.constant(temperature),
            distortion=distortion,
            cross_entropy=None,
            penalty=None,
            temperature=temperature,
            posterior_entropy=entropy,
            marginal_entropy=math.log(len(counts)) - balance.divergence(counts),
            shift=shift,
            balance_residual=residual,
            smallest=float(counts.min()),
            largest=float(counts.max()),
            relocated=relocated,
            duplicates=duplicates(prototypes, same_at(0.0 if self.hard else temperature, moments.column_variance)),
            settled=None if relocated or effort > state.effort else settled,
            effort=None if missed is None else state.effort,
            miss_rate=missed,
        )
        shares = counts / moments.weight
        return State(state.step + 1, prototypes, state.bias, log_s, shares, objective, effort), terms

    def _summed_within(
        self, state: State, means: Tensor, farthest: float, passes: PassOver, last: LastPass | None
    ) -> float:
        """sum_i w_i sum_k q_ik ||u_i - mean_k||^2, from differences, with the targets of `state`; one more pass."""
        setting, scores = self.setting, self.scores(state)
        frame, zero = setting.frame, torch.zeros(len(means), dtype=torch.float64)
        about = Costs(means, zero, frame.shift, unit=frame.unit)
        if self.hard:
            local = distances_within(scores, frame, about, precision=setting.precision, last=last)
        else:
            local = soft_distances_within(scores, frame, about)
        return float(passes(setting.moments.bounds.within_clusters(farthest), local)["within"])

    def lost(self, before: Tensor, counts: Tensor) -> Tensor:
        if self.setting.empty == "keep":
            return super().lost(before, counts)
        return ((counts == 0) & ~self._split(before, counts)).nonzero()[:, 0]

    def _split(self, before: Tensor, counts: Tensor) -> Tensor:
        """Mask (K,) of the clusters that `update` places beside a large one, which takes no pass.

        The next step shows whether they gain rows there. Soft clusters always do: two prototypes may share all rows
        alike and never part.
        """
        tried = self.hard and self.setting.empty == "split"
        return (counts == 0) & (before > 0) & tried

    def _donors(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Empty clusters (m,), and for each in turn the next largest cluster (m,).

        Moving a prototype without rows cannot raise the loss.
        """
        empty = (counts == 0).nonzero()[:, 0]
        largest = torch.sort(counts, descending=True, stable=True).indices
        return empty, largest[torch.arange(len(empty)) % (len(counts) - len(empty))]

    def _nudge(self, dim: int) -> Tensor:
        signs = 1 - 2 * (torch.arange(dim) % 2)
        return 2.0**-10 * math.sqrt(self.setting.moments.column_variance) * signs.double()
