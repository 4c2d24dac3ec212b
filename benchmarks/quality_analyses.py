"""Sensitivity and initialisation: two of the three analyses of Jabi et al. (arXiv 1810.04246).

The third, convergence, needs no further fits: `Result.objective` has each fit's course.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quality_data import DataSet
from quality_methods import Budget, Method, result

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
BALANCES = (0.0, 0.3, 0.6, 0.9, 1.0)
SENSITIVITY_SEEDS = 2

SEEDINGS = ("k-means||", "k-means++", "random")
RESTARTS = (1, 4)
INITIALISED = {"kmeans": SEEDINGS, "sr-kmeans": SEEDINGS, "sklearn.KMeans": ("k-means++", "random")}


@dataclass(frozen=True)
class Setting:
    """What sr-kmeans reached at one temperature (a fraction of T_c; lambda = T / K) and balance, a value a seed."""

    fraction: float
    balance: float
    lam: float
    acc: list[float]
    objective: list[float]
    marginal_entropy: list[float]


@dataclass(frozen=True)
class Seeded:
    """What a method reached from one seeding with so many restarts, a value a seed."""

    method: str
    init: str
    n_init: int
    inertia: list[float]
    acc: list[float]


def sensitivity(data: DataSet, budget: Budget, tell: Callable[[str], None]) -> list[Setting]:
    """Fit sr-kmeans at every temperature and balance."""
    settings = []
    for fraction in FRACTIONS:
        for balance in BALANCES:
            method = Method.parse(f"sr-kmeans:temperature={fraction:g}Tc,balance={balance:g}")
            runs = [result(method, data, seed, budget) for seed in range(SENSITIVITY_SEEDS)]
            settings.append(
                Setting(
                    fraction,
                    balance,
                    lam=runs[0].temperature / data.clusters,
                    acc=[run.acc for run in runs],
                    objective=[run.objective[-1] for run in runs],
                    marginal_entropy=[run.marginal_entropy for run in runs],
                )
            )
        tell(f"{data.name}: sensitivity at {fraction:g} T_c")
    return settings


def initialisation(data: DataSet, budget: Budget, tell: Callable[[str], None]) -> list[Seeded]:
    """Fit from every seeding, with one and with several restarts."""
    fits = []
    for name, seedings in INITIALISED.items():
        for init in seedings:
            for n_init in RESTARTS:
                method = replace(Method.parse(name), options={"init": init, "n_init": n_init})
                runs = [result(method, data, seed, budget) for seed in range(budget.seeds)]
                fits.append(Seeded(name, init, n_init, [run.inertia for run in runs], [run.acc for run in runs]))
        tell(f"{data.name}: initialisation of {name}")
    return fits
