from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import raydkm
from raydkm import DKMeans
from raydkm.config import FitConfig, RunConfig
from raydkm.errors import ConfigError, InputError
from raydkm.objectives import OBJECTIVES

every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


def test_the_defaults_are_those_of_the_configuration() -> None:
    signature = inspect.signature(DKMeans.__init__).parameters
    called = {"n_clusters": "clusters"}
    declared = {**FitConfig.model_fields, **RunConfig.model_fields}
    parameters = [name for name in signature if name not in ("self", "random_state")]
    assert {name: signature[name].default for name in parameters} == {
        name: declared[called.get(name, name)].default for name in parameters
    }
    promised = {"objective", "temperature", "balance", "metric", "init", "n_init", "max_steps", "tol", "device"}
    assert promised | {"precision", "n_clusters"} <= set(parameters)


def test_every_parameter_is_documented() -> None:
    documented = inspect.getdoc(DKMeans)
    assert all(f"\n{name} : " in documented for name in DKMeans().get_params())


@every_objective
@pytest.mark.parametrize("balance", [0.0, 0.6])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_predictions_agree_with_the_fit_and_with_float64(blobs, objective: str, balance: float, metric: str) -> None:
    x, _ = blobs(rows=400, dim=4, clusters=5, apart=2.0)
    options = {"objective": objective, "balance": balance, "metric": metric, "random_state": 0}
    estimator = DKMeans(5, **options).fit(x)
    z = x.astype(np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True) if metric == "cosine" else z
    squares = np.square(z[:, None] - estimator.cluster_centers_).sum(2)
    np.testing.assert_array_equal(estimator.predict(x), estimator.labels_)
    np.testing.assert_allclose(estimator.transform(x), np.sqrt(squares), atol=1e-3)
    proba = estimator.predict_proba(x)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-5)
    log_s, temperature = estimator.model_.log_s.numpy(), estimator.temperature_
    if objective == "kmeans":
        np.testing.assert_array_equal(proba, np.eye(5)[estimator.predict(x)])
        assert (temperature > 0) == (balance > 0)
    else:
        logits = -squares / temperature + log_s
        exp = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(proba, exp / exp.sum(1, keepdims=True), atol=1e-4)
        assert temperature > 0
    if balance == 0:
        np.testing.assert_array_equal(estimator.predict(x), squares.argmin(1))
    chosen = squares[np.arange(400), estimator.labels_]
    assert estimator.inertia_ == pytest.approx(chosen.sum(), rel=1e-4)
    assert estimator.score(x) == pytest.approx(-chosen.sum(), rel=1e-4)
    weight = np.linspace(0, 1, 400)
    assert estimator.score(x, sample_weight=weight) == pytest.approx(-float(weight @ chosen), rel=1e-4)
    assert estimator.n_iter_ == len(estimator.history_)


def test_the_estimator_is_the_function_with_other_names(blobs) -> None:
    x, _ = blobs()
    estimator = DKMeans(3, random_state=7, temperature="0.2Tc", max_steps=9).fit(x)
    model = raydkm.fit(x, clusters=3, seed=7, temperature="0.2Tc", max_steps=9)
    assert estimator.model_.checksum() == model.checksum()


def test_arrays_tensors_lists_tables_and_files_are_fitted_alike(blobs, write, tmp_path: Path) -> None:
    x, _ = blobs(rows=100)
    path = write(tmp_path / "x.parquet", v=x)
    table = pa.table({"v": x.tolist()}, pa.schema({"v": pa.list_(pa.float32())}))
    plain = DKMeans(3, random_state=0)
    named = DKMeans(3, random_state=0, column="v")
    fitted = [
        plain.fit(x).model_.checksum(),
        clone(plain).fit(torch.from_numpy(x)).model_.checksum(),
        named.fit(table).model_.checksum(),
        clone(named).fit(path).model_.checksum(),
        clone(named).fit(str(path)).model_.checksum(),
        clone(named).fit([path]).model_.checksum(),
    ]
    assert len(set(fitted)) == 1
    from_list = DKMeans(3, random_state=0, init=x[:3]).fit(x.tolist())  # float64: other keys, the same clusters
    np.testing.assert_allclose(
        from_list.cluster_centers_, DKMeans(3, random_state=0, init=x[:3]).fit(x).cluster_centers_, atol=1e-4
    )


def test_scikit_learns_conventions_hold(blobs) -> None:
    x, _ = blobs()
    estimator = DKMeans(n_clusters=np.int64(3), random_state=np.random.RandomState(0))
    with pytest.raises(NotFittedError):
        estimator.predict(x)
    assert clone(estimator).get_params().keys() == estimator.get_params().keys()
    assert estimator.fit(x) is estimator
    assert estimator.n_features_in_ == 4
    with pytest.raises(ValueError, match="features"):
        estimator.predict(x[:, :2])
    pipeline = make_pipeline(StandardScaler(), DKMeans(3, random_state=0))
    np.testing.assert_array_equal(pipeline.fit_predict(x), pipeline.predict(x))
    assert pipeline.transform(x).shape == (300, 3)


def test_parameters_are_not_changed_by_fitting(blobs) -> None:
    x, _ = blobs()
    start = x[:3].copy()
    estimator = DKMeans(3, init=start, random_state=0).fit(x)
    assert estimator.init is start
    np.testing.assert_array_equal(start, x[:3])
    assert estimator.random_state == 0


def test_without_a_random_state_fits_differ(rng: np.random.Generator) -> None:
    x = rng.standard_normal((500, 3))
    sums = {DKMeans(20, objective="kmeans", max_steps=1, n_init=1).fit(x).model_.checksum() for _ in range(3)}
    assert len(sums) > 1


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"n_clusters": 0}, ConfigError, "clusters"),
        ({"n_clusters": 99}, InputError, "99 clusters but only 20 rows"),
        ({"objective": "k-modes"}, ConfigError, "objective"),
        ({"init": np.ones((2, 9))}, ConfigError, "initial prototypes"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, kind, told: str, rng: np.random.Generator) -> None:
    with pytest.raises(kind, match=told):
        DKMeans(**{"n_clusters": 2, **options}).fit(rng.standard_normal((20, 3)))


@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform"])
def test_rows_that_are_not_finite_are_refused_at_prediction(blobs, method: str) -> None:
    x, _ = blobs()
    estimator = DKMeans(3, random_state=0).fit(x)
    bad = x.copy()
    bad[5, 1] = np.nan
    with pytest.raises(InputError, match=r"^row 5: NaN"):
        getattr(estimator, method)(bad)
