"""How scikit-learn's KMeans behaves, of DKMeans: after sklearn/cluster/tests/test_k_means.py of version 1.9.

| scikit-learn's test | ours |
|---|---|
| test_kmeans_results | test_steps_are_lloyds |
| test_k_means_1_iteration | test_steps_are_lloyds |
| test_kmeans_elkan_iter_attribute | test_steps_are_lloyds |
| test_inertia | test_steps_are_lloyds |
| test_kmeans_convergence | test_a_tolerance_of_zero_ends_at_a_fixed_point |
| test_score_max_iter | test_more_steps_are_no_worse |
| test_kmeans_relocated_clusters | test_an_empty_cluster_is_given_rows |
| test_relocate_empty_clusters | test_an_empty_cluster_is_given_rows |
| test_kmeans_empty_cluster_relocated | test_an_empty_cluster_is_given_rows |
| test_all_init | test_every_seeding_finds_what_is_plain |
| test_k_means_function | test_every_seeding_finds_what_is_plain |
| test_minibatch_kmeans_partial_fit_init | test_every_seeding_finds_what_is_plain |
| test_kmeans_with_array_like_or_np_scalar_init | test_every_seeding_finds_what_is_plain |
| test_n_init | test_more_restarts_are_no_worse |
| test_kmeans_init_fitted_centers | test_a_fit_from_fitted_prototypes_stays |
| test_sample_weight_init | test_heavy_rows_are_seeded |
| test_sample_weight_zero | test_heavy_rows_are_seeded |
| test_kmeans_warns_less_centers_than_unique_points | test_fewer_different_rows_than_clusters_are_told |
| test_relocating_with_duplicates | test_fewer_different_rows_than_clusters_are_told |
| test_weighted_vs_repeated | test_weights_are_repetitions |
| test_unit_weights_vs_no_weights | test_weights_are_repetitions |
| test_scaled_weights | test_the_unit_of_weights_does_not_matter |
| test_fortran_aligned_data | test_the_layout_and_dtype_of_the_data_do_not_matter |
| test_kmeans_plusplus_dataorder | test_the_layout_and_dtype_of_the_data_do_not_matter |
| test_float_precision | test_the_layout_and_dtype_of_the_data_do_not_matter |
| test_integer_input | test_whole_numbers_are_data |
| test_centers_not_mutated | test_nothing_given_is_changed_or_shared |
| test_sample_weight_unchanged | test_nothing_given_is_changed_or_shared |
| test_kmeans_copyx | test_nothing_given_is_changed_or_shared |
| test_predict_does_not_change_cluster_centers | test_nothing_given_is_changed_or_shared |
| test_dense_sparse | test_sparse_data_are_refused_with_what_to_do |
| test_predict_dense_sparse | test_sparse_data_are_refused_with_what_to_do |
| test_kmeans_predict | test_predictions_are_the_labels_of_the_fit |
| test_transform | test_transform_is_the_distance_to_the_prototypes |
| test_fit_transform | test_transform_is_the_distance_to_the_prototypes |
| test_euclidean_distance | test_transform_is_the_distance_to_the_prototypes |
| test_feature_names_out | test_names_come_in_and_go_out |
| test_wrong_params | test_what_does_not_fit_together_is_refused |
| test_minibatch_update_consistency | test_batches_are_those_of_minibatch_kmeans |
| test_minibatch_iter_steps | test_batches_are_those_of_minibatch_kmeans |
| test_result_equal_in_diff_n_threads | test_the_number_of_threads_changes_no_bit, in engine/test_fit.py |
| test_kmeans_plusplus_output | ops/test_seeding.py |

Left out, as nothing corresponds to it:

- Elkan's algorithm: test_kmeans_elkan_results, test_warning_elkan_1_cluster.
- Verbose output, here the engine's log: test_kmeans_verbose, test_minibatch_kmeans_verbose.
- A callable init, and the arguments of kmeans_plusplus: test_kmeans_plusplus_wrong_params, test_kmeans_plusplus_norms.
- n_init="auto" and a warning of restarts with an array, which has none: test_n_init_auto,
  test_kmeans_init_auto_with_initial_centroids, test_warning_n_init_precomputed_centers.
- Batches that fit draws itself, and random reassignment: test_minibatch_sensible_reassign, test_minibatch_reassign,
  test_minibatch_with_many_reassignments, test_minibatch_kmeans_init_size, test_minibatch_kmeans_warning_init_size,
  test_minibatch_declared_convergence.
- A private helper: test_is_same_clustering.

Two behaviours differ: cluster_centers_ are float64 for data of any dtype, and an empty cluster is placed beside the
largest one, not on the farthest row.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances, v_measure_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from raydkm import DKMeans
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.distance import DistanceObjective

CENTRES = np.array([[0.0, 5, 0, 0, 0], [1, 1, 4, 0, 0], [1, 0, 0, 5, 1]])
X, LABELS = make_blobs(n_samples=100, centers=CENTRES, cluster_std=1.0, random_state=42)
SQUARE = np.array([[0, 0], [0.5, 0], [0.5, 1], [1, 1]])
DISTANCE = [name for name, kind in OBJECTIVES.items() if issubclass(kind, DistanceObjective)]


def kmeans(n_clusters: int = 3, **options: Any) -> DKMeans:
    return DKMeans(n_clusters, **{"objective": "kmeans", "random_state": 0, **options})


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([DKMeans(objective=objective) for objective in DISTANCE])
def test_scikit_learns_checks_pass(estimator: DKMeans, check: Any) -> None:
    check(estimator)


# Steps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_lloyds(dtype: type, rng: np.random.Generator) -> None:
    fitted = kmeans(2, init=[[0, 0], [1, 1]]).fit(SQUARE.astype(dtype), sample_weight=[3, 1, 1, 3])
    np.testing.assert_array_equal(fitted.labels_, [0, 0, 1, 1])
    np.testing.assert_allclose(fitted.cluster_centers_, [[0.125, 0], [0.875, 1]], rtol=1e-6)
    assert fitted.inertia_ == pytest.approx(0.375)
    assert fitted.n_iter_ == 2
    x = rng.random((100, 5)).astype(dtype)
    for steps in (1, 2, 7):
        ours = kmeans(5, init=x[:5], max_steps=steps, tol=0).fit(x)
        theirs = KMeans(5, init=x[:5], max_iter=steps, tol=0, n_init=1).fit(x)
        assert ours.n_iter_ == theirs.n_iter_ == steps
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-6)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)


def test_a_tolerance_of_zero_ends_at_a_fixed_point(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5000, 10))
    fitted = kmeans(5, tol=0, n_init=1).fit(x)
    assert fitted.n_iter_ < 300
    means = np.stack([x[fitted.labels_ == k].mean(0) for k in range(5)])
    np.testing.assert_allclose(fitted.cluster_centers_, means, atol=1e-6)


def test_a_fit_that_was_cut_short_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="raydkm"):
        kmeans().fit(X)
        assert not caplog.text
        kmeans(max_steps=1, tol=0, init=X[:3]).fit(X)
    assert "max_steps = 1" in caplog.text


@pytest.mark.parametrize("n_clusters", [1, 3])
def test_more_steps_are_no_worse(n_clusters: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((100, 10))
    scores = [kmeans(n_clusters, init=x[:n_clusters], max_steps=steps).fit(x).score(x) for steps in (1, 2, 10)]
    assert scores == sorted(scores)
    assert (scores[2] > scores[0]) == (n_clusters > 1)


def test_one_cluster_is_the_mean() -> None:
    fitted = kmeans(1).fit(X)
    np.testing.assert_allclose(fitted.cluster_centers_, X.mean(0, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(fitted.labels_, 0)


# Starts


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("init", [np.str_("k-means++"), "k-means||", "random", CENTRES])
def test_every_seeding_finds_what_is_plain(init: Any, method: str) -> None:
    estimator = kmeans(init=init, n_init=10)
    for _ in range(1 if method == "fit" else 100):
        getattr(estimator, method)(X)
    assert v_measure_score(LABELS, estimator.labels_) == 1
    assert estimator.cluster_centers_.shape == CENTRES.shape
    assert estimator.inertia_ > 0


def test_more_restarts_are_no_worse() -> None:
    inertias = [kmeans(init="random", n_init=number, max_steps=1).fit(X).inertia_ for number in (1, 5, 10)]
    assert inertias == sorted(inertias, reverse=True)


def test_a_fit_from_fitted_prototypes_stays() -> None:
    first = kmeans().fit(X)
    second = kmeans(init=first.cluster_centers_).fit(X)
    np.testing.assert_allclose(second.cluster_centers_, first.cluster_centers_, atol=1e-6)
    assert second.n_iter_ == 1


def test_heavy_rows_are_seeded(rng: np.random.Generator) -> None:
    """Rows without weight never, and those with nearly all of it nearly always."""
    x = rng.standard_normal((100, 5))
    weight = np.where(np.arange(100) % 2, 1e-9, 0)
    weight[[7, 13, 21]] = 1
    for init in ("random", "k-means++", "k-means||"):
        fitted = kmeans(init=init, n_init=1, max_steps=1).fit(x, sample_weight=weight)
        np.testing.assert_allclose(np.sort(fitted.cluster_centers_, 0), np.sort(x[[7, 13, 21]], 0), atol=1e-4)


# Empty clusters and duplicates


@pytest.mark.parametrize(
    ("x", "weight", "init", "inertia"),
    [
        (SQUARE, None, [[0.5, 0.5], [3, 3]], 0.25),
        ([[-1.0], [1]], [1.9, 0.1], [[-1.0], [10]], 0),
        (np.array([-10, -9.5, -9, -8.5, -8, -1, 1, 9, 9.5, 10])[:, None], None, [[-10.0]] * 3, None),
    ],
)
def test_an_empty_cluster_is_given_rows(x: Any, weight: Any, init: list, inertia: float | None) -> None:
    fitted = kmeans(len(init), init=init).fit(x, sample_weight=weight)
    assert len(set(fitted.labels_)) == len(init)
    if inertia is not None:
        assert fitted.inertia_ == pytest.approx(inertia, abs=1e-9)


@pytest.mark.parametrize("objective", DISTANCE)
@pytest.mark.parametrize("init", ["k-means||", "k-means++", "random", "array"])
@pytest.mark.parametrize(
    "x", [[[0, 0], [1, 1], [1, 1], [1, 0], [0, 1]], [[0.0, 0], [0, 1], [1, 0], [1, 0], [1, 0]], [[7.0, 7]] * 5]
)
def test_fewer_different_rows_than_clusters_are_told(objective: str, init: str, x: list) -> None:
    different = len({tuple(row) for row in x})
    estimator = kmeans(5, objective=objective, init=x if init == "array" else init)
    told = (
        rf"distinct clusters \({different if objective == 'kmeans' else '[1-5]'}\) found smaller than n_clusters \(5\)"
    )
    with pytest.warns(ConvergenceWarning, match=told):
        estimator.fit(x)
    assert np.isfinite(estimator.cluster_centers_).all()
    assert len(set(estimator.labels_)) <= different
    assert estimator.n_iter_ < 300
    if objective == "kmeans":
        assert estimator.inertia_ == pytest.approx(0, abs=1e-6)


def test_clusters_that_all_hold_rows_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        kmeans(4).fit(SQUARE)


# Weights


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("init", ["k-means||", "k-means++", "random"])
def test_weights_are_repetitions(objective: str, init: str, rng: np.random.Generator) -> None:
    """To the bit, absent rows included; and for partial_fit to rounding, from the same seeds."""
    weight = rng.integers(0, 12, size=100)  # more copies than 7 have keys of their own
    repeated = np.repeat(X, weight, axis=0)
    estimator = DKMeans(4, objective=objective, init=init, random_state=3, max_steps=20)
    weighted, many = clone(estimator).fit(X, sample_weight=weight), clone(estimator).fit(rng.permutation(repeated))
    assert weighted.model_.checksum() == many.model_.checksum()
    assert weighted.inertia_ == pytest.approx(many.inertia_)
    ones = clone(estimator).fit(X, sample_weight=np.ones(100))
    assert ones.model_.checksum() == clone(estimator).fit(X).model_.checksum()
    if objective in DISTANCE:
        of_weights = clone(estimator).partial_fit(X, sample_weight=weight)
        of_copies = clone(estimator).partial_fit(repeated)
        np.testing.assert_allclose(of_weights.cluster_centers_, of_copies.cluster_centers_, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_unit_of_weights_does_not_matter(objective: str, rng: np.random.Generator) -> None:
    weight, estimator = rng.random(100), DKMeans(4, objective=objective, random_state=0, max_steps=20)
    one, half = (clone(estimator).fit(X, sample_weight=factor * weight) for factor in (1, 0.5))
    np.testing.assert_array_equal(one.labels_, half.labels_)
    np.testing.assert_array_equal(one.cluster_centers_, half.cluster_centers_)


# Data


@pytest.mark.parametrize(
    "change", [np.asfortranarray, np.float32, lambda x: np.repeat(x, 2, axis=0)[::2], np.ndarray.tolist]
)
def test_the_layout_and_dtype_of_the_data_do_not_matter(change: Any) -> None:
    single = X.astype(np.float32).astype(np.float64)  # so that float32 holds them
    plain, changed = kmeans().fit(single), kmeans().fit(change(single))
    np.testing.assert_array_equal(changed.labels_, plain.labels_)
    np.testing.assert_allclose(changed.cluster_centers_, plain.cluster_centers_, atol=1e-6)
    assert changed.inertia_ == pytest.approx(plain.inertia_, rel=1e-6)
    np.testing.assert_allclose(changed.transform(change(single)), plain.transform(single), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint16, bool])
def test_whole_numbers_are_data(dtype: Any) -> None:
    x = np.array([[0, 0], [10, 10], [12, 9], [1, 1], [2, 0], [8, 10]])
    x = x > 5 if dtype is bool else x.astype(dtype)
    for method in ("fit", "partial_fit"):
        fitted = getattr(kmeans(2), method)(x)
        assert v_measure_score(fitted.labels_, [0, 1, 1, 0, 0, 1]) == 1
        assert fitted.cluster_centers_.dtype == np.float64
        np.testing.assert_array_equal(fitted.predict(x.astype(float)), fitted.labels_)


@pytest.mark.parametrize("objective", DISTANCE)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_an_offset_of_the_data_changes_no_label(objective: str, method: str) -> None:
    estimator = DKMeans(3, objective=objective, init=CENTRES)
    here = getattr(clone(estimator), method)(X)
    there = getattr(clone(estimator).set_params(init=CENTRES + 1e5), method)(X + 1e5)
    np.testing.assert_array_equal(there.labels_, here.labels_)
    np.testing.assert_allclose(there.cluster_centers_ - 1e5, here.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(there.predict(X + 1e5), here.labels_)
    np.testing.assert_allclose(there.transform(X + 1e5), here.transform(X), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_nothing_given_is_changed_or_shared(method: str, dtype: type) -> None:
    x, init, weight = X.astype(dtype), CENTRES.astype(dtype), np.linspace(0, 1, 100)
    copies = [array.copy() for array in (x, init, weight)]
    estimator = kmeans(init=init)
    getattr(estimator, method)(x, sample_weight=weight)
    assert estimator.init is init
    assert not np.may_share_memory(estimator.cluster_centers_, init)
    before = estimator.cluster_centers_.copy()
    estimator.predict(x), estimator.transform(x), estimator.score(x, sample_weight=weight)
    for array, copy in zip((x, init, weight, estimator.cluster_centers_), (*copies, before), strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csr_matrix, sparse.coo_array])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict", "transform", "fit_predict"])
def test_sparse_data_are_refused_with_what_to_do(container: Any, method: str) -> None:
    estimator = kmeans().fit(X)
    with pytest.raises(TypeError, match=r"sparse.*toarray\(\).*TruncatedSVD"):
        getattr(estimator, method)(container(X))


# Predictions


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("max_steps", [2, 100])
def test_predictions_are_the_labels_of_the_fit(objective: str, max_steps: int) -> None:
    estimator = DKMeans(5, objective=objective, init=X[:5], max_steps=max_steps)
    fitted = clone(estimator).fit(X)
    np.testing.assert_array_equal(fitted.predict(X), fitted.labels_)
    np.testing.assert_array_equal(clone(estimator).fit_predict(X), fitted.labels_)
    np.testing.assert_array_equal(fitted.predict_proba(X).argmax(1), fitted.labels_)
    assert fitted.score(X) == pytest.approx(-fitted.inertia_, rel=1e-5)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    if objective == "kmeans":
        np.testing.assert_array_equal(fitted.predict(fitted.cluster_centers_), np.arange(5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transform_is_the_distance_to_the_prototypes(dtype: type) -> None:
    x = X.astype(dtype)
    fitted = kmeans().fit(x)
    distances = fitted.transform(x)
    assert distances.dtype == dtype
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(distances, pairwise_distances(x, fitted.cluster_centers_), rtol=rtol)
    between = fitted.transform(fitted.cluster_centers_)
    np.testing.assert_allclose(between.diagonal(), 0, atol=1e-12)
    np.testing.assert_array_equal(kmeans().fit_transform(x), distances)


def test_scores_are_weighted_like_the_inertia(rng: np.random.Generator) -> None:
    weight = rng.random(100)
    fitted = kmeans().fit(X, sample_weight=weight)
    assert fitted.score(X, sample_weight=weight) == pytest.approx(-fitted.inertia_, rel=1e-6)
    with pytest.raises(ValueError, match="100 rows but weights of shape"):
        fitted.score(X, sample_weight=weight[:5])


# Names and refusals


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_names_come_in_and_go_out(library: str, method: str) -> None:
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({f"x{j}": column for j, column in enumerate(X.T)})
    estimator = kmeans(init=CENTRES).set_output(transform=library)
    getattr(estimator, method)(frame)
    assert estimator.n_features_in_ == 5
    assert estimator.feature_names_in_.tolist() == ["x0", "x1", "x2", "x3", "x4"]
    assert estimator.get_feature_names_out().tolist() == ["dkmeans0", "dkmeans1", "dkmeans2"]
    distances = estimator.transform(frame)
    assert isinstance(distances, frames.DataFrame)
    assert list(distances.columns) == ["dkmeans0", "dkmeans1", "dkmeans2"]
    np.testing.assert_array_equal(distances.to_numpy(), getattr(kmeans(init=CENTRES), method)(X).transform(X))
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame[["x4", "x3", "x2", "x1", "x0"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        estimator.predict(X)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_clusters": 101}, "101 clusters but only 100 rows"),
        ({"init": X[:2]}, r"initial prototypes have shape \(2, 5\), expected \(3, 5\)"),
        ({"init": X[:3, :2]}, r"initial prototypes have shape \(3, 2\), expected \(3, 5\)"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_what_does_not_fit_together_is_refused(options: dict, told: str, method: str) -> None:
    with pytest.raises(ValueError, match=told):
        getattr(kmeans().set_params(**options), method)(X)


@pytest.mark.parametrize("method", ["partial_fit", "predict", "transform", "score"])
def test_another_number_of_features_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="X has 4 features, but DKMeans is expecting 5 features"):
        getattr(kmeans().fit(X), method)(X[:, :4])


# Batches


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_are_those_of_minibatch_kmeans(weighted: bool, rng: np.random.Generator) -> None:
    def batch() -> tuple[NDArray, NDArray | None]:
        x = CENTRES[rng.integers(3, size=60)] + rng.standard_normal((60, 5))
        return x, rng.random(60) if weighted else None

    init = CENTRES + rng.standard_normal((3, 5))
    ours, theirs = kmeans(init=init), MiniBatchKMeans(3, init=init, n_init=1, reassignment_ratio=0)
    for number in range(12):
        x, weight = batch()
        ours.partial_fit(x, sample_weight=weight)
        theirs.partial_fit(x, sample_weight=weight)
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)
        assert ours.n_steps_ == theirs.n_steps_ == number + 1
