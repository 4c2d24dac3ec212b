"""Agreement of clusters with labels; scikit-learn's metrics, and the accuracy under the best matching."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def clustering_accuracy(labels: NDArray, clusters: NDArray) -> float:
    """Share of rows whose cluster is matched to their label by the best one-to-one matching (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / len(labels))


def agreement(labels: NDArray, clusters: NDArray) -> dict[str, float]:
    """ACC, NMI (arithmetic mean) and ARI of two labellings (n,)."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    labels = np.unique(labels, return_inverse=True)[1]
    return {
        "acc": clustering_accuracy(labels, clusters),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }
