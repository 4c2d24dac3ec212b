"""`DKMeans`: the estimator, after scikit-learn's conventions."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from raydkm.api.fit import fit_model, names_files
from raydkm.api.given import read_given
from raydkm.api.partial import fit_batch
from raydkm.config import AS_THEY_ARE, FitConfig, FitRunConfig, configure
from raydkm.data.columns import Columns
from raydkm.data.source import RowSource, numpy_of
from raydkm.engine.label import label
from raydkm.engine.minibatch import Running, has_batches
from raydkm.errors import ConfigError, InputError
from raydkm.model import Model
from raydkm.objectives import OBJECTIVES


def _learns_from_batches(estimator: DKMeans) -> bool:
    if estimator.objective in OBJECTIVES and not has_batches(estimator.objective):
        raise AttributeError(f"objective {estimator.objective} is fitted to all rows at once; use fit")
    return True


class DKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Soft, regularised, balanced k-means.

    Parameters
    ----------
    n_clusters : int, default=8
    objective : {"sr-kmeans", "soft-kmeans", "kmeans", "mi", "kl", "tim", "sinkhorn"}, default="sr-kmeans"
        SR-K-means of Jabi et al. (arXiv 1810.04246), soft or hard k-means, or one with logistic posteriors.
    temperature : "auto", float or str such as "0.1Tc", default="auto"
        Softness, in units of squared distance or as a fraction of the collapse temperature.
    lam : float, optional
        The paper's lambda, in place of a temperature; of logistic objectives their own.
    balance : float in [0, 1], default=0.0
        Pull towards equal cluster sizes, or towards `marginal`.
    marginal : array-like (n_clusters,), optional
        Shares that clusters are pulled towards, of any sum.
    min_share : float, default=0.0
        Least share of the weight that a cluster may have: of soft objectives by its posteriors, so the shares of
        `labels_` may be outside.
    max_share : float, default=1.0
        Largest share of the weight that a cluster may have, as for `min_share`.
    l1 : float, default=1.0
        Of `tim`: weight of the balance term.
    l2 : float, default=1.0
        Of `tim` and `sinkhorn`: weight of the conditional entropy.
    l3 : float, default=1.0
        Of `tim` and `sinkhorn`: weight of the cross entropy of targets and posteriors.
    anneal : int, default=0
        Steps in which the temperature falls from near the collapse temperature.
    metric : {"euclidean", "cosine"}, default="euclidean"
    spherical : bool, default=False
        Prototypes of unit length, with metric "cosine".
    init : {"k-means||", "k-means++", "afk-mc2", "random"}, array-like or Model, default="k-means||"
        An array holds prototypes (n_clusters, n_features); of a model its prototypes are taken.
    n_init : int, default=4
        Seeded restarts on a sample of the rows; the best goes on to all rows.
    seed_rows : int or "all", optional
        Rows in that sample.
    empty : {"split", "farthest", "keep"}, default="split"
        What becomes of prototypes that lose all rows.
    max_steps : int, default=300
    max_time : float, optional
        Seconds after which no further step is begun.
    tol : float, default=1e-4
        Stop when the squared shift of the prototypes falls to `tol` times the mean column variance.
    objective_tol : float, optional
        Stop when the objective changes by less than this part of it.
    random_state : int, RandomState or None, default=None
    device : {"auto", "cpu", "cuda", "cuda:N"}, default="auto"
    precision : {"auto", "fp32", "bf16", "int8"}, default="auto"
    assignment : {"auto", "exact", "approximate"}, default="auto"
        Of the steps of `kmeans`; "auto" is approximate from 131,072 clusters on, on a CPU and without balance.
    max_miss : float, default=0.01
        Share of the sampled rows to which an approximate assignment may give another label than an exact one.
    column : str, optional
        Feature column, or columns "a,b,c", of Parquet data, Arrow tables and Ray data sets.

    Attributes
    ----------
    cluster_centers_ : ndarray (n_clusters, n_features) of float64
    labels_ : ndarray (n,) of int64
        Labels of the training rows, or of the last batch; absent after a fit on Ray, where `raydkm.assign` writes them.
    inertia_ : float
        Weighted sum of squared distances of the training rows, or the last batch, to their clusters' prototypes.
    n_iter_ : int
        ADM steps; each batch of `partial_fit` is one.
    n_steps_ : int
        Batches given to `partial_fit` since the last `fit`.
    n_features_in_ : int
    feature_names_in_ : ndarray (n_features_in_,) of str
        Where the data have column names that are all strings, and of scalar columns "a,b,c".
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
        lam: float | None = None,
        balance: float = 0.0,
        marginal: Any = None,
        min_share: float = 0.0,
        max_share: float = 1.0,
        l1: float = 1.0,
        l2: float = 1.0,
        l3: float = 1.0,
        anneal: int = 0,
        metric: str = "euclidean",
        spherical: bool = False,
        init: Any = "k-means||",
        n_init: int = 4,
        seed_rows: int | str | None = None,
        empty: str = "split",
        max_steps: int = 300,
        max_time: float | None = None,
        tol: float = 1e-4,
        objective_tol: float | None = None,
        random_state: Any = None,
        device: str = "auto",
        precision: str = "auto",
        assignment: str = "auto",
        max_miss: float = 0.01,
        column: str | None = None,
    ):
        self.n_clusters = n_clusters
        self.objective = objective
        self.temperature = temperature
        self.lam = lam
        self.balance = balance
        self.marginal = marginal
        self.min_share = min_share
        self.max_share = max_share
        self.l1 = l1
        self.l2 = l2
        self.l3 = l3
        self.anneal = anneal
        self.metric = metric
        self.spherical = spherical
        self.init = init
        self.n_init = n_init
        self.seed_rows = seed_rows
        self.empty = empty
        self.max_steps = max_steps
        self.max_time = max_time
        self.tol = tol
        self.objective_tol = objective_tol
        self.random_state = random_state
        self.device = device
        self.precision = precision
        self.assignment = assignment
        self.max_miss = max_miss
        self.column = column

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> DKMeans:  # noqa: N803
        """Fit to an array-like, data frame, torch.Tensor, pyarrow.Table, Parquet path or paths, or ray.data.Dataset.

        Parameters
        ----------
        X : what to fit to, (n_samples, n_features)
        y : ignored
        sample_weight : array-like (n_samples,), optional
            Weights of the rows of an array or data frame.

        Warns
        -----
        ConvergenceWarning
            If fewer than `n_clusters` clusters hold rows, or soft prototypes coincide.
        """
        start, config, run = self._configured(self._seed())
        columnar = _is_columnar(X)
        data = X if columnar else self._array(X, reset=True)
        model, labels = fit_model(data, config, AS_THEY_ARE, run, start=start, sample_weight=sample_weight)
        if columnar:
            self._name_features(model)
        self._running: Running | None = None
        self.n_steps_ = 0
        self._keep(model, labels)
        if (too_few := _too_few(model)) is not None:
            warnings.warn(too_few, ConvergenceWarning, stacklevel=2)
        return self

    @available_if(_learns_from_batches)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> DKMeans:  # noqa: N803
        """Move the prototypes towards one batch of rows: mini-batch k-means (Sculley 2010), hard or soft.

        The first batch gives the seeds, the origin and, where it is not absolute, the temperature. After `fit`, its
        prototypes go on from where they are, with the weights of their clusters as counts.

        Parameters
        ----------
        X : array-like, data frame or torch.Tensor (n_samples, n_features)
            Of the first batch, n_samples >= n_clusters.
        y : ignored
        sample_weight : array-like (n_samples,), optional

        Raises
        ------
        AttributeError
            Of an objective that is fitted to all rows at once.
        ConfigError
            With `balance`, or if a parameter has been changed since the first batch.
        """
        if _is_columnar(X):
            raise InputError("partial_fit takes the rows of one batch as an array; give files and tables to fit")
        begun = hasattr(self, "model_")
        start, config, run = self._configured(self.model_.config.seed if begun else self._seed())
        changed = [name for name, value in config if begun and value != getattr(self.model_.config, name)]
        if changed:
            raise ConfigError(f"{', '.join(changed)} changed since the first batch; begin anew with clone(estimator)")
        x = self._array(X, reset=not begun)
        if begun and self._running is None:
            self._running = Running.after(self.model_)
        self._running, model, labels = fit_batch(
            x,
            config,
            run,
            self._running if begun else None,
            start=start,
            sample_weight=sample_weight,
            history=self.history_ if begun else [],
        )
        self.n_steps_ = self._running.batches
        self._keep(model, labels)
        return self

    @classmethod
    def from_model(cls, model: Model) -> DKMeans:
        """A fitted estimator of a model, with the parameters of its fit; `labels_` are those the model still has.

        Raises
        ------
        ConfigError
            If the model makes features of rows, which an estimator does not: the model itself predicts.

        Examples
        --------
        >>> import numpy as np, raydkm
        >>> model = raydkm.fit(np.array([[0.0], [1], [9], [10]]), clusters=2, objective="kmeans")
        >>> DKMeans.from_model(model).predict([[2.0], [8]]).tolist() == model.predict([[2.0], [8]]).tolist()
        True
        """
        if model.features is not None:
            raise ConfigError(
                "the model maps or encodes rows, which DKMeans does not; use model.predict, or a Pipeline"
            )
        config = model.config.model_dump()
        names = {"n_clusters": "clusters", "random_state": "seed"}
        values: dict[str, Any] = {name: config.get(names.get(name, name)) for name in cls().get_params()}
        if values["init"] == "array":
            values["init"] = model.cluster_centers
        made = cls(**values)
        made._running, made.n_steps_ = None, 0
        made._keep(model, model.labels)
        return made

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: N803
        """Cluster (n,) of each row: the one of the highest posterior, without balance the nearest prototype.

        Of a logistic objective that is p, the posterior of the discriminative model.
        """
        return self._fitted().predict(self._array(X, reset=False))

    def predict_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Posterior (n, n_clusters) of each row: q, of a logistic objective p; of a hard one zeros and ones."""
        return self._fitted().predict_proba(self._array(X, reset=False))

    def transform(self, X: Any) -> NDArray[np.floating]:  # noqa: N803
        """Euclidean distances (n, n_clusters) to the prototypes (for cosine, from the unit vectors).

        They are computed in float64, and returned as float32 where that holds the dtype of X.
        """
        model, x = self._fitted(), self._array(X, reset=False)
        return model.transform(x).astype(np.result_type(x.dtype, np.float32), copy=False)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # noqa: N803
        """Minus the weighted sum of squared distances of the rows to their clusters' prototypes."""
        model = self._fitted()
        return -label(model, self._source(self._array(X, reset=False), sample_weight))[1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self._fitted().clusters

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def _configured(self, seed: int) -> tuple[NDArray[np.float64] | None, FitConfig, FitRunConfig]:
        """Initial prototypes, if they are given, and the parameters as `raydkm.config` has them."""
        options = self.get_params()
        options["clusters"] = options.pop("n_clusters")
        del options["random_state"]
        options["seed"] = seed
        start, options = read_given(options)
        config, _, run = configure(options)
        return start, config, run

    def _keep(self, model: Model, labels: NDArray[np.int64] | None) -> None:
        self.model_ = model
        if labels is not None:
            self.labels_ = labels
        elif hasattr(self, "labels_"):  # of an earlier fit
            del self.labels_
        self.n_features_in_ = model.dim
        self.cluster_centers_ = model.cluster_centers
        self.inertia_ = model.record["inertia"]
        self.n_iter_ = model.record["steps"]
        self.temperature_ = model.temperature
        self.history_ = model.history

    def _name_features(self, model: Model) -> None:
        """Keep the names of scalar columns "a,b,c", by which frames given later are checked."""
        names = [name.strip() for name in (self.column or "").split(",")]
        if len(names) == model.dim:
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):  # of an earlier fit
            del self.feature_names_in_

    def _fitted(self) -> Model:
        check_is_fitted(self)
        return self.model_

    def _source(self, x: NDArray, sample_weight: Any = None) -> RowSource:
        return RowSource.from_array(x, sample_weight, unit=self.model_.config.metric == "cosine")

    def _array(self, X: Any, *, reset: bool) -> NDArray:  # noqa: N803
        if issparse(X):
            raise TypeError(
                "sparse data are not taken, as prototypes are dense: pass X.toarray(), or reduce the dimensions "
                "with sklearn.decomposition.TruncatedSVD"
            )
        if self.column is not None and not reset and isinstance(X, pa.Table | pa.RecordBatch):
            columns = Columns.named(self.column, None, X.schema.names)
            columns.check(X.schema, "the table")
            rows = columns.extract(X, "the table", 0, unit=self.metric == "cosine").rows
            if len(rows) and rows.shape[1] != self.n_features_in_:
                raise InputError(f"the table: {rows.shape[1]} features, the model has {self.n_features_in_}")
            return rows
        return validate_data(self, numpy_of(X), reset=reset, dtype="numeric", ensure_all_finite=False)


def _too_few(model: Model) -> str | None:
    """A sentence on fewer clusters than were asked for, if there are."""
    clusters, used = model.clusters, int((model.counts > 0).sum())
    same = 0 if model.hard else model.history[-1]["duplicates"]
    coincide = f"{same} of {clusters} prototypes coincide with another one at temperature {model.temperature:.3g}"
    if used < clusters:
        cause = "Possibly due to duplicate points in X" + (f"; {coincide}." if same else ".")
        return f"Number of distinct clusters ({used}) found smaller than n_clusters ({clusters}). {cause}"
    critical = model.record["collapse_temperature"]
    return f"{coincide}; lower it (the collapse temperature is {critical:.3g}), or n_clusters." if same else None


def _is_columnar(X: Any) -> bool:  # noqa: N803
    """Whether rows are named (files, tables, data sets) rather than given as an array."""
    return names_files(X) or isinstance(X, pa.Table | pa.RecordBatch) or type(X).__module__.startswith("ray.data")
