from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import raydkm
from raydkm import DKMeans
from raydkm.config import FitConfig, RunConfig
from raydkm.engine.minibatch import check_config
from raydkm.errors import ConfigError, InputError
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.distance import DistanceObjective

DISTANCE = [name for name, kind in OBJECTIVES.items() if issubclass(kind, DistanceObjective)]

every_distance_objective = pytest.mark.parametrize("objective", DISTANCE)


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


@every_distance_objective
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


# Batches


@every_distance_objective
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_batches_come_near_the_fit_of_all_rows(blobs, objective: str, metric: str) -> None:
    x, _ = blobs(rows=3000, dim=6, clusters=4, apart=3.0)
    whole = DKMeans(4, objective=objective, metric=metric, random_state=0).fit(x)
    estimator = DKMeans(4, objective=objective, metric=metric, random_state=0)
    for start in range(0, 3000, 300):
        estimator.partial_fit(x[start : start + 300])
        np.testing.assert_array_equal(estimator.predict(x[start : start + 300]), estimator.labels_)
        assert estimator.score(x[start : start + 300]) == pytest.approx(-estimator.inertia_)
    assert (estimator.n_steps_, estimator.n_iter_) == (10, 10)
    assert -estimator.score(x) < 1.05 * whole.inertia_
    assert estimator.model_.counts.sum() == pytest.approx(3000)
    assert (estimator.temperature_ > 0) == (objective != "kmeans")


def test_a_soft_batch_moves_prototypes_to_the_mean_of_all_rows_as_they_were_given(rng: np.random.Generator) -> None:
    """Against float64: each row counts with the posteriors it had when it came."""
    batches = rng.standard_normal((5, 40, 3))
    start, weight = batches[0, :4], rng.random((5, 40))
    estimator = DKMeans(4, objective="soft-kmeans", temperature=0.7, init=start)
    counts, sums, theta = np.zeros(4), np.zeros((4, 3)), start
    for x, w in zip(batches, weight, strict=True):
        estimator.partial_fit(x, sample_weight=w)
        logits = -np.square(x[:, None] - theta).sum(2) / 0.7
        q = np.exp(logits - logits.max(1, keepdims=True))
        q *= (w / q.sum(1))[:, None]
        counts, sums = counts + q.sum(0), sums + q.T @ x
        theta = sums / counts[:, None]
        np.testing.assert_allclose(estimator.cluster_centers_, theta, atol=1e-5)
        np.testing.assert_allclose(estimator.model_.counts, counts, rtol=1e-5)


def test_the_first_batch_fixes_the_temperature(blobs) -> None:
    x, _ = blobs()
    first = DKMeans(3, temperature="0.2Tc", random_state=0).partial_fit(x)
    assert first.temperature_ == pytest.approx(0.2 * first.model_.record["collapse_temperature"])
    assert first.temperature_ == pytest.approx(DKMeans(3, temperature="0.2Tc", random_state=0).fit(x).temperature_)
    assert first.partial_fit(10 * x).temperature_ == first.temperature_ == clone(first).partial_fit(x).temperature_


@every_distance_objective
def test_batches_go_on_from_a_fit_and_from_a_pickle_and_a_fit_begins_anew(blobs, objective: str) -> None:
    x, _ = blobs(rows=600)
    estimator = DKMeans(3, objective=objective, random_state=0).fit(x[:300])
    steps, before = estimator.n_iter_, estimator.cluster_centers_
    estimator.partial_fit(x[300:])
    assert (estimator.n_iter_, estimator.n_steps_) == (steps + 1, 1)
    assert 0 < np.abs(estimator.cluster_centers_ - before).max() < 1
    assert estimator.model_.counts.sum() == pytest.approx(600)
    again = pickle.loads(pickle.dumps(estimator))
    assert again.partial_fit(x[:50]).model_.checksum() == estimator.partial_fit(x[:50]).model_.checksum()
    assert (
        estimator.fit(x).model_.checksum() == DKMeans(3, objective=objective, random_state=0).fit(x).model_.checksum()
    )
    assert estimator.n_steps_ == 0


def test_a_batch_without_weight_moves_nothing_and_a_later_one_may_be_small(blobs) -> None:
    x, _ = blobs()
    estimator = DKMeans(3, random_state=0).partial_fit(x)
    checksum = estimator.model_.checksum()
    estimator.partial_fit(x, sample_weight=np.zeros(len(x)))
    assert (estimator.model_.checksum(), estimator.inertia_, estimator.n_steps_) == (checksum, 0, 2)
    estimator.partial_fit(x[:1])
    assert estimator.labels_.shape == (1,)


def test_the_model_of_batches_is_saved_loaded_and_assigns(blobs, write, tmp_path: Path) -> None:
    x, _ = blobs(rows=5000)
    estimator = DKMeans(3, random_state=0).partial_fit(x)
    estimator.model_.save(tmp_path / "model")
    counts = raydkm.assign(tmp_path / "model", write(tmp_path / "x.parquet", v=x), column="v", out=tmp_path / "out")[
        "counts"
    ]
    assert counts == np.bincount(estimator.labels_, minlength=3).tolist()


@pytest.mark.parametrize(
    ("options", "rows", "told"),
    [
        ({"balance": 0.5}, 20, "balance is reached on all rows at once"),
        ({"n_clusters": 21}, 20, "21 clusters but only 20 rows"),
    ],
)
def test_what_cannot_be_learnt_in_batches_is_refused(options, rows: int, told: str, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=told):
        DKMeans(**{"n_clusters": 2, **options}).partial_fit(rng.standard_normal((rows, 3)))


def test_batches_are_arrays_and_parameters_stay(blobs) -> None:
    x, _ = blobs()
    estimator = DKMeans(3).partial_fit(x)
    with pytest.raises(InputError, match="give files and tables to fit"):
        estimator.partial_fit("rows.parquet")
    with pytest.raises(ConfigError, match="clusters, temperature changed since the first batch"):
        estimator.set_params(n_clusters=4, temperature="0.2Tc").partial_fit(x)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name not in DISTANCE])
def test_an_objective_without_batches_has_no_partial_fit(objective: str, blobs) -> None:
    estimator = DKMeans(3, objective=objective)
    assert not hasattr(estimator, "partial_fit")
    with pytest.raises(AttributeError) as refusal:
        estimator.partial_fit(blobs()[0])
    assert str(refusal.value.__cause__) == f"objective {objective} is fitted to all rows at once; use fit"


@pytest.mark.parametrize("options", [{"balance": 0.1}, {"min_share": 0.1}, {"max_share": 0.9}, {"anneal": 5}])
def test_what_needs_all_rows_is_not_taken_in_batches(options: dict) -> None:
    with pytest.raises(ConfigError, match="use fit"):
        check_config(FitConfig(clusters=3, **options))


def test_names_of_an_earlier_fit_are_forgotten(blobs) -> None:
    pandas = pytest.importorskip("pandas")
    x, _ = blobs()
    estimator = DKMeans(3, random_state=0, column="v")
    estimator.fit(pa.table({"v": x.tolist()}))
    estimator.set_params(column=None).fit(pandas.DataFrame(x, columns=list("abcd")))
    assert estimator.feature_names_in_.tolist() == list("abcd")
    estimator.set_params(column="v").fit(pa.table({"v": x.tolist()}))
    assert not hasattr(estimator, "feature_names_in_")
    assert estimator.predict(x).shape == (300,)


def test_tensors_of_bfloat16_are_those_of_float32(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((60, 4))).bfloat16()
    estimator = DKMeans(3, random_state=0, init=x[:3])
    half, single = clone(estimator).fit(x), clone(estimator).set_params(init=x[:3].float()).fit(x.float())
    assert half.model_.checksum() == single.model_.checksum()
    np.testing.assert_array_equal(half.predict(x), single.predict(x.float()))
    np.testing.assert_array_equal(half.transform(x), single.transform(x.float()))
    np.testing.assert_array_equal(clone(estimator).partial_fit(x).labels_, clone(estimator).partial_fit(x).labels_)
    of_array = raydkm.fit(x, clusters=3, init=x[:3], seed=0)
    np.testing.assert_array_equal(of_array.cluster_centers, half.cluster_centers_)


def test_masked_values_are_refused(rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 2))
    masked = np.ma.masked_greater(x, 1.0)
    fitted = DKMeans(2, random_state=0).fit(x)
    for use in (DKMeans(2).fit, DKMeans(2).partial_fit, fitted.predict, fitted.transform, fitted.score):
        with pytest.raises(InputError, match="masked array: fill"):
            use(masked)
    with pytest.raises(InputError, match="masked array: fill"):
        DKMeans(2).fit(x, sample_weight=np.ma.masked_less(np.arange(20.0), 3))
    with pytest.raises(ConfigError, match=r"init: .*masked array: fill"):
        DKMeans(2, init=np.ma.masked_all((2, 2))).fit(x)


# Columns of tables and frames


@pytest.fixture(scope="module")
def named() -> pa.Table:
    x = np.random.default_rng(0).standard_normal((200, 4)) * [1, 10, 100, 1000]
    return pa.table({name: x[:, number] for number, name in enumerate("abcd")})


@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform", "score", "fit_transform", "fit_predict"])
@pytest.mark.parametrize("kind", ["table", "batch", "wider"])
def test_columns_of_a_table_are_found_by_their_names(named: pa.Table, method: str, kind: str) -> None:
    other = named.select(list("dcab"))
    if kind == "wider":
        other = other.append_column("e", pa.array(np.full(200, 1e6))).append_column("t", pa.array(["x"] * 200))
    if kind == "batch":
        [other] = other.to_batches()
    options = {"n_clusters": 5, "random_state": 0, "column": "a,b,c,d", "max_steps": 5}
    expected = getattr(DKMeans(**options).fit(named), method)(named)
    np.testing.assert_array_equal(getattr(DKMeans(**options).fit(named), method)(other), expected)
    x = np.stack([named[name].to_numpy() for name in "abcd"], axis=1)
    plain = DKMeans(**options | {"column": None}).fit(x)
    np.testing.assert_array_equal(plain.predict(x), DKMeans(**options).fit(named).predict(other))


def test_a_list_column_of_a_table_is_predicted(named: pa.Table) -> None:
    x = np.stack([named[name].to_numpy() for name in "abcd"], axis=1)
    table = pa.table({"id": np.arange(200), "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 4)})
    estimator = DKMeans(5, random_state=0, column="x", max_steps=5).fit(table)
    np.testing.assert_array_equal(estimator.predict(table), estimator.predict(x))
    with pytest.raises(InputError, match="3 features, the model has 4"):
        estimator.predict(pa.table({"x": x[:, :3].tolist()}))
    with pytest.raises(InputError, match="no column 'x'"):
        estimator.predict(named)


@pytest.mark.parametrize("fitted_to", ["table", "frame", "file"])
def test_a_frame_with_columns_in_another_order_is_an_error(named: pa.Table, tmp_path: Path, fitted_to: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(named.to_pydict())
    if fitted_to == "frame":
        estimator = DKMeans(5, random_state=0, max_steps=5).fit(frame)
    else:
        pq.write_table(named, tmp_path / "x.parquet")
        data = named if fitted_to == "table" else tmp_path / "x.parquet"
        estimator = DKMeans(5, random_state=0, max_steps=5, column="a,b,c,d").fit(data)
    assert list(estimator.feature_names_in_) == list("abcd")
    np.testing.assert_array_equal(estimator.predict(frame), estimator.labels_)
    for method in ("predict", "predict_proba", "transform", "score"):
        with pytest.raises(ValueError, match="same order as they were in fit"):
            getattr(estimator, method)(frame[list("dcab")])
    estimator.set_params(column=None).fit(named.to_pandas().to_numpy())
    assert not hasattr(estimator, "feature_names_in_")
