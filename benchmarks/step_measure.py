"""One measurement of the step benchmark, in a process of its own: `measure` starts it, `main` is what it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_checks import check_labels, check_posteriors
from step_data import Rows, Shape
from step_peers import PEERS, environment, rows_of_mixture
from step_rates import matrix_rates, products_alone
from step_raydkm import steps_alone, whole_fit

#: What raydkm is measured by: (whether soft, whether the whole fit, objective).
OWN = {
    "raydkm": (False, False, "kmeans"),
    "raydkm.fit": (False, True, "kmeans"),
    "raydkm soft": (True, False, "sr-kmeans"),
    "raydkm.fit soft": (True, True, "sr-kmeans"),
}


def measure(method: str, directory: Path, clusters: int, steps: int, threads: int) -> dict[str, Any]:
    """Run `method` on the rows and the prototypes stored in `directory`, and return what it found.

    Where the process ends without a result, that is a dict of the key "failed" alone.
    """
    command = [sys.executable, __file__, method, str(directory), str(clusters), str(steps), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(threads), check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def inertia(x: Rows, prototypes: Rows) -> float:
    """Sum of squared distances of the rows to the nearest prototype, the same for every method."""
    theta = torch.from_numpy(np.ascontiguousarray(prototypes, np.float32))
    half = theta.square().sum(1) / 2
    total = 0.0
    for part in np.split(x, range(1024, len(x), 1024)):
        z = torch.tensor(part)
        best = torch.addmm(half, z, theta.T, beta=-1).amax(1)
        total += float((z.double().square().sum(1) - 2 * best.double()).sum())
    return total


def memory(name: str) -> int:
    """Bytes that this process has now (VmRSS) or has had at most (VmHWM)."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])


def of_raydkm(method: str, x: Rows, start: Rows, steps: int, threads: int) -> dict[str, Any]:
    _, whole, objective = OWN[method]
    before = memory("VmRSS")
    if whole:
        whole_fit(x, start, objective, 1, threads)
        one, _ = whole_fit(x, start, objective, 1, threads)
        total, prototypes = whole_fit(x, start, objective, steps, threads)
    else:
        each, prototypes = steps_alone(x, start, objective, steps, threads)
        one, total = each[0], sum(each)
    extra = memory("VmHWM") - before
    found = {"one": one, "total": total, "steps": steps, "scale": 1.0, "extra": extra}
    return found | {"inertia": inertia(x, prototypes)}


def of_peer(method: str, x: Rows, start: Rows, steps: int, threads: int) -> dict[str, Any]:
    peer = PEERS[method]
    fit = peer.make(len(start), x.shape[1], threads)
    rows = x[: rows_of_mixture(len(x), len(start))] if peer.soft else x
    steps = min(steps, peer.most_steps or steps)
    before = memory("VmRSS")

    def timed(count: int) -> tuple[float, Rows]:
        began = time.perf_counter()
        prototypes = fit(rows, start, count)
        return time.perf_counter() - began, prototypes

    timed(1)  # makes the library's threads and buffers
    one, _ = timed(1)
    total, prototypes = timed(steps)
    extra = memory("VmHWM") - before
    scale = len(x) / len(rows)
    found = {"one": one, "total": total, "steps": steps, "scale": scale, "extra": extra}
    return found | {"inertia": inertia(x, prototypes)}


def main(method: str, directory: Path, clusters: int, steps: int, threads: int) -> dict[str, Any]:
    # read and not mapped, so that the highest memory so far is that of now
    x, start = np.load(directory / "rows.npy"), np.load(directory / "start.npy")
    shape = Shape(len(x), x.shape[1], clusters)
    if method == "rates":
        return {"rates": matrix_rates(shape, threads), "products": products_alone(shape, threads)}
    if method == "checks":
        return {
            "labels": asdict(check_labels(x, start)),
            "posteriors": asdict(check_posteriors(x, start)),
        }
    if method in OWN:
        return of_raydkm(method, x, start, steps, threads)
    return of_peer(method, x, start, steps, threads)


if __name__ == "__main__":
    _, name, place, *numbers = sys.argv
    print(json.dumps(main(name, Path(place), *map(int, numbers))))
