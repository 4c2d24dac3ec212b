"""Quality beside scikit-learn's KMeans: same rows, same threads, same run, several seeds.

    python benchmarks/quality.py DATA.parquet --column pixels --label label --clusters 10
    python benchmarks/quality.py DATA.parquet --column embedding --label label --clusters 20 --metric cosine

Without DATA: scikit-learn's digits. Prints a
Markdown table: ACC, NMI, inertia relative to the best seen, smallest and largest cluster, seconds.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from raydkm import DKMeans
from raydkm.api.demo import write_digits
from raydkm.data.files import find_files
from raydkm.data.parquet import ParquetTable
from raydkm.ops.metrics import agreement

DEFAULT = ["kmeans", "sr-kmeans", "sr-kmeans:balance=0.9", "scikit-learn:n_init=1", "scikit-learn:n_init=10"]


def main(
    data: Annotated[list[str] | None, typer.Argument()] = None,
    column: str = "pixels",
    label: str = "label",
    clusters: int = 10,
    metric: str = "euclidean",
    seeds: int = 5,
    method: Annotated[list[str] | None, typer.Option(help="NAME or NAME:key=value,…; may be repeated.")] = None,
) -> None:
    """Run every method with every seed and print the table."""
    if not data:
        with tempfile.TemporaryDirectory() as place:
            write_digits(Path(place) / "digits", shards=1)
            main([place], column, label, clusters, metric, seeds, method)
        return
    table = ParquetTable.open(data, column, unit=metric == "cosine")
    x = np.concatenate([block.rows for block in table.read()])
    labels = np.concatenate([pq.read_table(path, columns=[label])[label].to_numpy() for path in find_files(data)])
    peer = normalize(x.astype(np.float32)) if metric == "cosine" else x.astype(np.float32)
    results: dict[str, list[dict[str, float]]] = {}
    for name in method or DEFAULT:
        results[name] = [run(name, x, peer, labels, clusters, metric, seed) for seed in range(seeds)]
    best = min(result["inertia"] for runs in results.values() for result in runs)
    threads = torch.get_num_threads()
    print(f"{len(x):,} × {x.shape[1]} ({x.dtype}), K = {clusters}, {metric}, {seeds} seeds, {threads} threads\n")
    print("| method | ACC | NMI | inertia / best | sizes | steps | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in results.items():
        cells = [spread(runs, key) for key in ("acc", "nmi")]
        ratio = [run["inertia"] / best for run in runs]
        sizes = f"{np.mean([r['smallest'] for r in runs]):.0f}–{np.mean([r['largest'] for r in runs]):.0f}"
        steps, seconds = (float(np.median([run[key] for run in runs])) for key in ("steps", "seconds"))
        print(f"| {name} | {' | '.join(cells)} | {np.mean(ratio):.4f} (worst {max(ratio):.4f}) |", end="")
        print(f" {sizes} | {steps:.0f} | {seconds:.2f} |")


def run(
    name: str, x: NDArray, peer: NDArray, labels: NDArray, clusters: int, metric: str, seed: int
) -> dict[str, float]:
    """Fit once; inertia is the one that each method reports of its own assignment and prototypes."""
    kind, _, rest = name.partition(":")
    options = {key: number(value) for key, _, value in (item.partition("=") for item in rest.split(",") if item)}
    began = time.perf_counter()
    if kind == "scikit-learn":
        fitted = KMeans(clusters, random_state=seed, **options).fit(peer)
    else:
        fitted = DKMeans(clusters, objective=kind, metric=metric, random_state=seed, **options).fit(x)
    seconds = time.perf_counter() - began
    found = fitted.labels_
    sizes = np.bincount(found, minlength=clusters)
    return {
        **agreement(labels, found),
        "inertia": float(fitted.inertia_),
        "smallest": float(sizes.min()),
        "largest": float(sizes.max()),
        "steps": float(fitted.n_iter_),
        "seconds": seconds,
    }


def number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def spread(runs: list[dict[str, float]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


if __name__ == "__main__":
    typer.run(main)
