"""A model answers in memory: arrays, tensors, frames and tables, from any number of threads."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import raydkm
from raydkm import DKMeans
from raydkm.errors import ConfigError, InputError

OBJECTIVES = ["kmeans", "soft-kmeans", "sr-kmeans", "mi"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_model_answers_as_the_estimator_does(blobs, objective: str) -> None:
    x, _ = blobs(rows=400, clusters=5, apart=2.0)
    made = DKMeans(5, objective=objective, random_state=0).fit(x)
    model = made.model_
    np.testing.assert_array_equal(model.predict(x), made.labels_)
    np.testing.assert_array_equal(model.predict_proba(x), made.predict_proba(x))
    np.testing.assert_allclose(model.transform(x), made.transform(x), rtol=1e-6)
    found = model.assign(x, top=5)
    np.testing.assert_array_equal(found.labels, made.labels_)
    np.testing.assert_allclose(found.distance, model.transform(x)[np.arange(400), found.labels], rtol=1e-6)
    posterior = np.take_along_axis(model.predict_proba(x), found.clusters.astype(int), 1)
    np.testing.assert_allclose(found.posteriors, posterior, atol=1e-5)
    if not model.hard:
        entropy = -np.sum(posterior * np.log(np.maximum(posterior, 1e-30)), axis=1)
        np.testing.assert_allclose(found.entropy, entropy, atol=1e-4)
        assert bool((np.diff(found.posteriors, axis=1) <= 1e-6).all())


@pytest.mark.parametrize("objective", ["kmeans", "soft-kmeans"])
def test_the_best_clusters_come_best_first_and_equal_ones_by_number(objective: str) -> None:
    lattice = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), -1).reshape(-1, 2)
    rows = np.random.default_rng(0).integers(0, 9, size=(2000, 2)) / 2  # many lie half way
    options = {} if objective == "kmeans" else {"temperature": 1e-3}
    model = raydkm.fit(lattice, clusters=25, objective=objective, init=lattice, max_steps=1, **options)
    np.testing.assert_allclose(model.cluster_centers, lattice)
    distances = ((rows[:, None] - model.cluster_centers) ** 2).sum(-1)
    expected = np.argsort(distances, axis=1, kind="stable")
    for top in (1, 2, 7, 25):
        np.testing.assert_array_equal(model.assign(rows, top=top).clusters, expected[:, :top])


def test_rows_come_as_people_have_them() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    model = raydkm.fit(pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2]}), column="a,b,c", clusters=4)
    expected = model.predict(x)
    frame = pd.DataFrame(x[:, ::-1], columns=["c", "b", "a"])
    for given in (x, x.tolist(), torch.from_numpy(x), frame, pa.Table.from_pandas(frame), np.asfortranarray(x)):
        np.testing.assert_array_equal(model.predict(given), expected)
        np.testing.assert_array_equal(model.assign(given).labels, expected)
    plain = raydkm.fit(x, clusters=4)
    np.testing.assert_array_equal(plain.predict(pd.DataFrame(x)), plain.labels)
    table = pa.table({name: x[:, number] for number, name in enumerate("xyz")})
    np.testing.assert_array_equal(plain.predict(table), plain.labels)
    with pytest.raises(InputError, match="vectors of 1 dimensions, the model has 3"):
        plain.predict(pa.table({"a": x[:, 0]}))


def test_bad_rows_are_refused_with_their_place() -> None:
    model = raydkm.fit(np.random.default_rng(0).standard_normal((50, 3)), clusters=4)
    with pytest.raises(InputError, match="vectors of 2 dimensions, the model has 3"):
        model.predict(np.zeros((5, 2)))
    with pytest.raises(InputError, match="row 1"):
        model.assign([[0.0, 0, 0], [0, np.nan, 0]])
    with pytest.raises(InputError, match="matrix"):
        model.transform(np.zeros(3))
    for top in (0, 5, 1.5):
        with pytest.raises(ConfigError, match="the model has 4 clusters"):
            model.assign(np.zeros((5, 3)), top=top)


def test_batch_assignment_says_what_it_takes(tmp_path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3))
    model = raydkm.fit(x, clusters=4)
    for given in (x, x.tolist(), torch.from_numpy(x), pd.DataFrame(x), pa.table({"a": x[:, 0]})):
        with pytest.raises(InputError, match=r"model\.assign"):
            raydkm.assign(model, given)
    with pytest.raises(ConfigError, match="out: name the directory"):
        raydkm.assign(model, tmp_path / "x.parquet")


def test_mapped_models_take_raw_rows(blobs) -> None:
    x, _ = blobs(rows=300, dim=6, clusters=3)
    model = raydkm.fit(x, clusters=3, map="standardize,pca:2")
    np.testing.assert_array_equal(model.predict(x), model.labels)
    assert model.transform(x).shape == (300, 3)
    with pytest.raises(ConfigError, match=r"model\.predict"):
        DKMeans.from_model(model)


def test_threads_may_share_a_model(blobs) -> None:
    x, _ = blobs(rows=3000, clusters=8, apart=2.0)
    for objective in ("kmeans", "soft-kmeans"):
        model = raydkm.fit(x, clusters=8, objective=objective)
        expected = model.labels
        fresh = pickle.loads(pickle.dumps(model))
        with ThreadPoolExecutor(4) as pool:
            parts = [slice(start, start + 700) for start in range(0, 3000, 300)]
            for part, found in zip(parts, pool.map(fresh.predict, [x[part] for part in parts]), strict=True):
                np.testing.assert_array_equal(found, expected[part])


def test_an_estimator_may_be_made_of_a_model(blobs, tmp_path) -> None:
    x, _ = blobs(rows=300, clusters=4, apart=2.0)
    first = DKMeans(4, objective="kmeans", n_init=2, tol=1e-3, random_state=3).fit(x)
    first.model_.save(tmp_path / "m")
    again = DKMeans.from_model(raydkm.load(tmp_path / "m"))
    assert again.get_params() == first.get_params()
    np.testing.assert_array_equal(again.predict(x), first.labels_)
    assert again.inertia_ == first.inertia_
    assert not hasattr(again, "labels_")
    np.testing.assert_array_equal(again.fit(x).cluster_centers_, first.cluster_centers_)
    batches = DKMeans.from_model(first.model_).partial_fit(x[:50])
    assert batches.n_steps_ == 1
    given = DKMeans.from_model(DKMeans(2, init=x[:2]).fit(x).model_)
    assert given.init.shape == (2, 4)


def test_labels_go_with_the_reading_they_were_found_by(blobs) -> None:
    x, _ = blobs(rows=300, clusters=4, apart=1.0)
    model = raydkm.fit(x, clusters=4, temperature="0.5Tc")
    assert model.read_as(None).labels is not None
    assert model.read_as("p").labels is None
    assert model != raydkm.fit(x, clusters=4)


def test_posteriors_are_the_same_numbers_wherever_they_are_asked_for(blobs) -> None:
    x, _ = blobs(rows=500, clusters=6, apart=1.0)
    for objective in ("soft-kmeans", "mi"):
        model = raydkm.fit(x, clusters=6, objective=objective, metric="cosine")
        found = model.assign(x, top=6)
        expected = np.take_along_axis(model.predict_proba(x), found.clusters.astype(int), 1)
        np.testing.assert_allclose(found.posteriors, expected, atol=1e-7)


def test_a_model_shows_itself_in_one_line(blobs) -> None:
    x, _ = blobs()
    assert repr(raydkm.fit(x, clusters=3, objective="kmeans")) == "Model(kmeans, clusters=3, dim=4)"
    soft = repr(raydkm.fit(x, clusters=3, temperature=2.5))
    assert soft == "Model(sr-kmeans, clusters=3, dim=4, temperature=2.5)"
