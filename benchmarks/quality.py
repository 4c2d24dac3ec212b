r"""Quality of raydkm's objectives beside scikit-learn and k-means-constrained: same rows, same threads, several seeds.

    python benchmarks/quality.py DATA.parquet --column pixels --label label --clusters 10
    python benchmarks/quality.py DATA.parquet --column embedding --label label --clusters 20 --metric cosine \
        --seeds 5 --html page.html
    python benchmarks/quality.py --set digits --set mnist=mnist.parquet:pixels:label:10:euclidean \
        --sensitivity --initialisation --convergence --html page.html

Without data: scikit-learn's digits. Prints Markdown tables; `quality_tables.NOTES` says what the columns are. With
--html it also writes a page of them with plots (which needs plotly, of the dev extra). --sensitivity and
--initialisation are of the first data set, --convergence of all.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from quality_analyses import initialisation, sensitivity
from quality_data import DIGITS, SYNTAX, Place, read
from quality_methods import DEFAULT, Budget, Method, check, outcome
from quality_tables import NOTES, SetReport, table_of_initialisation, table_of_methods, tables_of_sensitivity

from raydkm.errors import RaydkmError


def main(
    data: Annotated[list[str] | None, typer.Argument(help="Parquet files or directories of one data set.")] = None,
    column: str = "pixels",
    label: str = "label",
    clusters: int = 10,
    metric: str = "euclidean",
    sets: Annotated[list[str] | None, typer.Option("--set", help=f"{SYNTAX}, or digits; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="NAME or NAME:key=value,…; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    max_steps: Annotated[int, typer.Option(min=1, help="Most steps of a fit, of every method.")] = 300,
    limit: Annotated[float, typer.Option(help="Seconds of a fit of GaussianMixture or k-means-constrained.")] = 60.0,
    sensitivity_: Annotated[bool, typer.Option("--sensitivity", help="To temperature and balance.")] = False,
    initialisation_: Annotated[bool, typer.Option("--initialisation", help="Spread over seedings.")] = False,
    convergence: Annotated[bool, typer.Option("--convergence", help="Objective by step, on the page.")] = False,
    html: Annotated[Path | None, typer.Option(help="Page to write.")] = None,
) -> None:
    """Fit every method with every seed to every data set, and print the tables."""
    if convergence and html is None:
        raise typer.BadParameter("--convergence is a plot; give --html too")
    if html is not None:
        from quality_page import page  # here, for without a page plotly is not needed

        html.touch()  # that it can be written is known before any work
    logging.getLogger("raydkm").setLevel(logging.ERROR)  # unsettled fits have their asterisk in the table
    budget = Budget(seeds, threads, max_steps, limit)
    try:
        places = [Place.parse(text) for text in sets or []]
        if data:
            places.insert(0, Place(Path(data[0]).stem, tuple(data), column, label, clusters, metric))
        places = places or [DIGITS]
        methods = [Method.parse(text) for text in method or DEFAULT]
        for place in places:  # all of it before any work
            if place.paths:
                place.open()
            for one in methods:
                check(one, place.clusters, place.metric, budget)
    except (ValueError, RaydkmError) as error:
        raise typer.BadParameter(str(error)) from None

    reports = [
        report(place, methods, budget, sensitive=sensitivity_ and not i, seedings=initialisation_ and not i)
        for i, place in enumerate(places)
    ]
    print(NOTES)
    if html is not None:
        command = shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]])
        html.write_text(page(reports, budget, command, convergence=convergence), encoding="utf-8")
        tell(f"wrote {html}")


def report(place: Place, methods: list[Method], budget: Budget, *, sensitive: bool, seedings: bool) -> SetReport:
    """Fit every method to one data set, with the analyses that are asked for, and print the tables."""
    with tempfile.TemporaryDirectory() as directory:
        data = read(place, Path(directory))
        print(f"## {data.name}: {data.described}\n")
        outcomes = {}
        for method in methods:
            outcomes[method.name] = outcome(method, data, budget)
            tell(f"{data.name}: {method.name}")
        found = SetReport(
            data.name,
            data.described,
            data.clusters,
            outcomes,
            sensitivity(data, budget, tell) if sensitive else [],
            initialisation(data, budget, tell) if seedings else [],
        )
    print(table_of_methods(outcomes, data.clusters, budget.max_steps).markdown())
    if found.sensitivity:
        for title, table in tables_of_sensitivity(found.sensitivity).items():
            print(f"\n### Sensitivity of sr-kmeans: {title}\n\n{table.markdown()}")
    if found.initialisation:
        print(f"\n### Initialisation\n\n{table_of_initialisation(found.initialisation).markdown()}")
    print(flush=True)
    return found


def tell(text: str) -> None:
    """Say how far the benchmark is, apart from its tables."""
    typer.echo(text, err=True)


if __name__ == "__main__":
    typer.run(main)
