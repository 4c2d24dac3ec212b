"""Seeding on all rows of all workers, for clusters so rare that no sample holds them.

Rows are drawn by keys of their contents (`raydkm.ops.keys`) in proportion to their weight times the squared distance to
the nearest candidate: the row with the smallest -log(u) / (w d^2) is such a draw, and so, as independent draws, are all
rows whose key is below l / sum(w d^2), of which there are l on average. One pass draws and moves the distances on.
Equal rows have one key, and count as one draw, but where a canonical batch has many of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raydkm.engine.passes import Passes
from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.distances import Points, keep_nearest, no_candidate
from raydkm.ops.exact import Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.keys import content_hashes, draw_keys
from raydkm.ops.moments import Moments
from raydkm.ops.sample import Smallest
from raydkm.ops.seeding import kmeans_plus_plus
from raydkm.ops.statistics import ROWS

#: What a worker keeps of each of its rows: a distance (float32) and the number of a candidate (int32).
BYTES_A_ROW = 8

#: Rounds of k-means||, and candidates drawn in each as a multiple of K (Bahmani et al. 2012).
ROUNDS = 5
OVERSAMPLING = 2


class SeedingOfAll:
    """One seeding: candidates so far, and each row's distance to, and number of, its nearest one.

    Parameters
    ----------
    passes : Passes
    frame : Frame
    facts : Moments
    candidates : Tensor (m, d)
        The first of them, rows as they are stored.
    seed : int
        Of the draws, another one for each restart.
    """

    def __init__(self, passes: Passes, frame: Frame, facts: Moments, candidates: Tensor, seed: int = 0):
        self._passes = passes
        self._frame = frame
        self._facts = facts
        self._seed = seed
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._counted = 0
        self._round = 0
        self.candidates = candidates
        self.potential = np.inf

    def draw(self, most: int, wanted: float) -> Tensor:
        """Draw rows (m, d) in proportion to w d^2: `wanted` on average if finite, else `most`, the smallest keys."""
        smallest = Smallest(most)
        self._round += 1
        source, seed = self._passes.source, self._seed + self._round

        def look(batch: Batch, nearest: Tensor) -> None:
            rows = batch.rows.cpu().numpy()
            weight = None if batch.weight is None else batch.weight.cpu().numpy()
            mass = nearest.numpy() * (1.0 if weight is None else weight)
            number = (source.first + batch.first) // BATCH_ROWS
            keys = draw_keys(content_hashes(rows, weight), mass, seed, number)
            smallest.add(keys, rows, weight)

        self._update(look)
        threshold = wanted / self.potential if np.isfinite(wanted) and self.potential > 0 else np.inf
        parts = [part for part in self._passes.comm.all_gather(smallest.found(threshold)[::3]) if len(part[0])]
        if not parts:
            return self.candidates[:0]
        keys, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        _, places = np.unique(keys, return_index=True)
        return torch.from_numpy(rows[places[:most]])

    def points(self, rows: Tensor) -> Points:
        return Points.in_frame(rows, self._frame)

    def measured(self) -> float:
        """The sum over all rows of w d^2, after a pass."""
        self._update()
        return self.potential

    def add(self, candidates: Tensor) -> None:
        self.candidates = torch.cat((self.candidates, candidates))

    def owned(self) -> Tensor:
        """The weight (m,) of the rows nearest to each candidate, after a pass that settles which these are."""
        return self._update(owned=True)["owned"].cpu()

    def _update(self, look: Callable[[Batch, Tensor], None] | None = None, *, owned: bool = False) -> Statistics:
        """Move every row's distance on to the candidates added since the last pass."""
        first, facts = self._counted, self._facts
        new = self.points(self.candidates[first:])
        square = 4 * facts.bound.square().sum()
        potential = facts.bounds.field("potential", (), square, grids=3)
        shares = facts.bounds.field("owned", (len(self.candidates),))
        fields = (potential, shares, ROWS) if owned else (potential, ROWS)

        def local(batch: Batch, into: Statistics) -> None:
            if batch.first in self._known:
                distance, owner = self._known[batch.first]
                nearest = distance.double().square_()
            else:
                nearest, owner = no_candidate(len(batch))
            keep_nearest(self.points(batch.rows.cpu()), new, first, nearest, owner)
            self._known[batch.first] = nearest.sqrt().float(), owner  # squares would underflow
            weight = batch.weights().cpu()
            into.add("potential", torch.dot(weight, nearest))
            if owned:
                into.add_rows("owned", owner, weight)
            into.add("rows", len(batch))
            if look is not None:
                look(batch, nearest)

        statistics = self._passes.sum(fields, local)
        self._counted = len(self.candidates)
        self.potential = float(statistics["potential"])
        return statistics


def kmeans_parallel_of_all(seeding: SeedingOfAll, clusters: int, rng: np.random.Generator) -> Tensor:
    """k-means|| (Bahmani et al. 2012): rounds that draw 2K candidates each, then k-means++ on these, weighted."""
    expected = OVERSAMPLING * clusters
    for _ in range(ROUNDS):
        seeding.add(seeding.draw(2 * expected + 100, expected))
    while len(seeding.candidates) < clusters and len(drawn := seeding.draw(clusters, np.inf)):  # unlucky
        seeding.add(drawn)
    weight = seeding.owned().clamp_(min=1e-300)
    among = torch.arange(max(clusters, len(weight))) % len(weight)
    rows = seeding.candidates[among]
    return rows[kmeans_plus_plus(seeding.points(rows), weight[among], clusters, rng)]


def kmeans_plus_plus_of_all(seeding: SeedingOfAll, clusters: int, rng: np.random.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007), one draw and one pass for each prototype."""
    while len(seeding.candidates) < clusters:
        drawn = seeding.draw(1, np.inf)
        seeding.add(drawn if len(drawn) else seeding.candidates[rng.integers(len(seeding.candidates), size=1)])
    return seeding.candidates


SEEDINGS_OF_ALL = {"k-means||": kmeans_parallel_of_all, "k-means++": kmeans_plus_plus_of_all}
