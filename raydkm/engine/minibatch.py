"""Mini-batch k-means (Sculley 2010): prototypes that move towards the rows of one batch after another.

A prototype is the weighted mean of all rows that it was given so far, each counted where it was assigned when it came:
theta_k <- theta_k + (S_k - n_k theta_k) / v_k with S_k and n_k of the batch and v_k the sum of all n_k, so that 1 / v_k
is the learning rate of a row. Targets are hard or, at a temperature, soft; the latter make it online EM with equal
mixture shares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

import numpy as np
import torch
from torch import Tensor

from raydkm.config import FitConfig
from raydkm.engine.fit import look_at, temperature_of
from raydkm.engine.passes import Passes
from raydkm.engine.start import given, seedings
from raydkm.engine.survey import Survey, condensed, measure_spread
from raydkm.errors import ConfigError
from raydkm.model import Model
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.distance import DistanceObjective
from raydkm.ops.distances import Points, keep_nearest, no_candidate
from raydkm.ops.frame import Frame
from raydkm.ops.moments import Extent
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import cluster_fields, hard_statistics, soft_statistics


@dataclass(frozen=True)
class Running:
    """What is carried from batch to batch.

    Parameters
    ----------
    frame : Frame
        Of the first batch.
    temperature : float
        T, fixed by the first batch; 0 for hard targets.
    collapse_temperature : float or None
        T_c of the first batch.
    prototypes : Tensor (K, d) of float64
        In the coordinates of the frame.
    counts : Tensor (K,) of float64
        Weight that each prototype was given so far.
    rows, steps, batches : int
        Rows seen; steps done, those of a fit before included; batches.
    """

    frame: Frame
    temperature: float
    collapse_temperature: float | None
    prototypes: Tensor
    counts: Tensor
    rows: int = 0
    steps: int = 0
    batches: int = 0

    @classmethod
    def after(cls, model: Model) -> Running:
        """Go on from a fit, whose rows count as if they had been one batch before."""
        return cls(
            frame=model.frame(),
            temperature=model.temperature,
            collapse_temperature=model.record["collapse_temperature"],
            prototypes=model.prototypes,
            counts=model.counts,
            rows=model.record["rows"],
            steps=model.record["steps"],
        )


def has_batches(objective: str) -> bool:
    """Whether an objective has a mini-batch form: those with logistic posteriors are fitted to all rows at once."""
    return issubclass(OBJECTIVES[objective], DistanceObjective)


def check_config(config: FitConfig) -> None:
    """Refuse what has no mini-batch form: the shares of a batch say little about those of all rows."""
    if config.balance > 0 or config.bounded:
        raise ConfigError("balance is reached on all rows at once; use fit, or partial_fit without")
    if config.assignment == "approximate" or config.max_miss != FitConfig.model_fields["max_miss"].default:
        raise ConfigError("batches are assigned exactly; use fit, or partial_fit without assignment and max_miss")
    if config.spherical:
        raise ConfigError("batches have prototypes that are means; use fit, or partial_fit without spherical")
    if config.anneal > 0:
        raise ConfigError("batches are not annealed; use fit, and go on from it in batches without anneal")


def begin(passes: Passes, config: FitConfig, start: np.ndarray | None) -> Running:
    """Seed from the first batch, or start at prototypes (K, d) in the coordinates of the data.

    Raises
    ------
    InputError
        If the batch has fewer rows of positive weight than there are clusters.
    """
    look, frame = look_at(passes, config)
    critical = None
    if config.has_temperature:
        passes, extent = condensed(passes, look, config.metric)
        _, critical = measure_spread(passes, look, extent, frame, covariance=False)
    prototypes = given(start, config, frame)[0] if start is not None else _seeded(look, config, frame)
    return Running(
        frame=frame,
        temperature=temperature_of(config, critical),
        collapse_temperature=critical,
        prototypes=prototypes,
        counts=torch.zeros(config.clusters, dtype=torch.float64),
    )


def step(running: Running, passes: Passes, config: FitConfig) -> Running:
    """Move the prototypes towards the rows of one batch."""
    frame, device = running.frame, passes.device
    extent = reduce(or_, (Extent.of(batch, frame) for batch in passes.source.batches()))
    scores = Scores.of(running.prototypes, torch.zeros_like(running.counts), running.temperature, frame, device)
    hard = OBJECTIVES[config.objective].hard
    if hard:
        local = hard_statistics(scores, frame, precision=config.precision)
    else:
        local = soft_statistics(scores, frame, bound=extent.bounds(frame).columns, precision=config.precision)
    found = passes.sum(cluster_fields(config.clusters, extent.bounds(frame, fine=True)), local)
    given_now = found["counts"].cpu()
    counts = running.counts + given_now
    moves = found["sums"].cpu() - given_now[:, None] * running.prototypes
    return replace(
        running,
        prototypes=running.prototypes + moves / counts.clamp(min=1e-300)[:, None],
        counts=counts,
        rows=running.rows + extent.rows,
        steps=running.steps + 1,
        batches=running.batches + 1,
    )


def _seeded(look: Survey, config: FitConfig, frame: Frame) -> Tensor:
    """The best of `n_init` seedings, by the weighted squares of the distances to them."""
    points = Points.of(replace(frame, dtype=torch.float64)(look.sample_rows))

    def squares(prototypes: Tensor) -> float:
        nearest, owner = no_candidate(len(points))
        keep_nearest(points, Points.of(prototypes), 0, nearest, owner)
        return float(look.sample_weight @ nearest)

    return min(map(seedings(look, config, frame), range(config.n_init)), key=squares)
