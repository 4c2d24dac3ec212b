"""k-means of very many clusters: steps with approximate assignment beside exact ones, and searches beside FAISS.

    python benchmarks/large_k.py [--rows 1000000 --clusters 65536 --dim 128] [--steps 3] [--searches]

Prints Markdown. Fits begin at the same rows, each in a process of its own. --searches adds, on the prototypes of the
approximate fit and with one thread, time and misses of raydkm's search and of FAISS's IVF and HNSW indexes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

FIT = """
import json, resource, sys
import numpy as np
import raydkm
x, start = np.load(sys.argv[1]), np.load(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model = raydkm.fit(x, init=start, **json.loads(sys.argv[3]))
if len(sys.argv) > 4:
    np.save(sys.argv[4], (model.cluster_centers - model.shift.numpy()).astype(np.float32))
record = model.record
print(json.dumps({"history": model.history, "inertia": record["inertia"], "assignment": record["seconds"]["assignment"],
                  "memory": max(record["peak_memory"]) - before}))
"""


def rows_of(rows: int, dim: int, spread: float, decay: float, seed: int = 0) -> np.ndarray:
    """Rows (n, d) of float32 around 20,000 centres; the standard deviation of column j falls as j^-decay."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20_000, dim), dtype=np.float32)
    x = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 65_536):
        part = x[start : start + 65_536]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= spread
        part += centres[rng.integers(len(centres), size=len(part))]
    x *= (1 + np.arange(dim, dtype=np.float32)) ** -decay
    return x


def fitted(place: Path, options: dict, prototypes: Path | None = None) -> dict:
    arguments = [str(place / "x.npy"), str(place / "start.npy"), json.dumps(options)]
    arguments += [str(prototypes)] if prototypes else []
    done = subprocess.run([sys.executable, "-c", FIT, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def searches(prototypes: np.ndarray, queries: np.ndarray) -> None:
    """Print time and misses of each search, with one thread."""
    import faiss

    from raydkm.ops.approximate import EFFORTS, CellAssignment, cells
    from raydkm.ops.frame import Frame
    from raydkm.ops.hard import HardAssignment
    from raydkm.ops.scores import Scores

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    theta, z = torch.from_numpy(prototypes), torch.from_numpy(queries)
    scores = Scores.of(
        theta.double(), theta.new_zeros(len(theta)).double(), 0.0, Frame.identity("euclidean", theta.shape[1])
    )
    dim = theta.shape[1]

    def timed(
        made: Callable[[], Callable[[torch.Tensor], torch.Tensor]], rows: int
    ) -> tuple[float, torch.Tensor, float]:
        began = time.perf_counter()
        search = made()
        built = time.perf_counter() - began
        began = time.perf_counter()
        labels = torch.cat([search(part) for part in z.split(rows)])
        return built, labels, (time.perf_counter() - began) / len(z) * 1e6

    def ivf(lists: int, probes: int) -> Callable[[torch.Tensor], torch.Tensor]:
        centres, _ = cells(theta, lists)
        quantizer = faiss.IndexFlatL2(dim)
        quantizer.add(centres.numpy())
        index = faiss.IndexIVFFlat(quantizer, dim, len(centres), faiss.METRIC_L2)
        index.add(prototypes)
        index.nprobe = probes
        return lambda part: torch.from_numpy(index.search(part.numpy(), 1)[1][:, 0])

    def hnsw(kept: int) -> Callable[[torch.Tensor], torch.Tensor]:
        index = faiss.IndexHNSWFlat(dim, 32)
        index.add(prototypes)
        index.hnsw.efSearch = kept
        return lambda part: torch.from_numpy(index.search(part.numpy(), 1)[1][:, 0])

    ways: dict[str, tuple[Callable, int]] = {
        f"exact, {precision}": (lambda precision=precision: HardAssignment(scores, precision), 128)
        for precision in ("fp32", "int8")
    }
    ways |= {
        f"raydkm, {part:g} of the cells": (lambda part=part: CellAssignment(scores, part), 4096) for part in EFFORTS
    }
    lists = 2 * int(len(theta) ** 0.5)
    for count in (lists // 16, lists // 8, lists // 4):
        ways[f"FAISS IVF, {count} of {lists} lists"] = (lambda count=count: ivf(lists, count), 4096)
    ways |= {f"FAISS HNSW, efSearch {kept}": (lambda kept=kept: hnsw(kept), 4096) for kept in (32, 64, 128, 256)}
    print("\n| search, one thread | build, s | µs a row | missed |\n|---|---|---|---|")
    best: torch.Tensor | None = None
    for name, (made, rows) in ways.items():
        built, labels, micros = timed(made, rows)
        best = labels if best is None else best
        missed = float((labels != best).double().mean())
        print(f"| {name} | {built:.2f} | {micros:.0f} | {missed:.2%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clusters", type=int, default=65_536)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--spread", type=float, default=0.7, help="standard deviation within the 20,000 groups")
    parser.add_argument("--decay", type=float, default=0.75, help="of the spectrum")
    parser.add_argument("--ways", default="approximate,exact")
    parser.add_argument("--searches", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        x = rows_of(arguments.rows, arguments.dim, arguments.spread, arguments.decay)
        chosen = np.random.default_rng(1).choice(len(x), arguments.clusters, replace=False)
        np.save(place / "x.npy", x)
        np.save(place / "start.npy", x[np.sort(chosen)])
        queries = x[np.random.default_rng(2).integers(len(x), size=8192)]
        shape = f"{len(x):,} x {arguments.dim}, K = {arguments.clusters:,}, columns' deviation j^-{arguments.decay:g}"
        del x
        print(f"{shape}, {arguments.steps} steps, {arguments.threads or 'all'} threads\n")
        print(
            "| assignment | step, s | missed in each step | effort | last pass, s | memory beyond rows, MiB | inertia |"
        )
        print("|---|---|---|---|---|---|---|")
        for way in arguments.ways.split(","):
            options = {"clusters": arguments.clusters, "objective": "kmeans", "max_steps": arguments.steps, "tol": 0}
            options |= {"assignment": way, "threads": arguments.threads}
            found = fitted(place, options, place / "prototypes.npy")
            history = found["history"]
            step = statistics.median(entry["seconds"] for entry in history)
            exact = all(entry["miss_rate"] is None for entry in history)
            missed = "–" if exact else ", ".join(_share(entry["miss_rate"]) for entry in history)
            efforts = "–" if exact else ", ".join(_level(entry["effort"]) for entry in history)
            print(
                f"| {way} | {step:.2f} | {missed} | {efforts} | {found['assignment']:.2f} | "
                f"{found['memory'] / 2**20:.0f} | {found['inertia']:.6g} |",
                flush=True,
            )
        if arguments.searches:
            searches(np.load(place / "prototypes.npy"), queries)


def _share(rate: float | None) -> str:
    return "exact" if rate is None else f"{rate:.2%}"


def _level(effort: int | None) -> str:
    return "exact" if effort is None else str(effort)


if __name__ == "__main__":
    main()
