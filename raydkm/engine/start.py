"""Where a fit begins: at prototypes given, or at the best of several seedings of the sample."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydkm.config import FitConfig
from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.loop import adm
from raydkm.engine.passes import Passes
from raydkm.engine.seed_all import SEEDINGS_OF_ALL, SeedingOfAll
from raydkm.engine.survey import Survey, measure
from raydkm.errors import ConfigError
from raydkm.objectives import Objective, State
from raydkm.ops.distances import Points
from raydkm.ops.frame import Frame
from raydkm.ops.moments import Moments
from raydkm.ops.scores import Scores
from raydkm.ops.seeding import SEEDINGS
from raydkm.ops.statistics import cluster_fields, hard_statistics
from raydkm.ops.temperature import collapse_temperature

#: Steps of each restart on the seeding sample, before the best is chosen.
RESTART_STEPS = 20
MIN_SEED_ROWS = 32_768
SEED_ROWS_PER_CLUSTER = 32


def seed_rows(config: FitConfig, total: int) -> int:
    """Rows in the seeding sample of a data set of `total` rows."""
    to_seed = 0 if config.init == "array" else SEED_ROWS_PER_CLUSTER * config.clusters
    default = max(MIN_SEED_ROWS, to_seed)
    wanted = config.seed_rows if isinstance(config.seed_rows, int) else default
    return min(total, wanted if config.init == "array" else max(wanted, config.clusters))


def given(start: np.ndarray, config: FitConfig, frame: Frame) -> tuple[Tensor, dict[str, Any]]:
    """Initial prototypes `start` (K, d) of the data's coordinates, in those of the frame; and a record of them."""
    start = np.asarray(start, dtype=np.float64)
    expected = (config.clusters, len(frame.shift))
    if start.shape != expected:
        raise ConfigError(f"initial prototypes have shape {start.shape}, expected {expected}")
    if not np.isfinite(start).all():
        raise ConfigError("initial prototypes hold NaN or infinite values")
    given_as = torch.from_numpy(start)
    prototypes = frame.normalise(given_as)
    if frame.metric == "cosine":  # means of unit vectors, as of a model, are shorter than these and stay so
        norm = torch.linalg.vector_norm(given_as, dim=1, keepdim=True)
        prototypes = torch.where((norm > 0) & (norm < 1), given_as, prototypes)
        if config.spherical and not bool((norm > 0).all()):
            raise ConfigError("initial prototypes: a zero vector has no direction (spherical)")
    return prototypes - frame.shift, {"init": "array", "sha256": digest(start)}


def digest(start: np.ndarray) -> str:
    """Of initial prototypes, to tell them from others."""
    return sha256(np.ascontiguousarray(start, dtype=np.float64).tobytes()).hexdigest()


def seeded(
    passes: Passes,
    look: Survey,
    config: FitConfig,
    frame: Frame,
    facts: Moments,
    objective: Callable[[Moments], Objective],
    *,
    refined: bool,
) -> tuple[State, dict[str, Any]]:
    """Seed on the sample; of several restarts, each a short fit of the sample, return the best.

    The fit goes on from where the best restart has come to. Where the sample is all there is, or it is annealed, it
    repeats it from its beginning, so that the history tells the whole course; not so if `refined` is asked for.
    """
    goal = objective(facts)
    if config.seed_rows == "all" and config.init in SEEDINGS_OF_ALL and not look.sample_is_all:
        prototypes, record = seeded_of_all(passes, look, config, frame, facts)
        return goal.begin(prototypes), record
    weight, seeds = look.sample_weight, seedings(look, config, frame)

    def drawn(restart: int) -> State:
        return goal.begin(seeds(restart))

    if config.n_init == 1 and not refined:
        return drawn(0), {"init": config.init, "sample_rows": len(weight)}

    weighted = None if bool((weight == weight[0]).all()) else weight
    alone = Passes(RowSource.of(look.sample_rows, weighted).to(passes.device), Solo(), passes.device)
    heaviest, lightest = (1.0, 1.0) if weighted is None else (float(weight.max()), float(weight.min()))
    extent = replace(look.extent, rows=len(weight), max_weight=heaviest, min_weight=lightest)
    fine = extent.needs_fine(frame, look.sample_rows)
    of_sample = objective(measure(alone, extent, frame, covariance=goal.needs_covariance, fine=fine))

    stopped = threading.Event()

    def restart(number: int) -> tuple[int, float, State]:
        state = adm(of_sample, drawn(number), alone, config.anneal + RESTART_STEPS, lambda *_: stopped.is_set())
        return number, state.objective, replace(state, step=0, objective=math.inf)

    comm = passes.comm
    try:
        mine = list(passes.map(restart, range(comm.rank, config.n_init, comm.world_size)))
    except BaseException:  # an interrupt comes here, while threads go on
        stopped.set()
        raise
    objectives = dict(pair for part in comm.all_gather([(number, value) for number, value, _ in mine]) for pair in part)
    best = min(objectives, key=lambda number: (objectives[number], number))
    [state] = [s for s in comm.all_gather(next((s for number, _, s in mine if number == best), None)) if s is not None]
    reached = [objectives[number] for number in range(config.n_init)]
    state = drawn(best) if (look.sample_is_all or config.anneal) and not refined else state
    return state, {"init": config.init, "sample_rows": len(weight), "restart_objectives": reached}


def within_temperature(passes: Passes, prototypes: Tensor, frame: Frame, facts: Moments, precision: str) -> float:
    """2 lambda_max(W) of the covariance W within the clusters of prototypes (K, d): above it they would not part."""
    assert facts.covariance is not None
    scores = Scores.of(prototypes, prototypes.new_zeros(len(prototypes)), 0.0, frame, passes.device)
    fields = cluster_fields(len(scores), facts.bounds)
    statistics = passes.sum(fields, hard_statistics(scores, frame, precision=precision))
    counts, sums = statistics["counts"].cpu(), statistics["sums"].cpu()
    between = (sums / counts.clamp(min=1e-300)[:, None]).T @ sums / facts.weight - torch.outer(facts.mean, facts.mean)
    return collapse_temperature(facts.covariance - between)


def seedings(look: Survey, config: FitConfig, frame: Frame) -> Callable[[int], Tensor]:
    """What draws, for the number of a restart, prototypes (K, d) of float64 from the sample, in the frame."""
    clusters, rows, weight = config.clusters, look.sample_rows, look.sample_weight
    if len(rows) < clusters:  # rows again and again, if too few of them differ
        among = torch.arange(clusters) % len(rows)
        rows, weight = rows[among], weight[among]
    points, exact = Points.in_frame(rows, frame), replace(frame, dtype=torch.float64)

    def seeds(restart: int) -> Tensor:
        rng = np.random.Generator(np.random.Philox(key=[config.seed, restart]))
        return exact(rows[SEEDINGS[config.init](points, weight, clusters, rng)])

    return seeds


def seeded_of_all(
    passes: Passes, look: Survey, config: FitConfig, frame: Frame, facts: Moments
) -> tuple[Tensor, dict[str, Any]]:
    """Seed on all rows; of several seedings, return the one with the least sum of squared distances.

    There is no short fit of the sample here: clusters that it lacks would be lost again.
    """
    found: list[tuple[float, Tensor]] = []
    for restart in range(config.n_init):
        rng = np.random.Generator(np.random.Philox(key=[config.seed, restart]))
        first = look.sample_rows[restart % len(look.sample_rows)][None]
        draws = int(rng.integers(2**62))
        # neither is held while the other is: each takes BYTES_A_ROW
        rows = SEEDINGS_OF_ALL[config.init](SeedingOfAll(passes, frame, facts, first, seed=draws), config.clusters, rng)
        rows = passes.comm.all_gather(rows)[0]
        found.append((SeedingOfAll(passes, frame, facts, rows).measured(), rows))
    reached = [value / facts.weight for value, _ in found]
    best = replace(frame, dtype=torch.float64)(found[int(np.argmin(reached))][1])
    seeding_record = {"init": config.init, "sample_rows": facts.rows, "restart_objectives": reached}
    return best, seeding_record
