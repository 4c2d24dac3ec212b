"""What every objective offers to the ADM loop.

An ADM step is ``statistics = sum over batches of objective.e_step(state)`` (the targets q, given the model)
followed by ``state, terms = objective.update(state, statistics)`` (the model, given the targets).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from raydkm.ops.balance import Balance
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.last import LastPass
from raydkm.ops.leading import Directions
from raydkm.ops.moments import Moments
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import Local

#: A balanced fit has settled when no scaling changes by more than this in a step.
BALANCE_TOLERANCE = 0.01


#: Sums some fields over all rows.
PassOver = Callable[[tuple[Field, ...], Local], Statistics]


@dataclass(frozen=True)
class State:
    """Everything that changes from step to step, in the coordinates of the frame.

    Parameters
    ----------
    step : int
        ADM steps done.
    prototypes : Tensor (K, d) of float64
        theta'; in the logistic family theta.
    bias : Tensor (K,) of float64
        b of the logistic family; else zero.
    log_s : Tensor (K,) of float64
        Logarithms of the balance scalings; zero without balance.
    shares : Tensor (K,) of float64
        q_hat of the last step; equal before the first.
    objective : float
        What the last step reached, but for a constant of the data; infinite before the first.
    effort : int
        Of an approximate assignment: a level of `raydkm.ops.approximate.EFFORTS`, or the one after, which is exact.
    """

    step: int
    prototypes: Tensor
    bias: Tensor
    log_s: Tensor
    shares: Tensor
    objective: float = math.inf
    effort: int = 0

    @classmethod
    def at(cls, prototypes: Tensor, bias: Tensor | None = None) -> State:
        log_s = torch.zeros(len(prototypes), dtype=torch.float64)
        shares = torch.full_like(log_s, 1 / len(prototypes))
        return cls(0, prototypes, torch.zeros_like(log_s) if bias is None else bias, log_s, shares)


@dataclass(frozen=True)
class Terms:
    """What one step reached: the objective and what it is made of. Entropies are in nats.

    In the distance family `objective` belongs to the targets of this step and the prototypes after it, in the
    logistic family to the targets and the model that they were computed from.
    """

    objective: float
    distortion: float | None  # weighted mean of sum_k q_ik ||z_i - theta'_k||^2; distance family
    cross_entropy: float | None  # weighted mean of -sum_k q_ik log p_ik; logistic family
    penalty: float | None  # lambda sum_k ||theta_k||^2; logistic family
    temperature: float  # T of this step
    posterior_entropy: float  # weighted mean over rows, of q
    marginal_entropy: float  # of the cluster shares
    shift: float  # Euclidean norm of the change of all prototypes
    balance_residual: float  # largest change of a log s_k; 0 without balance
    smallest: float  # weight of the smallest cluster, sum_i w_i q_ik
    largest: float
    relocated: int  # empty clusters moved elsewhere
    duplicates: int  # prototypes that are the same as another one
    settled: str | None  # the stopping rule that is met: "shift" or "objective"
    effort: int | None = None  # level of an approximate assignment; None of an exact one
    miss_rate: float | None = None  # share of the sampled rows that it gave another label than an exact one

    def asdict(self) -> dict[str, float | int | str | None]:
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What all objectives are made from.

    Parameters
    ----------
    clusters : int
    temperature : float
        T, absolute, in units of squared distance; for a hard objective only the price scale of the balance term, in
        the logistic family that of the first targets.
    moments : Moments
    frame : Frame
    balance : Balance
        Of the distance family and of `sinkhorn`.
    weights : tuple of float
        (l1, l2, l3) of `tim`, of which `sinkhorn` takes l2 and l3.
    lam : float, optional
        lambda of the logistic family; by default it follows from T.
    tol : float
        Tolerance of the shift, as in scikit-learn's KMeans: relative to the mean column variance.
    objective_tol : float, optional
        Tolerance of the objective's relative change in a step; by default that of the family.
    hot : float
        Temperature at which annealing begins.
    anneal : int
        Steps in which T falls geometrically from `hot` to `temperature`.
    spherical : bool
        Whether prototypes have unit length.
    empty : {"split", "farthest", "keep"}
        What becomes of prototypes without rows.
    precision : {"auto", "fp32", "bf16", "int8"}
    approximate : bool
        Whether a hard objective assigns approximately, while it misses no more than `max_miss` of the sampled rows.
    max_miss : float
    device : torch.device
    directions : Directions, optional
        Of the rows, for hard assignments; see `raydkm.ops.hard.HardAssignment`.
    """

    clusters: int
    temperature: float
    moments: Moments
    frame: Frame
    balance: Balance = field(default_factory=Balance)
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lam: float | None = None
    tol: float = 0.0
    objective_tol: float | None = None
    hot: float = 0.0
    anneal: int = 0
    spherical: bool = False
    empty: str = "split"
    precision: str = "auto"
    approximate: bool = False
    max_miss: float = 0.01
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    directions: Directions | None = None


class Objective(ABC):
    """The two steps of the alternating direction method."""

    hard: ClassVar[bool] = False
    needs_covariance: ClassVar[bool] = False
    objective_tol: ClassVar[float] = 0.0  # by default

    def __init__(self, setting: Setting):
        self.setting = setting
        self.balance = setting.balance

    @abstractmethod
    def begin(self, prototypes: Tensor) -> State:
        """The state at initial prototypes (K, d) of float64, in the coordinates of the frame."""

    @abstractmethod
    def fields(self, state: State) -> tuple[Field, ...]:
        """What `e_step` sums."""

    @property
    def remembers(self) -> bool:
        """Whether `e_step` makes use of the last pass."""
        return False

    @abstractmethod
    def e_step(self, state: State, last: LastPass | None = None) -> Local:
        """Return the closure that adds one batch's statistics under the targets of `state`.

        Where the objective `remembers`, and it is given the last pass over the same rows, its sums are only of what
        has changed.
        """

    @abstractmethod
    def update(
        self, state: State, statistics: Statistics, passes: PassOver | None = None, last: LastPass | None = None
    ) -> tuple[State, Terms]:
        """M-step, balance sweep and repair, from the statistics of all rows.

        Where these are too coarse for the objective's value, `passes` goes over the rows once more, of which `last` is
        the last pass.
        """

    def lost(self, before: Tensor, counts: Tensor) -> Tensor:
        """Clusters (m,) without rows that a pass is to find rows for.

        Parameters
        ----------
        before, counts : Tensor (K,)
            Weights or shares of the clusters in the step before, and in this one.
        """
        return torch.empty(0, dtype=torch.int64)

    def sweep(self, state: State, statistics: Statistics) -> tuple[State, float]:
        """The state with the scalings alone moved on, and the largest change of a log s_k."""
        log_s = self.balance.sweep(state.log_s, statistics["counts"].cpu())
        return replace(state, log_s=log_s), float((log_s - state.log_s).abs().max())

    @abstractmethod
    def scores(self, state: State) -> Scores:
        """The linear form whose largest value is a row's cluster."""

    @property
    def settled_shift(self) -> float:
        """The shift of the prototypes at which a fit has settled; 0 where it is not judged by it."""
        return 0.0

    def temperature_at(self, step: int) -> float:
        """T of a step: on the way from `hot` down to the temperature, geometrically, in `anneal` steps."""
        setting = self.setting
        if step >= setting.anneal:
            return setting.temperature
        return setting.hot * (setting.temperature / setting.hot) ** (step / setting.anneal)

    def _settled(self, state: State, objective: float, residual: float, *, shift: bool) -> str | None:
        """The stopping rule that a step meets, given whether its shift is small enough."""
        if state.step <= self.setting.anneal > 0 or residual > BALANCE_TOLERANCE:
            return None
        if shift:
            return "shift"
        tol = self.objective_tol if self.setting.objective_tol is None else self.setting.objective_tol
        return "objective" if abs(objective - state.objective) < tol * abs(objective) else None
