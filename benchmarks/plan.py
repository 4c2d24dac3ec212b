r"""What `raydkm plan` says of a step beside the steps of a fit, measured in the same run.

    python benchmarks/plan.py
    python benchmarks/plan.py --shapes 100000x768x4096,50000x128x64 --objectives kmeans,sr-kmeans,mi

Rates are measured (as with --calibrate) before and after each fit, and the mean of both predictions counts, for the
machine may be shared. Built in: the same without a measurement. What is printed goes into docs/scaling.md as it is.
"""

from __future__ import annotations

import os
import statistics
from typing import Annotated

import typer
from quality_tables import Table
from step_data import Shape, decaying, initial

import raydkm
from raydkm.api.plan import calibrated, estimate
from raydkm.config import PlanConfig

SHAPES = "100000x384x1024,50000x768x2048,100000x128x256,20000x256x4096,50000x64x64,30000x1024x512"


def main(
    shapes: Annotated[str, typer.Option(help="ROWSxDIMxCLUSTERS, some.")] = SHAPES,
    objectives: Annotated[str, typer.Option(help="Of each shape.")] = "kmeans,sr-kmeans",
    steps: Annotated[int, typer.Option(min=2, help="Of a fit; the median of all but the first counts.")] = 6,
    threads: Annotated[int, typer.Option(min=1)] = min(2, os.cpu_count() or 1),
) -> None:
    """Measure and print the table."""
    try:
        wanted = [Shape.parse(text) for text in shapes.split(",")]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    rows = [row(shape, objective, steps, threads) for shape in wanted for objective in objectives.split(",")]
    headers = ["shape", "objective", "predicted, ms", "measured, ms", "ratio", "built in, ms", "ratio", "bound by"]
    print(Table(headers, rows).markdown())
    calibrated, built_in = (worst([float(row[column]) for row in rows]) for column in (4, 6))
    print(f"\nAt worst the two differ by a factor of {calibrated:.2f} when calibrated, {built_in:.2f} as built in.")


def worst(ratios: list[float]) -> float:
    return max(max(ratios), 1 / min(ratios))


def row(shape: Shape, objective: str, steps: int, threads: int) -> list[str]:
    """One shape and objective: predicted, measured, predicted."""
    typer.echo(f"{shape}, {objective}", err=True)
    config = PlanConfig(
        rows=shape.rows, dim=shape.dim, clusters=shape.clusters, objective=objective, threads=threads, memory=1e6
    )
    before = estimate(config, calibrated(config))
    measured = step_seconds(shape, objective, steps, threads)
    after = estimate(config, calibrated(config))
    predicted, built_in = (before.step_seconds + after.step_seconds) / 2, estimate(config).step_seconds
    return [
        str(shape),
        objective,
        *(f"{1e3 * predicted:.1f}", f"{1e3 * measured:.1f}", f"{predicted / measured:.2f}"),
        *(f"{1e3 * built_in:.1f}", f"{built_in / measured:.2f}"),
        after.binds,
    ]


def step_seconds(shape: Shape, objective: str, steps: int, threads: int) -> float:
    """Median seconds of a step of `raydkm.fit`."""
    x = decaying(shape.rows, shape.dim)
    model = raydkm.fit(
        x,
        clusters=shape.clusters,
        objective=objective,
        init=initial(x, shape.clusters),
        max_steps=steps,
        tol=0,
        objective_tol=0,
        threads=threads,
    )
    return statistics.median(entry["seconds"] for entry in model.history[1:])


if __name__ == "__main__":
    typer.run(main)
