"""Assignment: what disturbing it costs, and its rate beside a loop of pyarrow and FAISS.

    python benchmarks/assignment.py [--rows 2000000 --dim 128 --clusters 1024]
    python benchmarks/assignment.py --disturb [--rows 2000000 --dim 32 --clusters 64]

- Rate: rows/s of `raydkm.assign` in this process with two threads, as a part of that of one process that reads record
  batches with pyarrow, searches them with a flat FAISS index on two threads and writes cluster and distance with
  pyarrow. The process is warm; the start of one is told apart. On a shared machine, look at processor times.
- Disturbed: on a cluster of several nodes on this machine the driver, an actor and a node are killed with SIGKILL, each
  at three random moments; then the command is run again. Every row has to be there once, the bytes have to be those of
  an undisturbed run in one process, and no temporary file may be left.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import faiss
import generated
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from quality_tables import Table
from ray.cluster_utils import Cluster

import raydkm

FILES = 8
READ_ROWS = 16_384


def loop(files: list[Path], out: Path, model: raydkm.Model) -> None:
    """What assignment is at the least: read, search, write."""
    faiss.omp_set_num_threads(2)
    index = faiss.IndexFlatL2(model.dim)
    index.add(np.ascontiguousarray(model.cluster_centers, dtype=np.float32))
    schema = pa.schema([("cluster", pa.int32()), ("distance", pa.float32())])
    out.mkdir()
    for path in files:
        with pq.ParquetWriter(out / path.name, schema) as writer:
            for batch in pq.ParquetFile(path).iter_batches(READ_ROWS, columns=["z"]):
                z = batch["z"].flatten().to_numpy().reshape(-1, model.dim).astype(np.float32)
                distance, found = index.search(z, 1)
                columns = [pa.array(found[:, 0].astype(np.int32)), pa.array(np.sqrt(np.maximum(distance[:, 0], 0)))]
                writer.write_table(pa.table(columns, schema=schema))


def rates(place: Path, rows: int, dim: int, clusters: int, repeats: int) -> None:
    data = generated.write(place / "rows", rows, dim, FILES)
    files = sorted(data.iterdir())
    model = raydkm.fit(files[:1], column="z", objective="kmeans", clusters=clusters, n_init=1, max_steps=3)
    raydkm.assign(model, files[0], out=place / "warm", threads=2)
    loop(files[:1], place / "warm loop", model)
    runs = {
        "loop": lambda out: loop(files, out, model),
        "assign": lambda out: raydkm.assign(model, files, out=out, threads=2),
    }
    took: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            began, used = time.perf_counter(), time.process_time()
            run(place / f"{name}{number}")
            took[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - used)
    code = "import sys, time, raydkm; from raydkm.api.assign import assign; import faiss"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    started = time.perf_counter() - began
    middle = {name: statistics.median(values) for name, values in took.items()}
    ratios = [a / b for a, b in zip(took["loop"], took["assign"], strict=True)]
    used = {name: statistics.median(values) for name, values in processor.items()}
    print(f"{rows:,} x {dim} float16, K = {clusters}, 2 threads, median of {repeats}")
    for name, seconds in middle.items():
        print(f"{name}: {seconds:.2f} s, {rows / seconds:,.0f} rows/s; {used[name]:.2f} s of processors")
    print(f"rate / loop's: {middle['loop'] / middle['assign']:.2f} (pairs: {', '.join(f'{r:.2f}' for r in ratios)})")
    print(f"processor time of the loop / of assign: {used['loop'] / used['assign']:.2f}")
    print(f"start-up of a process (imports): {started:.1f} s")


class Disturbed:
    """Runs of ``raydkm assign`` in processes of their own, on a cluster of three nodes of one CPU."""

    def __init__(self, place: Path, rows: int, dim: int, clusters: int):
        self.data = _numbered(place / "rows", rows, dim)
        self.rows, self.place = rows, place
        raydkm.fit(
            self.data / "0000.parquet", column="z", objective="sr-kmeans", clusters=clusters, n_init=1, max_steps=3,
            out=place / "model",
        )  # fmt: skip
        self.options = {"column": "z", "keep": ["id"], "nearest": 3}
        raydkm.assign(place / "model", self.data, out=place / "undisturbed", engine="local", **self.options)
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(3)]
        self.cluster.wait_for_nodes()

    def start(self, out: Path) -> subprocess.Popen:
        code = f"import raydkm; raydkm.assign({str(self.place / 'model')!r}, {str(self.data)!r}, out={str(out)!r}, "
        code += f"engine='ray', workers=(1, 3), **{self.options!r})"
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def run(self, what: str, out: Path, share: float) -> dict[str, Any]:
        """Disturb a run when `share` of its ranges are done; then run it again."""
        ranges = len(list((self.place / "undisturbed").glob("*-*.parquet")))
        began = time.perf_counter()
        driver = self.start(out)
        while driver.poll() is None and _done(out) < max(1, share * ranges):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.2))
        at = _done(out)
        if what == "driver":
            driver.kill()
        elif what == "actor":
            os.kill(random.choice(_actors()), signal.SIGKILL)
        else:
            self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        code = driver.wait()
        first = time.perf_counter() - began
        whole = (out / "_SUCCESS").exists()
        began = time.perf_counter()
        again = self.start(out)
        assert again.wait() == 0
        second = time.perf_counter() - began
        if what == "node":
            self.nodes.append(self.cluster.add_node(num_cpus=1))
            self.cluster.wait_for_nodes()
        ids = np.sort(
            np.concatenate([pq.ParquetFile(p).read(["id"])["id"].to_numpy() for p in out.glob("*-*.parquet")])
        )
        return {
            "killed": what,
            "at range": f"{at} of {ranges}",
            "run ended with": code,
            "whole without a rerun": whole,
            "seconds": round(first, 1),
            "rerun": round(second, 1),
            "rows once": bool(np.array_equal(ids, np.arange(self.rows))),
            "same bytes": _bytes(out) == _bytes(self.place / "undisturbed"),
            "left over": sorted(set(_names(out)) ^ set(_names(self.place / "undisturbed"))),
        }


def _numbered(directory: Path, rows: int, dim: int) -> Path:
    """Rows around 64 centres with their number as `id`."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((64, dim), dtype=np.float32)
    for number, ids in enumerate(np.array_split(np.arange(rows), FILES)):
        z = centres[rng.integers(64, size=len(ids))] + rng.standard_normal((len(ids), dim), dtype=np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(z.astype(np.float16).reshape(-1)), dim)
        pq.write_table(pa.table({"id": ids, "z": column}), directory / f"{number:04d}.parquet", row_group_size=65_536)
    return directory


def _done(out: Path) -> int:
    return len(list(out.glob("_ranges/*[0-9].parquet")))


def _actors() -> list[int]:
    """Of the nodes that this process has started: others of the machine are not ours to kill."""
    raylets = _pgrep("-x", "raylet", "-P", str(os.getpid()))
    return [int(pid) for pid in _pgrep("-f", "^ray::MapWorker", "-P", ",".join(raylets))]


def _pgrep(*arguments: str) -> list[str]:
    return subprocess.run(["pgrep", *arguments], capture_output=True, text=True, check=False).stdout.split()


def _names(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


def _bytes(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in _names(out) if (out / name).is_file()}


def main(
    disturb: Annotated[bool, typer.Option("--disturb", help="Kill drivers, actors and nodes.")] = False,
    rows: int = 2_000_000,
    dim: int = 128,
    clusters: int = 1024,
    repeats: int = 5,
) -> None:
    """Print the table of disturbed runs, or the rates."""
    logging.getLogger("raydkm").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if not disturb:
            rates(place, rows, dim, clusters, repeats)
            return
        runs = Disturbed(place, rows, dim, clusters)
        results = []
        for what in ("driver", "actor", "node"):
            for number in range(3):
                results.append(runs.run(what, place / f"{what}{number}", random.random() * 0.9))
                print(json.dumps(results[-1]), flush=True)
        runs.cluster.shutdown()
        print(Table(list(results[0]), [[str(value) for value in each.values()] for each in results]).markdown())


if __name__ == "__main__":
    typer.run(main)
