"""Data larger than the memory budget: time of a step and peak memory on each cache tier.

    python benchmarks/tiers.py [--gib 8 --budget 1 --dim 384] [--engine ray --workers 2]

Writes that many GiB of Parquet and fits every row, each tier in a process of its own. The page cache is as it is; with
root rights, --cold empties it before each tier and shows what a disk, and not a memory, gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import generated

FIT = """
import json, logging, sys
import raydkm
logging.basicConfig(level=logging.WARNING)
model = raydkm.fit(sys.argv[1], **json.loads(sys.argv[2]))
print(json.dumps({"record": model.record, "history": model.history, "checksum": model.checksum()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=0.5)
    parser.add_argument("--budget", type=float, default=0.125, help="memory_budget of the tier auto, GiB a worker")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--tiers", default="host,auto,disk,stream")
    parser.add_argument("--directory", help="where to write the files, or where they are")
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    rows = int(arguments.gib * 2**30 / (2 * arguments.dim))
    options = {
        "column": "z",
        "objective": "kmeans",
        "clusters": arguments.clusters,
        "max_steps": arguments.steps,
        "tol": 0,
        "n_init": 1,
        "engine": arguments.engine,
        "workers": arguments.workers,
    }
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.directory or temporary
        began = time.perf_counter()
        if not list(Path(place).glob("*.parquet")):
            generated.write(Path(place), rows, arguments.dim, files=16)
        files = Path(place)
        size = sum(path.stat().st_size for path in files.iterdir())
        took = time.perf_counter() - began
        print(f"{rows:,} x {arguments.dim} float16, {size / 2**30:.2f} GiB; written in {took:.0f} s")
        first: dict | None = None
        for tier in arguments.tiers.split(","):
            if arguments.cold:
                subprocess.run("sync; echo 3 > /proc/sys/vm/drop_caches", shell=True, check=True)
            budget = {"memory_budget": arguments.budget} if tier == "auto" else {}
            done = subprocess.run(
                [sys.executable, "-c", FIT, place, json.dumps(options | {"cache": tier} | budget)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            found["step"] = statistics.median(entry["seconds"] for entry in found["history"][1:])
            first = first or found
            record = found["record"]
            peaks = ", ".join(f"{peak / 2**30:.2f}" for peak in record["peak_memory"])
            print(
                f"{tier:7} rows {record['rows']:,}, ingest {record['seconds']['ingest']:.1f} s, "
                f"step {found['step']:.2f} s = {found['step'] / first['step']:.2f} of {arguments.tiers.split(',')[0]}, "
                f"peak memory {peaks} GiB, {'same bits' if found['checksum'] == first['checksum'] else 'OTHER BITS'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
