"""Tables of the quality benchmark, as Markdown and as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from quality_analyses import Seeded, Setting
from quality_methods import Outcome, Result

NOTES = (
    "Mean ± standard deviation (n − 1) over the seeds. Inertia: sum of squared distances to the mean of the row's "
    "cluster, over the least that any method found. Marginal entropy: of the cluster sizes, in nats; equal sizes have "
    "log K. Duplicates: prototypes within 2^-12 of the spread of the data from another one; those of mi, kl, tim and "
    "sinkhorn are means of "
    "rows, which are all the same of empty clusters. Sizes: mean of the smallest and of the largest cluster. An "
    "asterisk: at least one fit took all the steps allowed."
)


@dataclass(frozen=True)
class SetReport:
    """What was found on one data set."""

    name: str
    described: str
    clusters: int
    outcomes: dict[str, Outcome]
    sensitivity: list[Setting] = field(default_factory=list)
    initialisation: list[Seeded] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """Cells as text. A row of fewer cells than there are headers has one that spans the rest."""

    headers: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """One line a row, cells apart by bars."""
        full = [row + [""] * (len(self.headers) - len(row)) for row in self.rows]
        lines = [self.headers, ["---"] * len(self.headers), *full]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def html(self) -> str:
        """A plain table whose first column names the rows."""
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in self.headers)
        body = "\n".join(f"<tr>{self._cells(row)}</tr>" for row in self.rows)
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def _cells(self, row: list[str]) -> str:
        first, *rest = (html.escape(cell) for cell in row)
        span = len(self.headers) - len(rest)
        cells = [f"<td>{cell}</td>" for cell in rest]
        if span > 1:
            cells[-1] = f'<td class="why" colspan="{span}">{rest[-1]}</td>'
        return f'<th scope="row">{first}</th>' + "".join(cells)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation, of one value the value alone."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def best_inertia(outcomes: dict[str, Outcome]) -> float:
    """The least inertia that any method found with any seed; NaN if there are no results."""
    found = [run.inertia for runs in outcomes.values() if not isinstance(runs, str) for run in runs]
    return min(found, default=math.nan)


def table_of_methods(outcomes: dict[str, Outcome], clusters: int, max_steps: int) -> Table:
    """One row a method."""
    headers = [
        "method",
        "ACC",
        "NMI",
        "ARI",
        "inertia / best",
        f"marginal entropy (log K = {math.log(clusters):.3f})",
        "duplicates",
        "sizes, min–max",
        "steps",
        "seconds",
    ]
    best = best_inertia(outcomes)
    rows = [
        [name, runs] if isinstance(runs, str) else [name, *_cells(runs, best, max_steps)]
        for name, runs in outcomes.items()
    ]
    return Table(headers, rows)


def _cells(runs: list[Result], best: float, max_steps: int) -> list[str]:
    def mean(key: str, digits: int) -> str:
        return spread([getattr(run, key) for run in runs], digits)

    smallest, largest = (np.mean([getattr(run, key) for run in runs]) for key in ("smallest", "largest"))
    return [
        mean("acc", 3),
        mean("nmi", 3),
        mean("ari", 3),
        spread([run.inertia / best for run in runs], 4),
        mean("marginal_entropy", 3),
        mean("duplicates", 1),
        f"{smallest:,.0f}–{largest:,.0f}",
        mean("steps", 0) + ("*" if any(run.steps >= max_steps for run in runs) else ""),
        mean("seconds", 2),
    ]


def tables_of_sensitivity(settings: list[Setting]) -> dict[str, Table]:
    """ACC, the objective reached and the marginal entropy: one row a temperature, one column a balance."""
    fractions = list(dict.fromkeys(setting.fraction for setting in settings))
    balances = list(dict.fromkeys(setting.balance for setting in settings))
    at = {(setting.fraction, setting.balance): setting for setting in settings}
    lam = {setting.fraction: setting.lam for setting in settings}
    headers = ["T / T_c", "λ = T / K", *(f"β = {balance:g}" for balance in balances)]
    quantities = {"ACC": ("acc", 3), "objective": ("objective", 3), "marginal entropy": ("marginal_entropy", 3)}
    return {
        title: Table(
            headers,
            [
                [f"{f:g}", f"{lam[f]:.3g}", *(spread(getattr(at[f, balance], key), digits) for balance in balances)]
                for f in fractions
            ],
        )
        for title, (key, digits) in quantities.items()
    }


def table_of_initialisation(fits: list[Seeded]) -> Table:
    """One row a method, seeding and number of restarts."""
    best = min(value for fit in fits for value in fit.inertia)
    rows = [
        [
            fit.method,
            fit.init,
            str(fit.n_init),
            spread([value / best for value in fit.inertia], 4),
            f"{max(fit.inertia) / best:.4f}",
            spread(fit.acc, 3),
        ]
        for fit in fits
    ]
    return Table(["method", "seeding", "n_init", "inertia / best", "worst", "ACC"], rows)
