"""Ingest and per-step overhead of the Ray engine, each beside what it is measured against, in one run.

    python benchmarks/ingest.py [--rows 2000000 --dim 128] [--repeats 3]

- Ingest: seconds in which two Ray workers read and hold every row, checked, beside one pyarrow process that reads the
  same files (with its own threads). Goal: at least half of pyarrow's rate.
- Steps: median seconds of a step of two Ray workers with one thread each, beside one process with two threads.
  Goal: at most 5 % more.
- Start-up: seconds from the call to the first line of the workers.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import generated
import ray

import raydkm

READ = """
import sys, time, pyarrow.parquet as pq
began = time.perf_counter()
rows = sum(pq.read_table(path, columns=["z"]).num_rows for path in sys.argv[1:])
print(time.perf_counter() - began)
"""


def pyarrow_seconds(files: list[str]) -> float:
    """Of reading all files in a process of its own, without that process's start."""
    done = subprocess.run([sys.executable, "-c", READ, *files], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    options = {"column": "z", "clusters": arguments.clusters, "n_init": 1, "max_steps": arguments.steps, "tol": 0}
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as place:
        files = sorted(map(str, generated.write(Path(place), arguments.rows, arguments.dim, files=8).iterdir()))
        size = sum(Path(path).stat().st_size for path in files)
        pyarrow_seconds(files)  # the files are in the page cache from here on, for all
        ray.init(num_cpus=2, logging_level=logging.ERROR, log_to_driver=False)
        for _ in range(arguments.repeats):
            note("pyarrow", pyarrow_seconds(files))
            for objective in ("kmeans", "sr-kmeans"):
                for engine, way in (("local", {"threads": 2}), ("ray", {"workers": 2, "threads": 1})):
                    began = time.perf_counter()
                    model = raydkm.fit(files, engine=engine, objective=objective, **way, **options)
                    took = time.perf_counter() - began
                    steps = [entry["seconds"] for entry in model.history[2:]]
                    note(f"{engine} {objective} step", statistics.median(steps))
                    note(f"{engine} ingest", model.record["seconds"]["ingest"])
                    if engine == "ray":
                        shares = [entry["wait"] + entry["reduce"] for entry in model.history[2:]]
                        note(f"{objective} wait and reduce", statistics.median(shares))
                        note("start-up", model.record["seconds"]["start"])
                        first = sum(
                            model.record["seconds"][phase] for phase in ("start", "ingest", "survey", "seeding")
                        )
                        note("to the first step", first)
                        note("total", took)
        ray.shutdown()

    middle = {name: statistics.median(values) for name, values in figures.items()}
    print(f"{arguments.rows:,} x {arguments.dim} float16 ({size / 2**30:.2f} GiB), K = {arguments.clusters}; medians")
    for name, reading in (("2 Ray workers", "ray ingest"), ("in process", "local ingest")):
        print(
            f"ingest: {name} {middle[reading]:.2f} s, pyarrow {middle['pyarrow']:.2f} s, "
            f"rate / pyarrow's {middle['pyarrow'] / middle[reading]:.2f}"
        )
    for objective in ("kmeans", "sr-kmeans"):
        here, there = middle[f"local {objective} step"], middle[f"ray {objective} step"]
        print(
            f"{objective} step: 2 Ray workers {1000 * there:.0f} ms (wait and reduce "
            f"{1000 * middle[f'{objective} wait and reduce']:.1f} ms), in process {1000 * here:.0f} ms, "
            f"overhead {100 * (there / here - 1):+.1f} %"
        )
    print(
        f"start-up of workers {middle['start-up']:.1f} s, to the first step {middle['to the first step']:.1f} s, "
        f"whole fit {middle['total']:.1f} s"
    )


if __name__ == "__main__":
    main()
