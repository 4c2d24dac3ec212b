"""Learned representations beside plain k-means and beside what others have published.

    python benchmarks/deep.py --mnist mnist.parquet --stackoverflow text_stackoverflow.parquet [--seeds 3] [--only NAME]

Each data set is fitted by the recipe of its kind (benchmarks/recipes/) with every seed from 0 on; labels are read after
the fits, and no run is left out. The time of a fit is that of the whole command, reading and the final pass included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deep_data import control_charts, sales, wine, written

import raydkm
from raydkm.config import read_yaml

RECIPES = Path(__file__).parent / "recipes"

#: Accuracies as their authors report them; of methods that fine-tune a transformer, its name.
PUBLISHED = {
    "mnist": {
        "SR-K-means (Jabi et al. 2019)": "0.94-0.97",
        "DEPICT (Dizaji et al. 2017)": "0.965",
        "IMSAT (Hu et al. 2017)": "0.984",
        "DEC-DA (Guo et al. 2018)": "0.985",
    },
    "stackoverflow": {
        "SCCL, fine-tuned (Zhang et al. 2021)": "0.755",
        "Pugachev and Burtsev 2021": "0.847",
    },
}


@dataclass(frozen=True)
class Task:
    """One row of the table: data, the recipe, and what else the command gives."""

    name: str
    data: Path
    column: str
    clusters: int
    recipe: str
    options: dict[str, Any]


def tasks(arguments: argparse.Namespace, place: Path) -> list[Task]:
    found = []
    if arguments.mnist:
        shape = {"shape": "1x28x28"}
        found += [Task("mnist", arguments.mnist, "pixels", 10, recipe, shape) for recipe in ("images", "images-paper")]
    if arguments.stackoverflow:
        found.append(Task("stackoverflow", arguments.stackoverflow, "embedding", 20, "texts", {}))
    charts = written(place / "charts.parquet", *control_charts(each=1000, seed=7))
    table = written(place / "sales.parquet", *sales(rows=5000, seed=7))
    found += [
        Task("control charts", charts, "x", 6, "series", {"shape": "1x60"}),
        Task("sales", table, "x", 5, "tables", {}),
        Task("wine", written(place / "wine.parquet", *wine()), "x", 3, "tables", {}),
    ]
    return [task for task in found if arguments.only in (None, task.name, task.recipe)]


def run(task: Task, seed: int, threads: int) -> list[dict[str, Any]]:
    """A fit by the recipe, and one of k-means on the rows as they are."""
    recipe = read_yaml(RECIPES / f"{task.recipe}.yaml")
    metric = recipe.get("metric", "euclidean")
    plain = {"objective": "kmeans", "metric": metric, "n_init": 10}
    rows = []
    for method, options in ((f"{task.recipe}.yaml", recipe | task.options), (f"k-means ({metric})", plain)):
        began = time.perf_counter()
        model = raydkm.fit(
            task.data, column=task.column, clusters=task.clusters, seed=seed, threads=threads, engine="local", **options
        )
        seconds = time.perf_counter() - began
        found = raydkm.evaluate(model, task.data, label="label")
        scores = {name: found[name] for name in ("acc", "nmi", "ari")}
        rows.append({"data": task.name, "method": method, "seed": seed, **scores, "seconds": seconds})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| data | method | ACC | NMI | ARI | seconds |", "|---|---|---|---|---|---|"]
    for data, method in dict.fromkeys((row["data"], row["method"]) for row in rows):
        of = [row for row in rows if (row["data"], row["method"]) == (data, method)]
        scores = [np.array([row[name] for row in of]) for name in ("acc", "nmi", "ari")]
        told = " | ".join(f"{values.mean():.4f} ± {values.std(ddof=1) if len(of) > 1 else 0:.4f}" for values in scores)
        lines.append(f"| {data} | {method} | {told} | {np.mean([row['seconds'] for row in of]):.0f} |")
    for data, others in PUBLISHED.items():
        if any(row["data"] == data for row in rows):
            lines += [f"| {data} | {name} | {accuracy} | | | |" for name, accuracy in others.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--stackoverflow", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="A data set or a recipe.")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for task in tasks(arguments, Path(place)):
            done = [run(task, seed, arguments.threads) for seed in range(arguments.seeds)]
            rows += [pair[0] for pair in done] + [pair[1] for pair in done]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {arguments.threads} threads"
    print(f"\n{arguments.seeds} seeds, mean ± standard deviation; {device}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
