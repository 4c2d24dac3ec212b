"""raydkm in the step benchmark: ADM steps alone, a whole fit, and what they are checked by.

All that the benchmark knows of raydkm's inside is in `ready` and `timed_steps`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from step_data import Rows

import raydkm
from raydkm.config import configure
from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.fit import directions_of, look_at, setting_of, temperature_of
from raydkm.engine.loop import adm
from raydkm.engine.passes import Passes, thread_pool
from raydkm.engine.start import given
from raydkm.engine.survey import measure
from raydkm.objectives import OBJECTIVES, Objective, State
from raydkm.ops.temperature import collapse_temperature

#: Of sr-kmeans, as a part of T_c.
TEMPERATURE = "0.1Tc"


def options(objective: str, steps: int) -> dict[str, Any]:
    """Parameters of a fit of exactly `steps` steps."""
    soft = {} if objective == "kmeans" else {"temperature": TEMPERATURE}
    return {"objective": objective, "max_steps": steps, "tol": 0, "objective_tol": 0, **soft}


@dataclass(frozen=True)
class Ready:
    """What a fit knows before its first step."""

    goal: Objective
    begin: Callable[[], State]  # a fit holds one state beside the next one, not the first of all besides
    passes: Passes


@contextmanager
def ready(x: Rows, start: Rows, objective: str, threads: int) -> Iterator[Ready]:
    """All of a fit that comes before its first step. The survey's sample, of no use here, is as small as may be."""
    clusters = len(start)
    config, *_ = configure({**options(objective, 1), "clusters": clusters, "init": "array", "seed_rows": clusters})
    device = torch.device("cpu")
    with thread_pool(threads) as pool:
        passes = Passes(RowSource.of(torch.from_numpy(x)), Solo(), device, threads, pool.map)
        look, frame = look_at(passes, config)
        facts = measure(passes, look.extent, frame, covariance=config.has_temperature)
        critical = None if facts.covariance is None else collapse_temperature(facts.covariance)
        temperature = temperature_of(config, critical)
        leading = directions_of(look, frame, config, device)
        goal = OBJECTIVES[objective](setting_of(config, facts, frame, temperature, critical, device, leading))
        yield Ready(goal, lambda: goal.begin(given(start, config, frame)[0]), passes)


def timed_steps(at: Ready, steps: int) -> tuple[list[float], Rows]:
    """Seconds of each of `steps` ADM steps, and the prototypes (K, d) after them, in the data's coordinates."""
    seconds: list[float] = []

    def watch(_state: State, _terms: object, taken: dict[str, float]) -> bool:
        seconds.append(taken["seconds"])
        return False

    state = adm(at.goal, at.begin(), at.passes, steps, watch)
    return seconds, (state.prototypes + at.goal.setting.frame.shift).float().numpy()


def steps_alone(x: Rows, start: Rows, objective: str, steps: int, threads: int) -> tuple[list[float], Rows]:
    """Like `timed_steps`, after one step that does not count."""
    with ready(x, start, objective, threads) as at:
        timed_steps(at, 1)
        return timed_steps(at, steps)


def whole_fit(x: Rows, start: Rows, objective: str, steps: int, threads: int) -> tuple[float, Rows]:
    """Seconds of `raydkm.fit`, with survey, moments and the labels of all rows at the end; and the prototypes."""
    began = time.perf_counter()
    model = raydkm.fit(x, clusters=len(start), init=start, threads=threads, **options(objective, steps))
    return time.perf_counter() - began, model.cluster_centers.astype(np.float32)


@dataclass(frozen=True)
class Found:
    """A model in the coordinates of its frame, and what it says of rows.

    `z` (n, d) and `prototypes` (K, d) are float64; `labels` (n,) are those of the same kernel as in a step, and
    `posteriors` (n, K) of the same softmax.
    """

    z: NDArray[np.float64]
    prototypes: NDArray[np.float64]
    temperature: float
    labels: NDArray[np.int64]
    posteriors: NDArray[np.float32] | None


def found(x: Rows, start: Rows, objective: str, sample: NDArray[np.int64]) -> Found:
    """Fit one step, and look at the rows `sample`."""
    fitted = raydkm.DKMeans(len(start), init=start, **options(objective, 1)).fit(x)
    model, rows = fitted.model_, x[sample]
    return Found(
        z=rows.astype(np.float64) - model.shift.numpy(),
        prototypes=model.prototypes.double().numpy(),
        temperature=model.temperature,
        labels=fitted.labels_[sample],
        posteriors=None if model.hard else fitted.predict_proba(rows),
    )
