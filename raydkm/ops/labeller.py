"""Clusters, distances, posteriors and entropies of rows under a model: one answer for all who ask.

Labels after a fit, `predict`, batch assignment, evaluation and the service come from here. Float32 scores, or an index,
propose clusters; costs in float64 (`raydkm.ops.cost`) decide between them and put them in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydkm.ops.batch import HARD_TILE, SOFT_TILE
from raydkm.ops.cost import Costs
from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.hard import HardAssignment
from raydkm.ops.nearest import FLAT, Choice, NearestPrototypes
from raydkm.ops.scores import Scores
from raydkm.ops.screen import rounding
from raydkm.ops.soft import SoftAssignment

#: Prototypes that are proposed beyond those asked for, so that scores tell them from the rest.
SPARE = 4


@dataclass(frozen=True)
class Assignment:
    """What a model says of n rows.

    Parameters
    ----------
    clusters : ndarray (n, m) of int32
        The m best clusters, best first; the first is the row's cluster.
    posteriors : ndarray (n, m) of float32
        Their posterior probabilities; of a hard model one and zeros.
    distance : ndarray (n,) of float32
        Euclidean, to the prototype of the row's cluster (for cosine, between unit vector and prototype).
    entropy : ndarray (n,) of float32
        Of the posterior over all clusters, in nats.
    """

    clusters: NDArray[np.int32]
    posteriors: NDArray[np.float32]
    distance: NDArray[np.float32]
    entropy: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.int32]:
        """The cluster (n,) of each row."""
        return self.clusters[:, 0]

    @property
    def posterior(self) -> NDArray[np.float32]:
        """The posterior (n,) of each row's cluster."""
        return self.posteriors[:, 0]

    def __len__(self) -> int:
        return len(self.clusters)


class Labeller:
    """Assigns rows; any number of threads may call one.

    Parameters
    ----------
    scores : Scores
        Of the model, on the CPU.
    centres : Tensor (K, d) of float64
        Prototypes that distances are to, in the frame.
    frame : Frame
    hard : bool
        Whether posteriors are zero or one.
    index, recall, sample
        As in `NearestPrototypes`; where posteriors are soft, all prototypes are scored.
    threads : int
        Of each search of an index.
    """

    def __init__(
        self,
        scores: Scores,
        centres: Tensor,
        frame: Frame,
        *,
        hard: bool,
        index: str = "flat",
        recall: float = 1.0,
        sample: Tensor | None = None,
        threads: int = 1,
    ):
        self._scores, self._frame = scores, frame
        self._distances = Costs(centres, torch.zeros(len(centres), dtype=torch.float64), frame.shift, unit=frame.unit)
        self._assign = HardAssignment(scores)
        self._soft = None if hard else SoftAssignment(scores)
        rows = None if sample is None else frame.tile(sample)
        self._index = NearestPrototypes(
            scores, frame, threads, index=index if hard else "flat", recall=recall, sample=rows
        )
        self._rounding = rounding(scores)

    @property
    def choice(self) -> Choice:
        """What index was chosen, and why."""
        return self._index.choice

    def labels(self, x: Tensor) -> Tensor:
        """Clusters (n,) int64 of rows (n, d) as they are stored."""
        return torch.cat([self._assign(rows) for rows in self._tiles(x, HARD_TILE, scored=False)])

    def squared_distances(self, x: Tensor, labels: Tensor) -> Tensor:
        """Squared distances (n,) float64 of rows (n, d) from the prototypes of the clusters (n,)."""
        return self._distances.squared_distances(self._frame.tile(x).x, labels)

    def posteriors(self, x: Tensor) -> Tensor:
        """(n, K) of float32; the largest of a row is that of its cluster, but for rounding."""
        if self._soft is None:
            return torch.nn.functional.one_hot(self.labels(x), len(self._scores)).float()
        tiles = self._tiles(x, SOFT_TILE, scored=True)
        return torch.cat([self._soft.of_scores(rows, self._assign.scored(rows)[1]).dense() for rows in tiles])

    def all_distances(self, x: Tensor) -> Tensor:
        """Distances (n, K) of float64."""
        return self._distances(self._frame.tile(x).x).sqrt_()

    def __call__(self, x: Tensor, top: int = 1) -> Assignment:
        """Assign rows (n, d), with the `top` best clusters of each."""
        scored = self._soft is not None or (top > 1 and self._index.choice == FLAT)
        parts = [self._tile(rows, top) for rows in self._tiles(x, SOFT_TILE if scored else HARD_TILE, scored=scored)]
        return Assignment(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))

    def _tiles(self, x: Tensor, numbers: int, *, scored: bool) -> Iterator[RowTile]:
        """Tiles of so few rows that they, or their scores of all prototypes, have that many numbers."""
        columns = max(x.shape[1], len(self._scores) if scored else 1)
        return self._frame.tile(x).split(max(128, numbers // columns // 64 * 64))

    def _tile(self, rows: RowTile, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._soft is not None:
            labels, scores = self._assign.scored(rows)
            best = self._best(rows, labels, scores, top)
            posterior = self._soft.of_scores(rows, scores)
            posteriors = posterior.exp_logits.gather(1, best) / posterior.normaliser[:, None]
            entropy = posterior.entropy.clamp(min=0)
        else:
            best = self._found(rows, top)
            posteriors, entropy = torch.zeros(best.shape), torch.zeros(len(rows))
            posteriors[:, 0] = 1.0
        distance = self._distances.squared_distances(rows.x, best[:, 0]).sqrt_().float()
        return best.to(torch.int32), posteriors, distance, entropy

    def _found(self, rows: RowTile, top: int) -> Tensor:
        """The best clusters (n, top) of rows without posteriors."""
        if self._index.choice != FLAT:
            return self._ranked(rows, self._index(rows.z, min(len(self._scores), top + SPARE)))[:, :top]
        if top == 1:
            return self._assign(rows)[:, None]
        return self._best(rows, *self._assign.scored(rows), top)

    def _best(self, rows: RowTile, labels: Tensor, scores: Tensor, top: int) -> Tensor:
        """The best clusters (n, top), given labels (n,) and scores (n, K) that may be off by their rounding."""
        if top == 1:
            return labels[:, None]
        count = min(len(self._scores), top + SPARE)
        highest, which = scores.topk(count, dim=1)
        best = self._ranked(rows, which)[:, :top]
        if count < len(self._scores):
            of_norm, absolute, own = self._rounding
            norm = torch.linalg.vector_norm(rows.z, dim=1).double().mul_(1.0001)
            error = 2 * (of_norm * norm + absolute) + own * norm.square()
            open_ = (~(highest[:, top - 1].double() - highest[:, -1] > error)).nonzero()[:, 0]
            for some in open_.split(max(1, SOFT_TILE // len(self._scores))):
                best[some] = self._scores.costs.order(rows.x[some])[:, :top]
        return best

    def _ranked(self, rows: RowTile, which: Tensor) -> Tensor:
        """Proposed prototypes (n, m), the least cost first and of equal ones the lowest; -1 where one is missing."""
        which = which.sort(1).values
        best = which.gather(1, self._scores.costs.order(rows.x, which.clamp(min=0)))
        short = (which < 0).any(1).nonzero()[:, 0]  # an index has looked at too few
        if len(short):
            best[short] = self._scores.costs.order(rows.x[short])[:, : which.shape[1]]
        return best
