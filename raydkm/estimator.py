"""`DKMeans`: the estimator, after scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from raydkm.api.fit import fit_model, names_files
from raydkm.api.given import read_given
from raydkm.config import configure
from raydkm.data.source import RowSource
from raydkm.model import Model
from raydkm.ops.hard import HardAssignment
from raydkm.ops.soft import SoftAssignment


class DKMeans(TransformerMixin, ClusterMixin, BaseEstimator):
    """Soft, regularised, balanced k-means.

    Parameters
    ----------
    n_clusters : int, default=8
    objective : {"sr-kmeans", "soft-kmeans", "kmeans"}, default="sr-kmeans"
        SR-K-means of Jabi et al. (arXiv 1810.04246), soft k-means, or hard k-means.
    temperature : "auto", float or str such as "0.1Tc", default="auto"
        Softness, in units of squared distance or as a fraction of the collapse temperature.
    balance : float in [0, 1], default=0.0
        Pull towards equal cluster sizes.
    metric : {"euclidean", "cosine"}, default="euclidean"
    init : {"k-means||", "k-means++", "random"} or array-like (n_clusters, n_features), default="k-means||"
    n_init : int, default=4
        Seeded restarts on a sample of the rows; the best goes on to all rows.
    max_steps : int, default=300
    tol : float, default=1e-4
        Stop when the squared shift of the prototypes falls to `tol` times the mean column variance.
    random_state : int, RandomState or None, default=None
    device : {"auto", "cpu", "cuda", "cuda:N"}, default="auto"
    precision : {"auto", "fp32", "bf16"}, default="auto"
    column : str, optional
        Feature column, or columns "a,b,c", of Parquet data, Arrow tables and Ray data sets.

    Attributes
    ----------
    cluster_centers_ : ndarray (n_clusters, n_features) of float64
    labels_ : ndarray (n,) of int64
        Labels of the training rows; absent after a fit on Ray, where `raydkm.assign` writes them.
    inertia_ : float
        Weighted sum of squared distances of the training rows to their clusters' prototypes.
    n_iter_ : int
        ADM steps.
    temperature_ : float
    history_ : list of dict
        One entry a step, with the fields of `raydkm.objectives.base.Terms`.
    model_ : Model
        What `raydkm.assign` takes, and its `save` writes.

    Examples
    --------
    >>> import numpy as np
    >>> from raydkm import DKMeans
    >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> DKMeans(n_clusters=2, random_state=0).fit(x).cluster_centers_.round(2)[:, 0].tolist() in ([1, 10], [10, 1])
    True
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        objective: str = "sr-kmeans",
        temperature: float | str = "auto",
        balance: float = 0.0,
        metric: str = "euclidean",
        init: Any = "k-means||",
        n_init: int = 4,
        max_steps: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        device: str = "auto",
        precision: str = "auto",
        column: str | None = None,
    ):
        self.n_clusters = n_clusters
        self.objective = objective
        self.temperature = temperature
        self.balance = balance
        self.metric = metric
        self.init = init
        self.n_init = n_init
        self.max_steps = max_steps
        self.tol = tol
        self.random_state = random_state
        self.device = device
        self.precision = precision
        self.column = column

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> DKMeans:  # noqa: N803
        """Fit to an array-like, torch.Tensor, pyarrow.Table, Parquet path or paths, or ray.data.Dataset."""
        options = self.get_params()
        options["clusters"] = options.pop("n_clusters")
        random_state = options.pop("random_state")
        if isinstance(random_state, int | np.integer):
            options["seed"] = int(random_state)
        else:
            options["seed"] = int(check_random_state(random_state).randint(2**31))
        start, options = read_given(options)
        config, run = configure(options)
        columnar = names_files(X) or isinstance(X, pa.Table) or type(X).__module__.startswith("ray.data")
        data = X if columnar else self._array(X, reset=True)
        self.model_, labels = fit_model(data, config, run, start=start, sample_weight=sample_weight)
        if labels is not None:
            self.labels_ = labels
        elif hasattr(self, "labels_"):  # of an earlier fit
            del self.labels_
        model = self.model_
        self.n_features_in_ = model.dim
        self.cluster_centers_ = model.cluster_centers
        self.inertia_ = model.record["inertia"]
        self.n_iter_ = model.record["steps"]
        self.temperature_ = model.temperature
        self.history_ = model.history
        return self

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: N803
        """Cluster (n,) of each row: the nearest prototype, or with balance the one of the highest posterior."""
        assign = HardAssignment(self._fitted().scores(), screen=False)
        return np.concatenate([assign(z).numpy() for z in self._tiles(X)])

    def predict_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Posterior q (n, n_clusters) of each row; of a hard objective, zeros and ones."""
        model = self._fitted()
        if model.hard:
            return np.eye(model.clusters, dtype=np.float32)[self.predict(X)]
        soft = SoftAssignment(model.scores())
        return np.concatenate([soft(z).dense().numpy() for z in self._tiles(X)])

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Euclidean distances (n, n_clusters) to the prototypes (for cosine, from the unit vectors)."""
        prototypes = self._fitted().prototypes
        exact = "donot_use_mm_for_euclid_dist"
        return np.concatenate([torch.cdist(z, prototypes, compute_mode=exact).numpy() for z in self._tiles(X)])

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # noqa: N803
        """Minus the weighted sum of squared distances of the rows to their clusters' prototypes."""
        model = self._fitted()
        assign = HardAssignment(model.scores(), screen=False)
        gaps = ((z - model.prototypes[assign(z)]).double() for z in self._tiles(X))
        squares = torch.cat([gap.square().sum(1) for gap in gaps])
        return -float(squares.sum() if sample_weight is None else squares @ torch.as_tensor(sample_weight).double())

    def _fitted(self) -> Model:
        check_is_fitted(self)
        return self.model_

    def _tiles(self, X: Any) -> Any:  # noqa: N803
        model = self._fitted()
        source = RowSource.from_array(self._array(X, reset=False), unit=model.config.metric == "cosine")
        return (z for batch in source.batches() for _, z in batch.tiles(model.frame(), model.clusters))

    def _array(self, X: Any, *, reset: bool) -> NDArray:  # noqa: N803
        X = X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else X  # noqa: N806
        return validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite=False)
