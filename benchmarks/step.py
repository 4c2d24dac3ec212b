r"""One step of raydkm beside every peer that is installed: same rows, same start, same steps, same threads.

    python benchmarks/step.py
    python benchmarks/step.py --full
    python benchmarks/step.py --shape 100000x384x1024 --data titles.parquet --column embedding --json step.json

Peers come with the extra `bench`; what is not installed is named. Every measurement is made in a process of its own,
and methods take turns in each repetition. `step_tables.NOTES` says what the columns are. Needs Linux, whose account of
a process's memory it reads.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from step_data import Rows, Shape, decaying, embeddings, initial
from step_measure import OWN, measure
from step_peers import PEERS
from step_tables import NOTES, Entry, Report

from raydkm.errors import RaydkmError

SMALL = ("20000x384x256", "40000x128x128")
FULL = ("200000x384x1024", "100000x768x4096", "400000x128x256")

#: By whether --full.
STEPS = {False: 4, True: 10}
REPEATS = {False: 1, True: 3}


def main(
    shape: Annotated[list[str] | None, typer.Option(help="ROWSxDIMxCLUSTERS; may be repeated.")] = None,
    full: Annotated[bool, typer.Option("--full", help=f"{', '.join(FULL)}; {STEPS[True]} steps.")] = False,
    data: Annotated[Path | None, typer.Option(help="Parquet with embeddings, in place of generated rows.")] = None,
    column: str = "embedding",
    noise: Annotated[float, typer.Option(help="Length of the noise on each repeated embedding.")] = 0.3,
    steps: Annotated[int | None, typer.Option(min=2)] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="By default 1, with --full 3.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = min(2, os.cpu_count() or 1),
    method: Annotated[list[str] | None, typer.Option(help="Only these, by name; may be repeated.")] = None,
    check: Annotated[bool, typer.Option(help="Labels and posteriors beside float64.")] = True,
    json_: Annotated[Path | None, typer.Option("--json", help="Where to write all figures.")] = None,
) -> None:
    """Measure, and print the tables."""
    methods = method or [*OWN, *PEERS]
    try:
        shapes = [Shape.parse(text) for text in shape or (FULL if full else SMALL)]
        if unknown := set(methods) - {*OWN, *PEERS}:
            raise ValueError(f"no method {', '.join(sorted(unknown))}; there are {', '.join([*OWN, *PEERS])}")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    steps, repeats = steps or STEPS[full], repeats or REPEATS[full]
    reports = []
    for number, one in enumerate(shapes):
        try:
            x = embeddings(str(data), column, one.rows, one.dim, noise) if data else decaying(one.rows, one.dim)
        except RaydkmError as error:
            raise typer.BadParameter(str(error)) from None
        reports.append(report(x, one, methods, steps, repeats, threads, check=check))
        described = f"{data.name}, noise {noise:g}" if data else "decaying spectrum"
        print(f"{chr(10) if number else ''}## {one} ({described}), {steps} steps, {threads} threads\n")
        for soft, title in ((False, "Hard step (kmeans)"), (True, "Soft step (sr-kmeans at 0.1 T_c)")):
            print(f"### {title}\n\n{reports[-1].table(soft=soft).markdown()}\n")
        print("\n".join(f"- {line}" for line in reports[-1].sentences()), flush=True)
    print(f"\n{NOTES}")
    if json_ is not None:
        json_.write_text(json.dumps([asdict(found) for found in reports], indent=1), encoding="utf-8")


def report(
    x: Rows, shape: Shape, methods: Sequence[str], steps: int, repeats: int, threads: int, *, check: bool
) -> Report:
    """Run every method `repeats` times on rows x (n, d), in turns."""
    absent = {name: "not installed" for name in methods if name in PEERS and not PEERS[name].is_installed}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("rates", *methods) if name not in absent}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        np.save(directory / "rows.npy", x)
        np.save(directory / "start.npy", initial(x, shape.clusters))

        def run(name: str) -> dict[str, Any]:
            typer.echo(f"{shape}: {name}", err=True)
            return measure(name, directory, shape.clusters, steps, threads)

        checks = run("checks") if check else {}
        if "failed" in checks:
            raise SystemExit(f"{shape}: the checks failed: {checks['failed']}")
        for _ in range(repeats):
            for name in [name for name in runs if name not in absent]:
                found = run(name)
                if "failed" in found:
                    absent[name] = f"failed: {found['failed']}"
                else:
                    runs[name].append(found)
    if "rates" in absent:
        raise SystemExit(f"{shape}: the rates {absent['rates']}")
    measured = runs.pop("rates")
    entries = [
        Entry.of(name, is_soft(name), found, own_start=name in PEERS and not PEERS[name].takes_start)
        for name, found in runs.items()
        if name not in absent
    ]
    rates = {name: statistics.median(one["rates"][name] for one in measured) for name in measured[0]["rates"]}
    products = statistics.median(one["products"] for one in measured)
    return Report(shape, rates, products, entries, absent, checks)


def is_soft(name: str) -> bool:
    """Whether a method's step is soft."""
    return PEERS[name].soft if name in PEERS else OWN[name][0]


if __name__ == "__main__":
    typer.run(main)
