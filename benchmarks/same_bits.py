"""The same prototypes, bit for bit, from any number of threads and workers, order of files and cache tier.

    python benchmarks/same_bits.py [--rows 2000000 --dim 16] [DATA... --column NAME] [--clusters 20]

Prints, for each objective, how each way of computing compares with the first; exits with 1 if one differs. The rows as
a ray.data.Dataset, whose blocks have no stable cut, must agree to 1e-6.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import generated
import ray
import ray.data

import raydkm
from raydkm.data.files import find_files

OBJECTIVES = {
    "kmeans": {"objective": "kmeans"},
    "sr-kmeans": {"objective": "sr-kmeans"},
    "sr-kmeans, balance 0.5": {"objective": "sr-kmeans", "balance": 0.5},
}
WAYS = {
    "in process, 2 threads": {"engine": "local", "threads": 2},
    "in process, 1 thread": {"engine": "local", "threads": 1},
    "in process, files in reverse": {"engine": "local"},
    "in process, cache disk": {"engine": "local", "cache": "disk"},
    "in process, cache stream": {"engine": "local", "cache": "stream"},
    "Ray, 1 worker": {"engine": "ray", "workers": 1},
    "Ray, 2 workers, files in reverse": {"engine": "ray", "workers": 2},
    "Ray, 2 workers, cache disk": {"engine": "ray", "workers": 2, "cache": "disk"},
    "Ray, 2 workers, cache stream": {"engine": "ray", "workers": 2, "cache": "stream"},
    "Ray, 3 workers": {"engine": "ray", "workers": 3},
}


def compare(files: list[str], options: dict) -> bool:
    """Print a line for each way; return whether all are as promised."""
    first = raydkm.fit(files, **options, **next(iter(WAYS.values())))
    fine = True
    for name, way in WAYS.items():
        model = raydkm.fit(files[::-1] if "reverse" in name else files, **options, **way)
        same = model.checksum() == first.checksum()
        fine &= same
        print(f"  {name:34} {model.checksum()[:16]} {'same' if same else 'DIFFERENT'}", flush=True)
    data = ray.data.read_parquet(files)
    model = raydkm.fit(data, **options, workers=2)
    scale = float(first.prototypes.abs().max())
    error = float((model.prototypes + model.shift - first.prototypes - first.shift).abs().max()) / scale
    every_row = model.record["rows"] == first.record["rows"]
    print(f"  {'ray.data.Dataset, 2 workers':34} largest difference {error:.1e} of the largest value; ", end="")
    print(f"{model.record['rows']} of {first.record['rows']} rows", flush=True)
    return fine and error <= 1e-6 and every_row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--column", default="z")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--clusters", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    ray.init(num_cpus=4, logging_level=logging.ERROR, log_to_driver=False)
    fine = True
    with tempfile.TemporaryDirectory() as place:
        if not arguments.data:
            generated.write(Path(place), arguments.rows, arguments.dim, files=7)
        files = find_files(arguments.data or place)
        options = {"column": arguments.column, "clusters": arguments.clusters, "max_steps": arguments.steps, "tol": 0}
        for name, objective in OBJECTIVES.items():
            print(name)
            fine &= compare(files, options | objective)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
