r"""Cost of a step against N, d, K and threads, one at a time around a base, with fitted slopes.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --base 200000x128x256 --spread 4 --html scaling.html
    python benchmarks/scaling.py --workers 1,2,4

A slope is that of log seconds against log size, by least squares: 1 is linear. The residual is the largest
factor by which a time lies off the fitted line. --workers measures steps of Ray workers with a thread each, on Parquet
files, in place of threads of one process. The page needs plotly, of the dev extra.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from quality_tables import Table
from step_data import Shape, decaying, initial
from step_raydkm import options, ready, timed_steps

OBJECTIVES = {"kmeans": "hard step (kmeans)", "sr-kmeans": "soft step (sr-kmeans at 0.1 T_c)"}
AXES = ("rows", "dim", "clusters")


@dataclass(frozen=True)
class Line:
    """Seconds of a step (median) at each size of one axis, and the fitted power of the size."""

    objective: str
    axis: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def fit(self) -> tuple[float, float]:
        """Slope and intercept of log seconds against log size."""
        slope, intercept = np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)
        return float(slope), float(intercept)

    @property
    def residual(self) -> float:
        """The largest factor between a time and the fitted line, at least 1."""
        slope, intercept = self.fit
        off = np.log(self.seconds) - slope * np.log(self.sizes) - intercept
        return math.exp(float(np.abs(off).max()))

    @property
    def fitted(self) -> list[float]:
        slope, intercept = self.fit
        return [math.exp(intercept) * size**slope for size in self.sizes]


def main(
    base: Annotated[str, typer.Option(help="ROWSxDIMxCLUSTERS.")] = "40000x128x128",
    spread: Annotated[int, typer.Option(min=2, help="Sizes go from 1/SPREAD of the base to SPREAD times it.")] = 4,
    points: Annotated[int, typer.Option(min=2, help="Sizes on each axis.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Of which the median counts.")] = 5,
    threads: Annotated[int, typer.Option(min=1)] = min(2, os.cpu_count() or 1),
    workers: Annotated[str | None, typer.Option(help="Numbers of Ray workers, as 1,2,4.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write.")] = None,
) -> None:
    """Measure, print the table and write the page."""
    try:
        middle = Shape.parse(base)
        counts = [int(part) for part in workers.split(",")] if workers else []
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if html is not None:
        from scaling_page import page  # here, for without a page plotly is not needed

        html.touch()
    lines = list(measured(middle, spread, points, steps, threads, counts))
    print(f"Around {middle}, {threads} threads; median of {steps} steps\n\n{table(lines).markdown()}")
    if html is not None:
        html.write_text(page(lines, OBJECTIVES, f"Around {middle}; {threads} threads"), encoding="utf-8")


def measured(middle: Shape, spread: int, points: int, steps: int, threads: int, workers: list[int]) -> Iterator[Line]:
    """One line an objective and axis."""
    for objective in OBJECTIVES:
        for axis in AXES:
            sizes = around(getattr(middle, axis), spread, points)

            def at(size: int, axis: str = axis, objective: str = objective) -> float:
                return step_seconds(replace(middle, **{axis: size}), objective, steps, threads)

            yield line(objective, axis, sizes, at)

        def on(count: int, objective: str = objective) -> float:
            return step_seconds(middle, objective, steps, count)

        yield line(objective, "threads", [2**i for i in range((os.cpu_count() or 1).bit_length())], on)
    if workers:
        yield from of_workers(middle, steps, workers)


def line(objective: str, axis: str, sizes: list[int], at: Callable[[int], float]) -> Line:
    typer.echo(f"{objective}: {axis} {', '.join(map(str, sizes))}", err=True)
    return Line(objective, axis, tuple(sizes), tuple(at(size) for size in sizes))


def around(size: int, spread: int, points: int) -> list[int]:
    """`points` sizes, in equal ratios, from 1/spread of `size` to `spread` times it."""
    return sorted({max(1, round(float(x))) for x in np.geomspace(size / spread, size * spread, points)})


def step_seconds(shape: Shape, objective: str, steps: int, threads: int) -> float:
    """Median seconds of a step in this process, after one that does not count."""
    x = decaying(shape.rows, shape.dim)
    with ready(x, initial(x, shape.clusters), objective, threads) as at:
        timed_steps(at, 1)
        return statistics.median(timed_steps(at, steps)[0])


def of_workers(shape: Shape, steps: int, counts: list[int]) -> Iterator[Line]:
    """The same, of Ray workers with one thread each."""
    import generated
    import ray

    import raydkm

    with tempfile.TemporaryDirectory() as place:
        files = generated.write(Path(place), shape.rows, shape.dim, files=2 * max(counts))
        ray.init(num_cpus=max(counts), log_to_driver=False)
        try:
            for objective in OBJECTIVES:

                def at(count: int, objective: str = objective) -> float:
                    model = raydkm.fit(
                        files,
                        column="z",
                        clusters=shape.clusters,
                        n_init=1,
                        engine="ray",
                        workers=count,
                        threads=1,
                        **options(objective, steps + 1),
                    )
                    return statistics.median(entry["seconds"] for entry in model.history[1:])

                yield line(objective, "workers", counts, at)
        finally:
            ray.shutdown()


def table(lines: list[Line]) -> Table:
    """One row a line."""
    headers = ["step", "against", "sizes", "ms", "slope", "largest residual"]
    rows = [
        [
            OBJECTIVES[one.objective],
            one.axis,
            ", ".join(f"{size:,}" for size in one.sizes),
            ", ".join(f"{1e3 * seconds:.3g}" for seconds in one.seconds),
            f"{one.fit[0]:.3f}" if len(one.sizes) > 1 else "",
            f"{100 * (one.residual - 1):.1f} %" if len(one.sizes) > 2 else "",
        ]
        for one in lines
    ]
    return Table(headers, rows)


if __name__ == "__main__":
    typer.run(main)
