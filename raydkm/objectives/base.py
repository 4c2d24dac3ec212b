"""What every objective offers to the ADM loop.

An ADM step is ``statistics = sum over batches of objective.e_step(state)`` (the targets q, given the model)
followed by ``state, terms = objective.update(state, statistics)`` (the model, given the targets).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

from torch import Tensor

from raydkm.ops.exact import Field, Statistics
from raydkm.ops.statistics import Local


@dataclass(frozen=True)
class State:
    """Everything that changes from step to step.

    Parameters
    ----------
    step : int
        ADM steps done.
    prototypes : Tensor (K, d) of float64
        theta', in the coordinates of the frame.
    log_s : Tensor (K,) of float64
        Logarithms of the balance scalings; zero without balance.
    """

    step: int
    prototypes: Tensor
    log_s: Tensor


@dataclass(frozen=True)
class Terms:
    """What one step reached: the objective and what it is made of. Entropies are in nats.

    `objective` belongs to the targets of this step and the prototypes updated from them.
    """

    objective: float
    distortion: float  # weighted mean of sum_k q_ik ||z_i - theta'_k||^2
    posterior_entropy: float  # weighted mean over rows
    marginal_entropy: float  # of the cluster shares
    shift: float  # Euclidean norm of the change of all prototypes
    balance_residual: float  # largest change of a log s_k; 0 without balance
    smallest: float  # weight of the smallest cluster, sum_i w_i q_ik
    largest: float
    relocated: int  # empty clusters moved beside the largest ones
    settled: bool  # the stopping rule is met

    def asdict(self) -> dict[str, float | int | bool]:
        return asdict(self)


class Objective(ABC):
    """The two steps of the alternating direction method."""

    fields: tuple[Field, ...]

    @abstractmethod
    def e_step(self, state: State) -> Local:
        """Return the closure that adds one batch's statistics under the targets of `state`."""

    @abstractmethod
    def update(self, state: State, statistics: Statistics) -> tuple[State, Terms]:
        """M-step, balance sweep and repair, from the statistics of all rows."""
