"""Data of several scales: labels, distances, posteriors and inertia are those of float64 differences, whoever is asked.

Rows lie at offsets up to 1e8, a few units in the last place of their dtype apart; the reference subtracts the public
`cluster_centers_` in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import raydkm
from raydkm import DKMeans
from raydkm.model import Model
from raydkm.ops.frame import Frame
from raydkm.ops.labeller import Labeller
from raydkm.ops.scores import Scores


def squares(x: NDArray, centres: NDArray) -> NDArray[np.float64]:
    """Squared distances (n, K) by differences in float64."""
    return ((x.astype(np.float64)[:, None] - centres) ** 2).sum(-1)


def kmeans(clusters: int, **options) -> DKMeans:
    return DKMeans(clusters, objective=options.pop("objective", "kmeans"), random_state=0, **options)


@st.composite
def scales(draw) -> tuple[NDArray, NDArray[np.float64]]:
    """Rows (n, d) around points of a lattice in two places far apart, and the points (K, d)."""
    dtype = np.dtype(draw(st.sampled_from(["f2", "f4", "f8"])))
    offset = dtype.type(10.0 ** draw(st.integers(0, 4 if dtype.itemsize == 2 else 8)))
    spacing = float(np.spacing(offset)) * 2.0 ** draw(st.integers(2, 12))
    dim, side = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    steps = np.stack(np.meshgrid(*[np.arange(side)] * dim), -1).reshape(-1, dim)
    points = np.concatenate([place * float(offset) + steps * spacing for place in (-1, draw(st.sampled_from([0, 1])))])
    noise = rng.integers(-1, 2, size=(20 * len(points), dim)) * spacing / 4
    rows = (points[rng.integers(len(points), size=len(noise))] + noise).astype(dtype)
    return rows, np.unique(points, axis=0)


def check(
    model: Model, x: NDArray, labels: NDArray, inertia: float | None = None, weight: NDArray | None = None
) -> None:
    distances = squares(x, model.cluster_centers)
    np.testing.assert_array_equal(labels, distances.argmin(1))
    found = model.assign(x, top=min(3, model.clusters))
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(model.predict(x), labels)
    least = np.sort(distances, axis=1)[:, : found.clusters.shape[1]]
    np.testing.assert_array_equal(np.take_along_axis(distances, found.clusters.astype(int), 1), least)
    np.testing.assert_allclose(found.distance, np.sqrt(least[:, 0]), rtol=1e-6, atol=0)
    np.testing.assert_allclose(model.transform(x), np.sqrt(distances), rtol=1e-12, atol=0)
    if inertia is not None:
        w = np.ones(len(x)) if weight is None else weight
        assert inertia == pytest.approx(float(w @ least[:, 0]), rel=1e-9, abs=1e-300)


def never_rises(history: list[dict]) -> None:
    values = np.array([entry["objective"] for entry in history])
    assert bool((np.diff(values) <= 1e-9 * np.abs(values[:-1])).all())


@settings(max_examples=60)
@given(scales(), st.booleans())
def test_hard_labels_distances_and_inertia_are_those_of_float64(data, weighted: bool) -> None:
    x, points = data
    weight = 10.0 ** np.random.default_rng(0).uniform(-6, 6, len(x)) if weighted else None
    model = kmeans(len(points), init=points, max_steps=20, empty="keep").fit(x, sample_weight=weight)
    check(model.model_, x, model.labels_, model.inertia_, weight)
    never_rises(model.history_)


@settings(max_examples=40)
@given(scales(), st.sampled_from([0.01, 0.3, 3.0]))
def test_posteriors_are_those_of_float64(data, softness: float) -> None:
    x, points = data
    between = squares(points, points)
    temperature = softness * float(np.min(between, where=between > 0, initial=np.inf)) if len(points) > 1 else 1.0
    model = kmeans(len(points), objective="soft-kmeans", temperature=temperature, init=points, max_steps=8).fit(x)
    logits = -squares(x, model.cluster_centers_) / temperature
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(x), expected, atol=1e-3)
    found = model.model_.assign(x, top=len(points))
    np.testing.assert_allclose(found.posteriors, np.take_along_axis(expected, found.clusters.astype(int), 1), atol=1e-3)
    check(model.model_, x, model.labels_, model.inertia_)
    never_rises(model.history_)


def test_gaps_of_one_beside_thousands() -> None:
    x = np.array([[0.0], [1], [8000], [8001]])
    assert kmeans(4, init=x).fit(x).labels_.tolist() == [0, 1, 2, 3]
    assert sorted(kmeans(4).fit(x).labels_.tolist()) == [0, 1, 2, 3]


def test_a_row_halfway_between_two_prototypes_has_the_first() -> None:
    y = np.r_[[[0.0], [1], [2], [3]], [[1e6]] * 4]
    model = kmeans(3, init=[[0.0], [1], [1e6]], max_steps=1, empty="keep").fit(y)
    assert model.cluster_centers_.ravel().tolist() == [0, 2, 1e6]
    assert model.predict(y[:4]).tolist() == [0, 0, 1, 1]


def test_half_precision_rows_at_the_ends_of_their_range() -> None:
    rng = np.random.default_rng(0)
    x = (rng.choice([-6e4, 6e4], size=(500, 1)) + rng.integers(-40, 41, size=(500, 2)) * 32).clip(-65504, 65504)
    x = x.astype(np.float16)
    model = kmeans(20).fit(x)
    check(model.model_, x, model.labels_, model.inertia_)
    never_rises(model.history_)


def test_an_outlier_hides_no_inertia() -> None:
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(0, 0.1, 2500), rng.normal(1, 0.1, 2500), 1e7][:, None]
    for weight in (None, np.r_[np.ones(5000), 0.0]):
        model = kmeans(3, init=[[0.0], [1], [1e7]], empty="keep").fit(x, sample_weight=weight)
        w = np.ones(len(x)) if weight is None else weight
        expected = w @ squares(x, model.cluster_centers_).min(1)
        assert expected == pytest.approx(50, abs=3)
        assert model.inertia_ == pytest.approx(expected, rel=1e-9)
        assert model.history_[-1]["objective"] * w.sum() == pytest.approx(expected, rel=1e-6)


def test_soft_groups_far_from_the_origin_stay_apart() -> None:
    x = np.array([[-1e6 - 0.5], [-1e6 + 0.5], [1e6 - 0.5], [1e6 + 0.5]]).repeat(50, axis=0)
    model = kmeans(4, objective="soft-kmeans", temperature=0.05, init=np.unique(x, axis=0)).fit(x)
    np.testing.assert_allclose(np.sort(model.cluster_centers_.ravel()), np.unique(x), atol=1e-6)
    assert model.predict_proba(x).max(1).min() > 0.999


def test_light_rows_keep_their_clusters_beside_heavy_ones() -> None:
    x = np.array([[0.0], [1], [2], [3]]).repeat(5, axis=0)
    weight = np.array([1e-8, 1e8, 1e-4, 1.0]).repeat(5)
    model = kmeans(4, init=[[0.1], [0.9], [2.2], [2.9]]).fit(x, sample_weight=weight)
    np.testing.assert_allclose(model.cluster_centers_.ravel(), [0, 1, 2, 3], rtol=0, atol=1e-12)
    assert np.bincount(model.labels_).tolist() == [5, 5, 5, 5]


def test_large_values_with_large_weights_have_a_collapse_temperature() -> None:
    rng = np.random.default_rng(0)
    x, weight = 5e13 * rng.standard_normal((200, 3)), np.full(200, 1e13)
    model = kmeans(3, objective="soft-kmeans", temperature="0.1Tc").fit(x, sample_weight=weight)
    expected = 0.2 * np.linalg.eigvalsh(np.cov(x.T, bias=True))[-1]
    assert model.temperature_ == pytest.approx(expected, rel=1e-4)


def test_rows_of_weight_zero_do_not_coarsen_the_sums() -> None:
    x = np.r_[[[0.0], [1e-7], [2e-7], [3e-7]], [[1e15]]]
    model = kmeans(2, init=[[0.0], [3e-7]]).fit(x, sample_weight=[1, 1, 1, 1, 0])
    np.testing.assert_allclose(model.cluster_centers_.ravel(), [0.5e-7, 2.5e-7], rtol=1e-9)


def test_batches_may_lie_far_from_the_first() -> None:
    for offset in (1e6, 1e8):
        far = offset + np.array([[0.0], [1], [2]])
        model = kmeans(4, init=np.r_[[[0.0]], far]).partial_fit(np.zeros((4, 1)))
        for _ in range(3):
            model.partial_fit(far)
        assert model.predict(far).tolist() == [1, 2, 3]
        np.testing.assert_array_equal(model.cluster_centers_[1:], far)


def test_rare_tight_groups_beside_wide_ones_keep_their_means() -> None:
    rng = np.random.default_rng(0)
    wide = rng.uniform(5e11, 1e12, 19_200) * rng.choice([-1, 1], 19_200)
    tight = np.repeat([0.0, 0.02], 400) + rng.normal(0, 5e-4, 800)
    model = kmeans(4, init=[[-7e11], [7e11], [0.0], [0.02]]).fit(np.r_[wide, tight][:, None])
    expected = [tight[:400].mean(), tight[400:].mean()]
    np.testing.assert_allclose(model.cluster_centers_[2:, 0], expected, rtol=0, atol=1e-7)


def test_logits_beyond_float32_leave_no_trace_in_the_sums() -> None:
    x = np.r_[np.arange(10.0) * 1e-9, 1e15][:, None]
    for temperature in (1e-8, 1e-9, 1e-20):
        model = kmeans(3, objective="soft-kmeans", temperature=temperature, init=x[[0, 5, 10]], max_steps=2).fit(x)
        centres = model.cluster_centers_.ravel()
        assert 0 <= centres[:2].min() <= centres[:2].max() <= 1e-8
        assert centres[2] == 1e15


def test_large_scalings_hide_no_distances() -> None:
    x = np.r_[np.arange(60.0) * 10, -1e12][:, None]
    model = kmeans(4, balance=0.3).fit(x)
    assert (np.bincount(model.labels_, minlength=4) > 0).all()
    np.testing.assert_array_equal(model.predict(x), model.labels_)


def test_denormal_rows_are_told_apart_in_fit_and_predict_alike() -> None:
    x = np.array([[0], [1e-40], [3e-40], [4e-40], [2e-15]], dtype=np.float32)
    model = kmeans(3, init=x[[0, 3, 4]], empty="keep", max_steps=1).fit(x)
    np.testing.assert_array_equal(model.predict(x), model.labels_)


@pytest.mark.parametrize("dim", [2, 32, 128, 1024])
def test_posteriors_of_many_dimensions_are_within_a_thousandth(dim: int) -> None:
    """A large coordinate before many small ones, at temperatures about where float32 begins to fail."""
    rng = np.random.default_rng(0)
    centres = (np.eye(1, dim) + rng.standard_normal((2, dim)) * 0.02 / dim**0.5).astype(np.float32)
    x = (centres.mean(0) + 1e-3 * rng.standard_normal((300, dim)) / dim**0.5).astype(np.float32)
    frame = Frame.identity("euclidean", dim)
    prototypes, zero = torch.from_numpy(centres).double(), torch.zeros(2, dtype=torch.float64)
    for temperature in np.geomspace(1e-5, 1e-2, 13):
        logits = -squares(x, centres.astype(np.float64)) / temperature
        expected = np.exp(logits - logits.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        labeller = Labeller(Scores.of(prototypes, zero, float(temperature), frame), prototypes, frame, hard=False)
        assert np.abs(labeller.posteriors(torch.from_numpy(x)).numpy() - expected).max() < 1e-3


Places = tuple[NDArray[np.float64], NDArray[np.float64]]


@pytest.fixture(scope="module")
def places() -> Callable[[int], Places]:
    """Coordinates of places 100 m apart, in towns within a square of 1,000 km, each visited with sigma = 5 m."""

    def make(count: int, rows: int = 4000) -> Places:
        rng = np.random.default_rng(count)
        grid = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) * 100.0
        towns = rng.uniform(0, 1e6, size=(-(-count // 100), 2))
        centres = (towns[:, None] + grid).reshape(-1, 2)[rng.permutation(100 * len(towns))[:count]]
        return centres[rng.integers(count, size=rows)] + rng.normal(0, 5, size=(rows, 2)), centres

    return make


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_places_are_found_as_by_scikit_learn_in_float64(count: int, places) -> None:
    from sklearn.cluster import KMeans

    x, centres = places(count)
    mine, theirs = kmeans(count, init=centres).fit(x), KMeans(count, init=centres, n_init=1).fit(x)
    assert mine.inertia_ <= 1.02 * theirs.inertia_
    check(mine.model_, x, mine.labels_, mine.inertia_)
    theirs = min(KMeans(count, n_init=4, random_state=seed).fit(x).inertia_ for seed in range(2))
    assert kmeans(count).fit(x).inertia_ <= 1.1 * theirs


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_sentinels_hide_no_clusters(share: float) -> None:
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(1)
    x = np.stack([rng.choice([10.0, 30.0], 3000), rng.uniform(0, 1, 3000)], 1) + rng.normal(0, 0.5, (3000, 2))
    x[rng.random(3000) < share, 0] = -999999.0
    mine, theirs = kmeans(3).fit(x), KMeans(3, n_init=10, random_state=0).fit(x)
    assert mine.inertia_ <= 1.1 * theirs.inertia_
    check(mine.model_, x, mine.labels_, mine.inertia_)


def test_all_who_are_asked_give_one_answer(tmp_path: Path, places, write) -> None:
    """Fit, predict, batch assignment, evaluation and the service."""
    import pyarrow.parquet as pq

    from raydkm.serve.settings import ServeConfig
    from raydkm.serve.versions import Version

    x, centres = places(200, rows=1500)
    truth = np.random.default_rng(0).integers(3, size=len(x))
    path = write(tmp_path / "rows" / "x.parquet", x=x, truth=truth)
    options = {"kmeans": {}, "soft-kmeans": {"temperature": 50.0}}
    for objective, more in options.items():
        model = raydkm.fit(x, clusters=200, objective=objective, init=centres, **more)
        model.save(tmp_path / "m", overwrite=True)
        loaded = raydkm.load(tmp_path / "m")
        expected = squares(x, model.cluster_centers)
        labels = expected.argmin(1)
        np.testing.assert_array_equal(model.labels, labels)
        for each in (model, loaded):
            check(each, x, labels)
        for top in (None, 3):
            out = tmp_path / f"{objective}-{top}"
            raydkm.assign(loaded, path, column="x", out=out, top=top)
            table = pq.read_table(next(out.glob("x-*.parquet")))
            np.testing.assert_array_equal(table["cluster"].to_numpy(), labels)
            np.testing.assert_allclose(table["distance"].to_numpy(), np.sqrt(expected.min(1)), rtol=1e-6)
        report = raydkm.evaluate(loaded, path, label="truth", column="x")
        assert report["inertia"] == pytest.approx(expected.min(1).sum(), rel=1e-6)
        assert report["sizes"] == np.bincount(labels, minlength=200).tolist()
        found = Version.loaded(str(tmp_path / "m"), ServeConfig()).assign(x[:333], 3)
        np.testing.assert_array_equal(found.clusters[:, 0], labels[:333])
