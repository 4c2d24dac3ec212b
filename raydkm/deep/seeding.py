"""Where the first clusters of learned features begin.

A fit of rows draws its seeds by what rows hold. Features of the same rows differ in their last bits with the number of
workers that trained the encoder, and so would all draws: here they follow from the rows' numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raydkm.config import AS_THEY_ARE, FitConfig
from raydkm.data.source import RowSource
from raydkm.deep.shuffle import permuted
from raydkm.engine.comm import Comm, Solo
from raydkm.engine.fit import fit_rows
from raydkm.engine.result import model_of
from raydkm.engine.start import RESTART_STEPS, seed_rows
from raydkm.ops.distances import Points
from raydkm.ops.frame import Frame
from raydkm.ops.seeding import SEEDINGS


def seeded(rows: RowSource, first: int, comm: Comm, config: FitConfig, *, threads: int) -> Tensor:
    """Prototypes (K, d) of float64: of `n_init` seedings of a sample of the features, each with a short fit, the best.

    Parameters
    ----------
    rows : RowSource
        Features of this worker's rows, the first of which has the number `first` among those of all workers.
    """
    sample = _sample(rows, first, comm, config)
    z = Frame.identity(config.metric, 0).normalise(sample)
    points, weight = Points.of(z), torch.ones(len(z), dtype=torch.float64)
    found = []
    for restart in range(config.n_init):
        rng = np.random.Generator(np.random.Philox(key=[config.seed, restart]))
        start = z[SEEDINGS[config.init](points, weight, config.clusters, rng)]
        if comm.world_size == 1 or restart % comm.world_size == comm.rank:
            short = config.model_copy(update={"max_steps": RESTART_STEPS, "anneal": 0, "n_init": 1})
            fitted = fit_rows(
                RowSource.of(z),
                Solo(),
                short,
                threads=threads,
                device=torch.device("cpu"),
                start=start.double().numpy(),
            )
            centers = torch.from_numpy(model_of(fitted, short, AS_THEY_ARE).cluster_centers)
            found.append((fitted.history[-1]["objective"], restart, centers))
    best = min((each for part in comm.all_gather(found) for each in part), key=lambda each: each[:2])
    return best[2]


def _sample(rows: RowSource, first: int, comm: Comm, config: FitConfig) -> Tensor:
    """Features (m, d) of rows drawn by their numbers, in the order in which they were drawn, in every worker."""
    total = sum(comm.all_gather(rows.held))
    drawn = permuted(torch.arange(seed_rows(config, total)), total, config.seed)
    places = torch.nonzero((drawn >= first) & (drawn < first + rows.held)).flatten()
    parts = comm.all_gather((places, rows.take(drawn[places] - first).cpu()))
    return torch.cat([part for _, part in parts])[torch.cat([where for where, _ in parts]).argsort()]
