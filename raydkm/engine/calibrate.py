"""How long a step takes here, measured with the real kernels on a few canonical batches."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from raydkm.config import FitConfig
from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.fit import directions_of, look_at, setting_of, temperature_of
from raydkm.engine.loop import adm
from raydkm.engine.passes import Passes, thread_pool
from raydkm.engine.survey import measure
from raydkm.objectives import OBJECTIVES, State, Terms
from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.temperature import collapse_temperature

#: Canonical batches of each thread in a short and in a longer pass: the difference is what rows cost.
BATCHES = (1, 5)

#: Each is repeated for so many seconds, and at least so many times.
SECONDS, REPEATS = 0.6, 3


@dataclass(frozen=True)
class Measured:
    """Seconds of a step of one process: of each row, and of what there is to do once (prepare, add up, update)."""

    row: float
    once: float


def measured(config: FitConfig, dim: int, dtype: str, threads: int, total: int) -> Measured:
    """Time steps of `config`, as one on `total` rows makes them, on fewer generated rows (n, dim) around prototypes.

    The least of several times counts: what disturbs them only adds.
    """
    few, many = (threads * batches * BATCH_ROWS for batches in BATCHES)
    short, long = (_step_seconds(config, dim, dtype, threads, rows, total) for rows in (few, many))
    row = max(long - short, 0.1 * long) / (many - few)
    return Measured(row, max(short - few * row, 0.0))


def _step_seconds(config: FitConfig, dim: int, dtype: str, threads: int, rows: int, total: int) -> float:
    x, prototypes = _clustered(rows, dim, config.clusters, np.dtype(dtype))
    device = torch.device("cpu")
    with thread_pool(threads) as pool:
        source = RowSource.of(torch.from_numpy(x))
        source.repeats = False  # all of each step, as of a fit's first ones: later ones go on from what they know
        passes = Passes(source, Solo(), device, threads, pool.map)
        look, frame = look_at(passes, FitConfig(clusters=1))
        facts = measure(passes, look.extent, frame, covariance=config.has_temperature)
        critical = None if facts.covariance is None else collapse_temperature(facts.covariance)
        temperature = temperature_of(config, critical)
        of_all = replace(look, extent=replace(look.extent, rows=total))  # whether directions pay depends on it
        directions = directions_of(of_all, frame, config, device)
        goal = OBJECTIVES[config.objective](setting_of(config, facts, frame, temperature, critical, device, directions))
        state = goal.begin(torch.from_numpy(prototypes).double() - frame.shift)
        seconds: list[float] = []
        began = time.perf_counter()

        def watch(_state: State, _terms: Terms, taken: dict[str, float]) -> bool:
            seconds.append(taken["seconds"])
            return len(seconds) > REPEATS and time.perf_counter() - began > SECONDS

        adm(goal, state, passes, state.step + 1000, watch)
    return min(seconds[1:] or seconds)  # the first makes workspaces, and may compile


def _clustered(rows: int, dim: int, clusters: int, dtype: np.dtype) -> tuple[NDArray, NDArray]:
    """Rows (n, d) around prototypes (K, d), which are rows themselves: as much variance between as around them.

    The eigenvalues of their covariance fall as 1/j, in a random orthogonal basis. How many prototypes a hard step has
    to compare exactly depends on the data: on rows without any structure it takes several times as long.
    """
    draws, integer = np.random.default_rng(0), dtype.kind in "iu"
    basis, _ = np.linalg.qr(draws.standard_normal((dim, dim)))
    scaled = (basis.T / np.sqrt(np.arange(1, dim + 1))[:, None]).astype(np.float32)
    centres = draws.standard_normal((clusters, dim), dtype=np.float32) @ scaled

    def around(which: NDArray) -> NDArray:
        found = centres[which] + draws.standard_normal((len(which), dim), dtype=np.float32) @ scaled
        return (64 + found * (16 / found.std())).clip(0, 127) if integer else found

    return around(draws.integers(clusters, size=rows)).astype(dtype), around(np.arange(clusters))
