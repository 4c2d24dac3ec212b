"""What determines the clusters of given features."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from raydkm.config.base import Frozen, number

_FRACTION_OF_TC = re.compile(r"(?P<fraction>[0-9.eE+-]+)\s*\*?\s*Tc")


class Problem(Frozen):
    """What is sought, and from where; a fit and a plan of it share this."""

    clusters: int = Field(8, ge=1, description="Number of clusters K.")
    objective: str = Field(
        "sr-kmeans",
        description="Objective: hard (kmeans), soft (soft-kmeans), soft and regularised (sr-kmeans); with logistic "
        "posteriors mi (mutual information), kl (DEPICT), tim, sinkhorn (self-labelling).",
    )
    init: Literal["k-means||", "k-means++", "afk-mc2", "random", "array"] = Field(
        "k-means||",
        description="Seeding: k-means||, k-means++, afk-mc2, random, the path of an .npy file of prototypes (K, d), or "
        "of a model to go on from.",
    )
    n_init: int = Field(4, ge=1, description="Seeded restarts on the seeding sample; the best goes on to all rows.")
    seed_rows: int | Literal["all"] | None = Field(
        None,
        description="Rows in the seeding sample (default: 32 K, at least 32768, at most all rows); or all: k-means|| "
        "and k-means++ draw from every row, in 7 or K passes for each of n_init restarts.",
    )

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, name: str) -> str:
        from raydkm.objectives import OBJECTIVES  # here, for `raydkm --help` need not import torch

        if name not in OBJECTIVES:
            raise ValueError(f"must be one of {', '.join(OBJECTIVES)}")
        return name

    @field_validator("seed_rows", mode="before")
    @classmethod
    def _number_or_all(cls, value: Any) -> Any:
        if value is None or value == "all":
            return value
        if not re.fullmatch(r"0*[1-9][0-9]*", str(value)):
            raise ValueError("must be a positive number of rows, or all")
        return int(value)


class FitConfig(Problem):
    """What determines the result of a fit."""

    column: str | None = Field(
        None, description="Feature column (list of numbers), or scalar columns joined as one vector: a,b,c."
    )
    weight: str | None = Field(None, description="Column of non-negative row weights.")
    metric: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="euclidean, or cosine: every row is scaled to unit length first."
    )
    spherical: bool = Field(
        False,
        description="Prototypes of unit length, as rows of metric cosine are: spherical k-means, hard or soft. "
        "temperature auto then is 1.3 sqrt(2 T_c / K), and annealing begins at four times T.",
    )
    temperature: float | str = Field(
        "auto",
        description="Softness T: auto, a number (units of squared distance), or a fraction of the collapse "
        "temperature such as 0.25Tc; auto is 0.1Tc. Logistic objectives have their first targets of it, and lambda; "
        "auto then is half of 2 lambda_max of the covariance within the clusters that they begin at.",
    )
    lam: float | None = Field(
        None,
        gt=0,
        description="The paper's regularisation lambda: in place of a temperature, T = lambda K; of logistic "
        "objectives their own (default: T / K, of kl a thousandth of it).",
    )
    balance: float = Field(
        0.0, ge=0, le=1, description="Strength beta of the pull towards equal cluster sizes: 0 none, 1 exactly equal."
    )
    marginal: tuple[float, ...] | None = Field(
        None,
        description="Shares that clusters are pulled towards, of any sum: K numbers, or the path of a file with them "
        "(.npy, .json or text); with balance or sinkhorn (default: equal ones).",
    )
    min_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Least share of the weight that a cluster may have: of soft objectives by its posteriors, so the "
        "shares of the labels may be outside.",
    )
    max_share: float = Field(
        1.0, gt=0, le=1, description="Largest share of the weight that a cluster may have, as for min_share."
    )
    l1: float = Field(1.0, ge=0, description="tim: weight of the balance term.")
    l2: float = Field(1.0, ge=0, description="tim: weight of the conditional entropy.")
    l3: float = Field(1.0, gt=0, description="tim: weight of the cross entropy of targets and posteriors.")
    anneal: int = Field(
        0, ge=0, description="Steps in which T falls from 0.9 T_c to the temperature (soft-kmeans, sr-kmeans)."
    )
    empty: Literal["split", "farthest", "keep"] = Field(
        "split",
        description="Prototypes that lose all rows: split (of kmeans moved beside that of the largest cluster, and "
        "where they gain no row there to a farthest row), farthest (to the rows farthest from their prototypes, found "
        "in one more pass) or keep (as they are).",
    )
    max_steps: int = Field(300, ge=1, description="Most ADM steps.")
    max_time: float | None = Field(
        None, gt=0, description="Seconds after which no further step is begun; of a run that goes on, since it did."
    )
    tol: float = Field(
        1e-4,
        ge=0,
        description="Stop when the prototypes' squared shift falls to tol times the mean column variance "
        "(kmeans, soft-kmeans, sr-kmeans).",
    )
    objective_tol: float | None = Field(
        None,
        ge=0,
        description="Stop when the objective changes by less than this part of it in a step (default: 1e-6 for "
        "logistic objectives, which have no other rule, else 0).",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw.")
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Of matrix products. Hard assignments are screened in it and decided exactly, so that labels are "
        "the same: fp32, bf16 or int8; auto: the fastest here. Soft steps are fp32, on AMX of "
        "parts in bf16 unless fp32 is asked for; with bf16 their sums are bf16.",
    )

    assignment: Literal["auto", "exact", "approximate"] = Field(
        "auto",
        description="Labels of kmeans in its steps: exact; approximate: the best of the most promising prototypes, "
        "without balance; auto: approximate from 131,072 clusters on, on a CPU and without balance. "
        "The last are exact.",
    )
    max_miss: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Share of the sampled rows to which an approximate assignment may give another label than an exact "
        "one; above it the next steps look farther, and at last are exact.",
    )
    device: str = Field("auto", description="auto (GPU where there is one), cpu, cuda or cuda:N.")

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("must be auto, cpu, cuda or cuda:N")
        return device

    @field_validator("temperature", mode="before")
    @classmethod
    def _readable_temperature(cls, value: Any) -> float | str:
        if value == "auto":
            return "auto"
        if isinstance(value, str) and (match := _FRACTION_OF_TC.fullmatch(value.strip())):
            fraction = number(match["fraction"])
            if fraction is not None and fraction > 0:
                return f"{fraction:g}Tc"
        elif (found := number(value)) is not None and found > 0:
            return found
        raise ValueError("must be auto, a positive number, or a positive fraction of T_c such as 0.1Tc")

    @model_validator(mode="after")
    def _one_softness(self) -> FitConfig:
        if self.lam is not None and self.temperature != "auto" and self._is_distance:
            raise ValueError("give temperature or lam, not both: T = lam * clusters")
        softness_given = self.lam is not None or self.temperature != "auto"
        if softness_given and not self.has_temperature:
            raise ValueError(f"{self.objective} has no temperature unless balance > 0; use a soft objective")
        return self

    @field_validator("marginal", mode="before")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        if value is None:
            return None
        shares = np.asarray(value, dtype=np.float64)
        if shares.ndim != 1 or not (np.isfinite(shares).all() and (shares > 0).all()):
            raise ValueError("must be K positive numbers")
        return tuple((shares / shares.sum()).tolist())

    @model_validator(mode="after")
    def _one_way_of_balance(self) -> FitConfig:
        from raydkm.objectives import OBJECTIVES

        distance, bounded = self._is_distance, self.bounded
        if not distance and (self.balance > 0 or bounded):
            raise ValueError(f"{self.objective} has its own balance; for another strength use tim with l1")
        if bounded and self.balance > 0:
            raise ValueError("give balance, or min_share and max_share, not both")
        if self.min_share * self.clusters > 1 + 1e-9 or self.max_share * self.clusters < 1 - 1e-9:
            raise ValueError(f"min_share and max_share: no {self.clusters} shares within them sum to 1")
        if self.marginal is not None:
            if len(self.marginal) != self.clusters:
                raise ValueError(f"marginal: {len(self.marginal)} shares for {self.clusters} clusters")
            if distance and not self.balance:
                raise ValueError("marginal: give balance, the strength of the pull towards it")
            if self.objective == "tim" and not self.l1:
                raise ValueError("marginal: give l1, the weight of the pull towards it")
        used = {"tim": "", "sinkhorn": "l1"}.get(self.objective, "l1 l2 l3")
        if any(getattr(self, name) != 1 for name in used.split()):
            raise ValueError(f"{self.objective} has its own {used.replace(' ', ', ')}; use tim")
        if self.spherical and (not distance or self.metric != "cosine"):
            raise ValueError("spherical goes with metric cosine, and kmeans, soft-kmeans or sr-kmeans")
        if self.anneal and (not distance or OBJECTIVES[self.objective].hard):
            raise ValueError("anneal goes with soft-kmeans and sr-kmeans")
        if self.anneal >= self.max_steps:
            raise ValueError(f"anneal: {self.anneal} steps do not end before max_steps = {self.max_steps}")
        if not distance and self.empty != "split":
            raise ValueError(f"empty: {self.objective} has no prototypes that could lose their rows")
        return self

    @model_validator(mode="after")
    def _one_way_of_assignment(self) -> FitConfig:
        if self.assignment == "approximate" and not self._may_approximate:
            raise ValueError("assignment: approximate goes with kmeans, without balance, min_share and max_share")
        if self.max_miss != type(self).model_fields["max_miss"].default and not self.approximate:
            raise ValueError("max_miss goes with an approximate assignment: of kmeans, with many clusters or asked for")
        return self

    @property
    def approximate(self) -> bool:
        """Whether labels of the steps are approximate, on a CPU."""
        from raydkm.ops.approximate import MANY_PROTOTYPES

        many = self.clusters >= MANY_PROTOTYPES and self._may_approximate
        return many if self.assignment == "auto" else self.assignment == "approximate"

    @property
    def _may_approximate(self) -> bool:
        from raydkm.objectives import OBJECTIVES

        return OBJECTIVES[self.objective].hard and not self.balance and not self.bounded

    @property
    def bounded(self) -> bool:
        """Whether the clusters' shares have bounds."""
        return self.min_share > 0 or self.max_share < 1

    @property
    def _is_distance(self) -> bool:
        from raydkm.objectives import OBJECTIVES
        from raydkm.objectives.distance import DistanceObjective

        return issubclass(OBJECTIVES[self.objective], DistanceObjective)

    @property
    def has_temperature(self) -> bool:
        """Whether the objective has a temperature: soft ones do, hard ones only as the price scale of the balance."""
        from raydkm.objectives import OBJECTIVES

        return self.balance > 0 or self.bounded or not OBJECTIVES[self.objective].hard

    def fraction_of_tc(self) -> float | None:
        """The temperature as a fraction of T_c, or None where it is absolute or automatic."""
        match = _FRACTION_OF_TC.fullmatch(str(self.temperature))
        return float(match["fraction"]) if match else None
