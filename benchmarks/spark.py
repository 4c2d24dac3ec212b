r"""A whole fit of two Ray workers beside Spark MLlib's KMeans, and Dask-ML's, on the same Parquet files.

    python benchmarks/spark.py
    python benchmarks/spark.py --rows 100000 --dim 64 --clusters 32 --dask

Needs pyspark and a Java runtime; --dask needs dask-ml. Each system runs in a process of its own, on files that have
just been written: float32 with a decaying spectrum around many centres (Spark reads no float16). All make the same
number of steps, from random rows, with no early stop; raydkm's workers have a thread each, the others as many threads.

- total: of the process, from its start to its end; with imports, the start of Ray or of the JVM, and reading.
- fit: without these; Spark and Dask have the rows in memory by then, as vectors of doubles and as float32.
- inertia: of the final prototypes, computed here, alike for all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import generated
import numpy as np
import pyarrow.parquet as pq
from quality_tables import Table
from step_data import decaying
from step_measure import inertia

PREAMBLE = """
import json, sys, time
files, options = sys.argv[1], json.loads(sys.argv[2])
"""

#: What each system runs; prints the seconds of its fit, and its prototypes.
SYSTEMS = {
    "raydkm": """
import logging, ray, raydkm
ray.init(num_cpus=options["workers"], logging_level=logging.ERROR, log_to_driver=False)
model = raydkm.fit(
    files, column="z", objective="kmeans", clusters=options["clusters"], init="random", n_init=1,
    max_steps=options["steps"], tol=0, objective_tol=0, engine="ray", workers=options["workers"], threads=1,
)
took = model.record["seconds"]
fit = took["total"] - took["start"] - took["ingest"]
print(json.dumps({"fit": fit, "prototypes": model.cluster_centers.tolist()}))
""",
    "spark": """
from pyspark.ml.clustering import KMeans
from pyspark.ml.functions import array_to_vector
from pyspark.sql import SparkSession
spark = (
    SparkSession.builder.master(f"local[{options['workers']}]")
    .config("spark.driver.memory", options["memory"])
    .config("spark.ui.enabled", "false")
    .config("spark.sql.files.maxPartitionBytes", str(32 * 2**20))
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
table = spark.read.parquet(files)
vectors = table.select(array_to_vector(table["z"].cast("array<double>")).alias("features")).cache()
vectors.count()
began = time.perf_counter()
kmeans = KMeans(k=options["clusters"], maxIter=options["steps"], tol=0.0, initMode="random", seed=0)
model = kmeans.fit(vectors)
fit = time.perf_counter() - began
print(json.dumps({"fit": fit, "prototypes": [centre.tolist() for centre in model.clusterCenters()]}))
spark.stop()
""",
    "dask": """
import dask, dask.array, pyarrow.dataset
from dask_ml.cluster import KMeans
dask.config.set(scheduler="threads", num_workers=options["workers"])
column = pyarrow.dataset.dataset(files).to_table(columns=["z"])["z"].combine_chunks()
x = column.flatten().to_numpy().reshape(len(column), -1)
rows = dask.array.from_array(x, chunks=(-(-len(x) // (4 * options["workers"])), x.shape[1]))
began = time.perf_counter()
kmeans = KMeans(options["clusters"], init="random", max_iter=options["steps"], tol=0.0, random_state=0)
kmeans.fit(rows)
fit = time.perf_counter() - began
print(json.dumps({"fit": fit, "prototypes": kmeans.cluster_centers_.tolist()}))
""",
}


def missing(system: str) -> str | None:
    """What `system` lacks, in words."""
    module = {"spark": "pyspark", "dask": "dask_ml"}.get(system)
    if module is not None and importlib.util.find_spec(module) is None:
        return f"not installed (pip install {module.replace('_', '-')})"
    if system == "spark" and shutil.which("java") is None:
        return "no Java runtime: install one, or set PATH"
    return None


def run(system: str, files: Path, options: dict[str, int | str]) -> dict[str, float] | str:
    """Seconds and inertia; or, if the process failed, the end of what it said."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + SYSTEMS[system], str(files), json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
    )
    total = time.perf_counter() - began
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"failed: {lines[-1] if lines else done.returncode}"
    found = json.loads(done.stdout.splitlines()[-1])
    return {"total": total, "fit": found["fit"], "inertia": inertia_of(files, found["prototypes"])}


def inertia_of(files: Path, prototypes: list[list[float]]) -> float:
    """Of the rows in files, by one file after the other."""
    theta = np.array(prototypes, np.float32)
    columns = (pq.read_table(path)["z"].combine_chunks() for path in sorted(files.iterdir()))
    return sum(inertia(column.flatten().to_numpy().reshape(len(column), -1), theta) for column in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of Ray, with a thread each; threads of the others")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--memory", default="8g", help="of the JVM")
    parser.add_argument("--dask", action="store_true")
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("clusters", "steps", "workers", "memory")}
    systems = ["raydkm", "spark", *(["dask"] if arguments.dask else [])]
    absent = {system: why for system in systems if (why := missing(system))}
    runs: dict[str, list[dict[str, float]]] = {system: [] for system in systems if system not in absent}
    with tempfile.TemporaryDirectory() as place:
        files = generated.store(Path(place) / "rows", decaying(arguments.rows, arguments.dim), files=8)
        for _ in range(arguments.repeats):
            for system in [system for system in runs if system not in absent]:
                print(f"{system} ...", file=sys.stderr, flush=True)
                found = run(system, files, options)
                if isinstance(found, str):
                    absent[system] = found
                else:
                    runs[system].append(found)
    middle = {
        system: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for system, found in runs.items()
        if system not in absent
    }
    print(f"{arguments.rows:,} × {arguments.dim} float32 Parquet, K = {arguments.clusters}, {arguments.steps} steps\n")
    print(table(middle, absent).markdown())


def table(middle: dict[str, dict[str, float]], absent: dict[str, str]) -> Table:
    """Seconds of each system, and how many times raydkm's they are."""
    base = middle.get("raydkm")
    rows = [
        [
            system,
            f"{found['total']:.1f}",
            f"{found['fit']:.1f}",
            *(f"{found[key] / base[key]:.2f}" if base else "" for key in ("total", "fit")),
            f"{found['inertia']:.6g}",
        ]
        for system, found in middle.items()
    ]
    headers = ["system", "total, s", "fit, s", "total / raydkm's", "fit / raydkm's", "inertia"]
    return Table(headers, rows + [[system, why] for system, why in absent.items()])


if __name__ == "__main__":
    main()
