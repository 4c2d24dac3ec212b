"""Labels and inertia of rows in memory under a model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raydkm.data.source import RowSource
from raydkm.model import Model


def label(model: Model, source: RowSource) -> tuple[NDArray[np.int64], float]:
    """Cluster (n,) of each row, and the weighted sum of squared distances to the clusters' prototypes."""
    labeller = model.assigner().labeller
    found, inertia = [], 0.0
    for batch in source.batches():
        labels = labeller.labels(batch.rows)
        inertia += float(batch.weights() @ labeller.squared_distances(batch.rows, labels))
        found.append(labels.numpy())
    return np.concatenate(found), inertia
