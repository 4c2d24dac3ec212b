from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import raydkm
from raydkm.data.source import RowSource
from raydkm.engine.comm import Solo
from raydkm.engine.passes import Passes
from raydkm.engine.survey import survey
from raydkm.errors import ConfigError, InputError
from raydkm.model import Model
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.distance import DistanceObjective
from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.seeding import SEEDINGS

DISTANCE = [name for name, kind in OBJECTIVES.items() if issubclass(kind, DistanceObjective)]

every_objective = pytest.mark.parametrize("objective", OBJECTIVES)
distance_objective = pytest.mark.parametrize("objective", DISTANCE)


def bits(model: Model) -> tuple[bytes, bytes, bytes, bytes]:
    tensors = (model.prototypes, model.shift, model.log_s, model.counts)
    return tuple(tensor.numpy().tobytes() for tensor in tensors)  # type: ignore[return-value]


def labels_of(model: Model, x: NDArray) -> NDArray[np.int64]:
    return np.square(np.asarray(x, dtype=np.float64)[:, None] - model.cluster_centers).sum(2).argmin(1)


def surveyed(x: NDArray, weight: NDArray | None = None, seed: int = 0, size: int = 50, metric: str = "euclidean"):
    return survey(Passes(RowSource.from_array(x, weight), Solo(), torch.device("cpu")), metric, size, seed)


# Hard k-means against scikit-learn


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("apart", [2.0, 10.0])
def test_k_means_from_the_same_start_is_scikit_learns(blobs, dtype, weighted: bool, apart: float) -> None:
    x, _ = blobs(rows=600, dim=5, clusters=6, apart=apart)
    x = x.astype(dtype)
    start = x[:6].astype(np.float64)
    weight = np.random.default_rng(1).random(600) + 0.1 if weighted else None
    model = raydkm.fit(x, clusters=6, objective="kmeans", init=start, tol=0, sample_weight=weight)
    peer = KMeans(6, init=start, n_init=1, algorithm="lloyd", tol=0, max_iter=300)
    peer.fit(x.astype(np.float64), sample_weight=weight)
    assert np.bincount(peer.labels_).min() > 0
    np.testing.assert_array_equal(labels_of(model, x), peer.labels_)
    np.testing.assert_allclose(model.cluster_centers, peer.cluster_centers_, rtol=1e-5, atol=1e-5)
    assert model.record["inertia"] == pytest.approx(peer.inertia_, rel=1e-5)
    assert model.record["stopped"] == "shift"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_k_means_with_many_clusters_is_scikit_learns_with_and_without_screening(precision: str, rng) -> None:
    x = rng.standard_normal((1500, 16)).astype(np.float32)
    start = x[:80].astype(np.float64)
    model = raydkm.fit(x, clusters=80, objective="kmeans", init=start, tol=0, precision=precision)
    peer = KMeans(80, init=start, n_init=1, algorithm="lloyd", tol=0).fit(x.astype(np.float64))
    np.testing.assert_array_equal(labels_of(model, x), peer.labels_)
    assert model.record["inertia"] == pytest.approx(peer.inertia_, rel=1e-5)


def test_screening_in_bf16_changes_no_bit_of_a_hard_fit(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5000, 12)).astype(np.float32)
    models = [raydkm.fit(x, clusters=70, objective="kmeans", precision=p, max_steps=10) for p in ("fp32", "bf16")]
    assert bits(models[0]) == bits(models[1])


@pytest.mark.parametrize("init", SEEDINGS)
def test_seeded_k_means_is_about_as_good_as_scikit_learns_best_of_ten(blobs, init: str) -> None:
    x, _ = blobs(rows=1000, dim=4, clusters=5, apart=6.0)
    model = raydkm.fit(x, clusters=5, objective="kmeans", init=init, n_init=32, seed=0)
    peer = KMeans(5, n_init=10, random_state=0).fit(x)
    assert model.record["inertia"] <= 1.005 * peer.inertia_


# Weights


@every_objective
def test_whole_weights_are_repetitions_and_zero_weights_absences(blobs, objective: str, rng) -> None:
    x, _ = blobs(rows=300, dim=3, clusters=4, apart=4.0)
    weight = rng.integers(0, 4, len(x)).astype(np.float64)
    start = x[weight > 0][:4].astype(np.float64)
    options = {"clusters": 4, "objective": objective, "init": start, "tol": 1e-12}
    weighted = raydkm.fit(x, sample_weight=weight, **options)
    repeated = raydkm.fit(np.repeat(x, weight.astype(int), axis=0), **options)
    present = raydkm.fit(x[weight > 0], sample_weight=weight[weight > 0], **options)
    for other in (repeated, present):
        np.testing.assert_allclose(weighted.cluster_centers, other.cluster_centers, atol=1e-4)
        np.testing.assert_array_equal(labels_of(weighted, x), labels_of(other, x))
        np.testing.assert_allclose(weighted.counts, other.counts)
        assert weighted.record["inertia"] == pytest.approx(other.record["inertia"], rel=1e-4)
    assert weighted.record["weight"] == weight.sum()
    assert weighted.record["rows"] == 300


@every_objective
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_unit_of_weights_does_not_matter(blobs, objective: str, scale: float) -> None:
    x, _ = blobs(rows=300, dim=3, clusters=3)
    weight = np.random.default_rng(0).random(300)
    start = x[:3].astype(np.float64)
    models = [
        raydkm.fit(x, clusters=3, objective=objective, init=start, sample_weight=factor * weight)
        for factor in (1.0, scale)
    ]
    np.testing.assert_allclose(models[0].cluster_centers, models[1].cluster_centers, atol=1e-5)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(InputError, match="all weights are zero"):
        raydkm.fit(np.ones((5, 2)), clusters=1, sample_weight=np.zeros(5))


# Degenerate data


@distance_objective
def test_an_empty_cluster_is_given_rows(blobs, objective: str) -> None:
    x, _ = blobs(rows=300, dim=3, clusters=4)
    start = x[:4].astype(np.float64)
    start[2] = 1e5
    model = raydkm.fit(x, clusters=4, objective=objective, init=start, tol=0, max_steps=50)
    assert model.history[0]["relocated"] == 1
    assert model.history[-1]["relocated"] == 0
    assert bool(model.prototypes.isfinite().all())
    assert float(model.counts.min()) > 0 or objective != "kmeans"


@every_objective
@pytest.mark.parametrize("init", SEEDINGS)
def test_as_many_clusters_as_rows(objective: str, init: str, rng: np.random.Generator) -> None:
    x = (10 * rng.standard_normal((12, 3))).astype(np.float32)
    softness = {} if objective == "kmeans" else {"temperature": 1e-3}
    model = raydkm.fit(x, clusters=12, objective=objective, init=init, **softness)
    assert sorted(labels_of(model, x)) == list(range(12))
    assert model.record["inertia"] == pytest.approx(0, abs=1e-3)
    np.testing.assert_array_equal(model.counts, np.ones(12))


@every_objective
@pytest.mark.parametrize("init", SEEDINGS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_rows_that_are_all_equal(objective: str, init: str, metric: str) -> None:
    x = np.tile(np.array([3.0, 4.0], dtype=np.float32), (40, 1))
    model = raydkm.fit(x, clusters=3, objective=objective, init=init, metric=metric)
    expected = [3.0, 4.0] if metric == "euclidean" else [0.6, 0.8]
    np.testing.assert_allclose(model.cluster_centers, np.tile(expected, (3, 1)), atol=1e-6)
    assert model.record["inertia"] == pytest.approx(0, abs=1e-6)
    assert all(np.isfinite(entry["objective"]) for entry in model.history)


@every_objective
@pytest.mark.parametrize("clusters", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_very_few_clusters(blobs, objective: str, clusters: int, seed: int) -> None:
    x, _ = blobs(rows=50, dim=2, clusters=2)
    model = raydkm.fit(x, clusters=clusters, objective=objective, seed=seed, n_init=8)
    if clusters == 1:
        np.testing.assert_allclose(model.cluster_centers, x.mean(0)[None], atol=1e-4)


def test_one_row_is_its_own_prototype() -> None:
    model = raydkm.fit(np.array([[1.0, 2.0, 3.0]]), clusters=1, objective="kmeans")
    np.testing.assert_allclose(model.cluster_centers, [[1, 2, 3]])


@every_objective
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_of_the_features_does_not_matter(blobs, objective: str, scale: float) -> None:
    x, _ = blobs(rows=200, dim=3, clusters=3)
    x = x.astype(np.float64)
    options = {"clusters": 3, "objective": objective}
    plain = raydkm.fit(x, init=x[:3], **options)
    scaled = raydkm.fit(scale * x, init=scale * x[:3], **options)
    np.testing.assert_allclose(scaled.cluster_centers / scale, plain.cluster_centers, rtol=1e-3, atol=1e-3)


def test_values_whose_squares_underflow_are_refused(blobs) -> None:
    x, _ = blobs(rows=200, dim=3, clusters=3)
    with pytest.raises(InputError, match="scale the data up"):
        raydkm.fit(1e-20 * x.astype(np.float64), clusters=3)
    with pytest.raises(InputError, match="scale the weights up"):
        raydkm.fit(x, clusters=3, sample_weight=np.full(200, 1e-30))


@every_objective
def test_an_offset_of_the_data_costs_no_accuracy(blobs, objective: str) -> None:
    x, _ = blobs(rows=300, dim=3, clusters=4, apart=6.0)
    x = np.round(x * 64) / 64  # exact in float32 at the offset too
    near = raydkm.fit(x, clusters=4, objective=objective, init=x[:4].astype(np.float64))
    far = raydkm.fit(x + np.float32(4096), clusters=4, objective=objective, init=x[:4].astype(np.float64) + 4096)
    np.testing.assert_allclose(far.cluster_centers - 4096, near.cluster_centers, atol=1e-3)


# The same rows give the same bits


@every_objective
def test_arrays_tables_and_parquet_files_give_the_same_bits(tmp_path: Path, write, blobs, objective: str) -> None:
    x, _ = blobs(rows=1000, dim=6, clusters=5, apart=2.0)
    weight = np.random.default_rng(0).random(1000)
    options = {"clusters": 5, "objective": objective, "max_steps": 20}
    for name, start, stop in (("a", 0, 300), ("b", 300, 301), ("c", 301, 1000)):
        write(tmp_path / f"{name}.parquet", row_group_size=64, x=x[start:stop], w=weight[start:stop])
    table = pa.table({"x": x.tolist(), "w": weight}, pa.schema({"x": pa.list_(pa.float32()), "w": pa.float64()}))
    models = [
        raydkm.fit(x, sample_weight=weight, **options),
        raydkm.fit(torch.from_numpy(x), sample_weight=weight, **options),
        raydkm.fit(table, column="x", weight="w", **options),
        raydkm.fit(tmp_path, column="x", weight="w", **options),
    ]
    assert len({bits(model) for model in models}) == 1
    assert len({model.record["fingerprint"] for model in models}) == 1


def test_how_rows_are_cut_into_files_changes_no_bit_over_several_batches(tmp_path: Path, write, rng) -> None:
    x = rng.standard_normal((2 * BATCH_ROWS + 100, 3)).astype(np.float32)
    for name, cuts in (("one", [0, len(x)]), ("many", [0, 7, 5000, BATCH_ROWS * 2 + 1, len(x)])):
        for number, (start, stop) in enumerate(pairwise(cuts)):
            write(tmp_path / name / f"{number}.parquet", x=x[start:stop])
    models = [raydkm.fit(tmp_path / name, column="x", clusters=4, max_steps=8) for name in ("one", "many")]
    models.append(raydkm.fit(x, clusters=4, max_steps=8))
    assert len({bits(model) for model in models}) == 1


@every_objective
@pytest.mark.parametrize(("metric", "weighted"), [("euclidean", False), ("euclidean", True), ("cosine", True)])
def test_the_number_of_threads_changes_no_bit(objective: str, metric: str, weighted: bool, rng) -> None:
    x = rng.standard_normal((2 * BATCH_ROWS + 500, 5)).astype(np.float32)
    weight = rng.random(len(x)) if weighted else None
    models = [
        raydkm.fit(
            x,
            clusters=6,
            objective=objective,
            metric=metric,
            sample_weight=weight,
            threads=threads,
            max_steps=6,
            n_init=3,
            seed_rows=2000,
            balance=0.5 if objective in DISTANCE else 0.0,
        )
        for threads in (1, 2, 5)
    ]
    assert len({bits(model) for model in models}) == 1
    assert len({model.record["inertia"] for model in models}) == 1


def test_another_seed_is_another_fit_and_the_same_seed_the_same(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2000, 4)).astype(np.float32)
    one, again, other = (raydkm.fit(x, clusters=9, seed=seed, max_steps=3) for seed in (5, 5, 6))
    assert bits(one) == bits(again) != bits(other)


# The survey


@pytest.mark.parametrize("weighted", [False, True])
def test_the_seeding_sample_does_not_depend_on_the_order_of_rows(rng: np.random.Generator, weighted: bool) -> None:
    x = rng.standard_normal((2 * BATCH_ROWS + 9, 3)).astype(np.float32)
    weight = rng.integers(0, 3, len(x)).astype(np.float64) if weighted else None
    order = rng.permutation(len(x))
    one = surveyed(x, weight)
    other = surveyed(x[order], None if weight is None else weight[order])
    assert torch.equal(one.sample_rows, other.sample_rows)
    assert torch.equal(one.sample_weight, other.sample_weight)
    assert one.sample_rows.shape == (50, 3)
    assert one.fingerprint == other.fingerprint
    assert float(one.sample_weight.min()) > 0


def test_the_sample_is_one_without_replacement_even_of_equal_rows(rng: np.random.Generator) -> None:
    x = rng.standard_normal((70, 2)).astype(np.float32)
    assert sorted(surveyed(x, size=70).sample_rows.tolist()) == sorted(x.tolist())
    assert sorted(surveyed(x, size=1000).sample_rows.tolist()) == sorted(x.tolist())
    assert len(surveyed(np.ones((70, 2)), size=33).sample_rows) == 33


def test_the_fingerprint_tells_any_changed_value_weight_or_row(rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((100, 3)).astype(np.float32), np.ones(100)
    changed, heavier = x.copy(), weight.copy()
    changed[57, 1] = np.nextafter(changed[57, 1], np.float32(9))
    heavier[3] = 2
    looks = [surveyed(x, weight), surveyed(changed, weight), surveyed(x, heavier), surveyed(x[1:], weight[1:])]
    assert len({look.fingerprint for look in looks}) == 4


# Seeding, softness, refusals


def test_the_best_restart_goes_on(blobs) -> None:
    x, _ = blobs(rows=500, dim=2, clusters=8, apart=5.0)
    model = raydkm.fit(x, clusters=8, objective="kmeans", init="random", n_init=6)
    objectives = model.record["seeding"]["restart_objectives"]
    assert len(objectives) == 6
    assert len(set(objectives)) > 1, "the case has no local optima"
    assert model.history[-1]["objective"] <= min(objectives) * (1 + 1e-6)


def test_a_sample_smaller_than_the_data_seeds_a_fit_of_all_rows(blobs) -> None:
    x, _ = blobs(rows=5000, dim=3, clusters=4)
    model = raydkm.fit(x, clusters=4, objective="kmeans", seed_rows=100)
    assert model.record["seeding"]["sample_rows"] == 100
    assert model.record["rows"] == 5000
    assert float(model.counts.sum()) == 5000


def test_a_temperature_a_lambda_and_a_fraction_of_the_critical_one_agree(blobs) -> None:
    x, _ = blobs(rows=300, dim=3, clusters=3)
    critical = 2 * np.linalg.eigvalsh(np.cov(x.astype(np.float64).T, bias=True))[-1]
    by_fraction = raydkm.fit(x, clusters=3, temperature="0.25Tc")
    by_value = raydkm.fit(x, clusters=3, temperature=0.25 * critical)
    by_lambda = raydkm.fit(x, clusters=3, lam=0.25 * critical / 3)
    assert by_fraction.record["collapse_temperature"] == pytest.approx(critical, rel=1e-5)
    for model in (by_fraction, by_value, by_lambda):
        assert model.temperature == pytest.approx(0.25 * critical, rel=1e-5)
        np.testing.assert_allclose(model.cluster_centers, by_fraction.cluster_centers, atol=1e-3)


def test_prototypes_collapse_just_above_the_critical_temperature_and_not_just_below(rng) -> None:
    x = rng.standard_normal((200, 3)).astype(np.float32) * [3, 1, 1]
    spread = {
        temperature: raydkm.fit(x, clusters=3, temperature=temperature, tol=0, max_steps=800, n_init=1)
        for temperature in ("1.02Tc", "0.9Tc")
    }
    away = {t: np.abs(model.cluster_centers - x.mean(0)).max() for t, model in spread.items()}
    assert away["1.02Tc"] < 0.01
    assert away["0.9Tc"] > 0.3


def test_cosine_fits_directions_whatever_the_lengths(blobs, rng: np.random.Generator) -> None:
    x, _ = blobs(rows=300, dim=5, clusters=4, apart=3.0)
    lengths = 2.0 ** rng.integers(-6, 7, (300, 1)).astype(np.float32)
    start = x[:4] / np.linalg.norm(x[:4], axis=1, keepdims=True)
    one, other = (raydkm.fit(y, clusters=4, metric="cosine", init=start) for y in (x, x * lengths))
    np.testing.assert_allclose(one.cluster_centers, other.cluster_centers, atol=1e-5)


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e-12), (np.float32, 1e12), (np.float64, 1e-100)])
def test_cosine_of_short_and_long_rows_is_that_of_rows_of_length_one(blobs, dtype, scale: float) -> None:
    x, _ = blobs(rows=100, dim=3, clusters=3)
    start = x[:3] / np.linalg.norm(x[:3], axis=1, keepdims=True)
    one, other = (raydkm.fit(y, clusters=3, metric="cosine", init=start) for y in (x, x.astype(dtype) * dtype(scale)))
    np.testing.assert_allclose(one.cluster_centers, other.cluster_centers, atol=1e-4)


@pytest.mark.parametrize(("dtype", "short"), [(np.float32, 1e-25), (np.float32, 1e-40), (np.float64, 1e-170)])
def test_cosine_refuses_rows_too_short_for_a_direction(blobs, dtype, short: float) -> None:
    x = blobs(rows=100)[0].astype(dtype)
    x[17] *= dtype(short)
    with pytest.raises(InputError, match=r"^row 17: a vector so short"):
        raydkm.fit(x, clusters=3, metric="cosine")


def test_balance_narrows_the_sizes_of_clusters() -> None:
    x = load_digits().data
    spread = [float(raydkm.fit(x, clusters=10, balance=b).counts.std()) for b in (0.0, 0.9)]
    assert spread[1] < 0.8 * spread[0]


@distance_objective
def test_balance_narrows_the_weights_of_clusters(objective: str, rng: np.random.Generator) -> None:
    parts = ((600, 0.3, (0, 0)), (200, 1.0, (3, 0)), (100, 1.0, (0, 4)))
    x = np.concatenate([rng.standard_normal((n, 2)) * spread + centre for n, spread, centre in parts])

    start = x[::150]  # one for both, for a seeding's optimum may have more even sizes

    def range_of_sizes(balance: float) -> float:
        softness = {} if objective == "kmeans" and balance == 0 else {"temperature": "0.1Tc"}
        model = raydkm.fit(x, clusters=6, objective=objective, balance=balance, init=start, **softness)
        return model.history[-1]["largest"] - model.history[-1]["smallest"]

    assert range_of_sizes(0.9) < 0.85 * range_of_sizes(0.0)


def test_heavy_rows_are_seeded_however_few_they_are() -> None:
    rng = np.random.default_rng(0)
    far = 1000 * rng.standard_normal((20, 4))
    x = np.concatenate([rng.standard_normal((30_000, 4)), far])
    weight = np.concatenate([np.ones(30_000), np.full(20, 1e5)])
    model = raydkm.fit(x, clusters=21, objective="kmeans", sample_weight=weight, seed_rows=2000)
    peer = KMeans(21, random_state=0, n_init=3).fit(x, sample_weight=weight)
    assert model.record["inertia"] < 1.01 * peer.inertia_


def test_inertia_is_exact_where_clusters_are_tight_and_far_apart() -> None:
    rng = np.random.default_rng(0)
    centers = 10 * rng.standard_normal((5, 8))
    x = (centers[np.arange(5000) % 5] + 1e-3 * rng.standard_normal((5000, 8))).astype(np.float32)
    estimator = raydkm.DKMeans(5, objective="kmeans", random_state=0).fit(x)
    gaps = x.astype(np.float64) - estimator.cluster_centers_[estimator.labels_]
    assert estimator.inertia_ == pytest.approx(np.square(gaps).sum(), rel=1e-3)
    assert -estimator.score(x) == pytest.approx(np.square(gaps).sum(), rel=1e-2)


def test_a_column_of_huge_values_does_not_blind_the_others() -> None:
    rng = np.random.default_rng(0)
    x = np.stack([np.repeat([-1e9, 1e9], 500), rng.uniform(0, 1e-3, 1000)], axis=1)
    model = raydkm.fit(x, clusters=300, objective="kmeans", max_steps=2)
    assert np.ptp(model.cluster_centers[:, 1]) > 1e-4


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"clusters": 11}, InputError, "11 clusters but only 10 rows"),
        ({"clusters": 0}, ConfigError, "clusters"),
        ({"clusters": 2, "init": np.ones((3, 2))}, ConfigError, r"shape \(3, 2\), expected \(2, 2\)"),
        ({"clusters": 2, "init": np.ones((2, 3))}, ConfigError, r"shape \(2, 3\), expected \(2, 2\)"),
        ({"clusters": 1, "init": [[np.nan, 0.0]]}, ConfigError, "NaN"),
        ({"clusters": 2, "init": "array"}, ConfigError, "init"),
        ({"clusters": 2, "init": "nowhere.npy"}, ConfigError, "init"),
        ({"clusters": 2, "init": "k-means"}, ConfigError, "init"),
        ({"clusters": 2, "engine": "ray"}, ConfigError, "in this process"),
        ({"clusters": 2, "column": "x"}, InputError, "an array has no columns"),
        ({"clusters": 2, "sample_weight": np.ones(3)}, InputError, "10 rows but weights"),
        ({"clusters": 9, "sample_weight": np.r_[np.ones(8), 0, 0]}, InputError, "only 8 rows of positive weight"),
        ({"clusters": 2, "device": "cuda:99"}, ConfigError, "cuda:99"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, kind, told: str, rng: np.random.Generator) -> None:
    with pytest.raises(kind, match=told):
        raydkm.fit(rng.standard_normal((10, 2)), **options)


def test_a_refused_fit_writes_nothing_and_a_good_one_what_load_reads(tmp_path: Path, rng) -> None:
    x = rng.standard_normal((10, 2))
    with pytest.raises(InputError):
        raydkm.fit(x, clusters=11, out=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    model = raydkm.fit(x, clusters=2, out=tmp_path / "model")
    assert bits(raydkm.load(tmp_path / "model")) == bits(model)


def test_the_history_tells_every_step(blobs) -> None:
    x, _ = blobs()
    model = raydkm.fit(x, clusters=3, tol=0, max_steps=2)
    assert [entry["step"] for entry in model.history] == [1, 2]
    assert model.record["steps"] == 2
    assert model.record["stopped"] == "max_steps"
    assert not any(entry["settled"] for entry in model.history)


@pytest.mark.parametrize(("copies", "seed_rows"), [(40, 30), (40, 2000), (3, 20_000)])
def test_a_data_set_repeated_many_times_is_seeded_from_as_many_different_rows(copies: int, seed_rows: int) -> None:
    x = np.random.default_rng(0).standard_normal((BATCH_ROWS, 4)).astype(np.float32)
    source = RowSource.from_array(np.tile(x, (copies, 1)))
    look = survey(Passes(source, Solo(), torch.device("cpu")), "euclidean", seed_rows, 0)
    expected = min(seed_rows, BATCH_ROWS)
    assert len(np.unique(look.sample_rows.numpy(), axis=0)) == len(look.sample_rows) == expected
    assert look.sample_weight.sum() == pytest.approx(source.total, rel=0.3)
    assert look.sample_is_all == (seed_rows >= BATCH_ROWS)


def test_more_clusters_than_different_rows_still_get_a_prototype_each() -> None:
    x = np.tile(np.arange(8.0)[:, None], (2 * BATCH_ROWS // 8, 1))
    model = raydkm.fit(x, clusters=BATCH_ROWS + 50, objective="kmeans", n_init=1, max_steps=3)
    assert model.record["inertia"] < 1e-3
    assert bool(model.prototypes.isfinite().all())


@pytest.mark.long
def test_more_rows_in_one_cluster_than_float32_can_count() -> None:
    """2^24 + 4001 rows of 0 to 3 and one far away, which float32 counters and sums lose."""
    rows = 2**24 + 4001
    x = np.arange(rows, dtype=np.uint8)[:, None] % 4
    x[-1] = 200
    model = raydkm.fit(x, clusters=2, objective="kmeans", max_steps=2, init=np.array([[1.0], [200.0]]))
    near = x[:-1].astype(np.float64)
    assert sorted(model.counts.tolist()) == [1.0, rows - 1]
    prototypes = np.sort((model.prototypes.double() + model.shift).numpy()[:, 0])
    np.testing.assert_allclose(prototypes, [near.mean(), 200.0], rtol=1e-7)
    assert model.record["rows"] == rows
