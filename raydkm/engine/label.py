"""Labels and inertia of rows in memory under a model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raydkm.data.source import RowSource
from raydkm.model import Model
from raydkm.ops.batch import HARD_TILE
from raydkm.ops.hard import HardAssignment


def label(model: Model, source: RowSource) -> tuple[NDArray[np.int64], float]:
    """Cluster (n,) of each row, and the weighted sum of squared distances to the clusters' prototypes."""
    assign, frame = HardAssignment(model.scores()), model.frame()
    labels, inertia = [], 0.0
    for batch in source.batches():
        weight = batch.weights()
        for where, z in batch.tiles(frame, model.clusters, HARD_TILE):
            tile = assign(z)
            inertia += float(weight[where] @ (z - model.prototypes[tile]).double().square().sum(1))
            labels.append(tile.numpy())
    return np.concatenate(labels), inertia
