"""Shares of the clusters, annealing, where a fit begins, and why it stops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

import raydkm
from raydkm.api.given import read_given
from raydkm.engine.checkpoint import CheckpointFile
from raydkm.errors import ConfigError, ModelError
from raydkm.ops.balance import Balance
from raydkm.ops.health import SAME, duplicates


def uneven(rng: np.random.Generator) -> np.ndarray:
    parts = ((900, 0.5, (0, 0)), (200, 1.0, (3, 0)), (100, 1.0, (0, 4)))
    return np.concatenate([rng.standard_normal((n, 2)) * spread + centre for n, spread, centre in parts])


SOFT = {"clusters": 4, "objective": "soft-kmeans", "temperature": "0.3Tc", "tol": 1e-8, "max_steps": 1000}


def shares(model: raydkm.Model, x: np.ndarray) -> np.ndarray:
    """q_hat of the final model."""
    logits = model.scores()(model.frame()(torch.from_numpy(x))) * (2 / model.temperature)
    return logits.double().softmax(1).mean(0).numpy()


@pytest.mark.parametrize("marginal", [[4.0, 3, 2, 1], [1, 1, 1, 1]])
def test_shares_are_pulled_to_the_marginal_given(rng: np.random.Generator, marginal: list[float]) -> None:
    """From one start, for the local optimum of a seeding may be nearer to the marginal at less balance."""
    x, wanted, start = uneven(rng), np.array(marginal) / np.sum(marginal), np.array([[0.0, 0], [3, 0], [0, 4], [1, 1]])
    found = [
        shares(raydkm.fit(x, marginal=marginal, balance=balance, init=start, **SOFT), x) for balance in (0.3, 0.9, 1.0)
    ]
    np.testing.assert_allclose(found[2], wanted, atol=0.012)
    divergences = [(share * np.log(share / wanted)).sum() for share in found]
    assert divergences[0] > divergences[1] > divergences[2]


def test_shares_stay_within_their_bounds(rng: np.random.Generator) -> None:
    x = uneven(rng)
    free, bounded = (raydkm.fit(x, **SOFT, **bounds) for bounds in ({}, {"min_share": 0.2, "max_share": 0.3}))
    assert shares(free, x).max() > 0.35
    assert 0.19 < shares(bounded, x).min() < shares(bounded, x).max() < 0.31
    wide = raydkm.fit(x, **SOFT, min_share=1e-3, max_share=0.99)
    assert not wide.log_s.any()  # within wide bounds nothing is asked
    np.testing.assert_allclose(wide.cluster_centers, free.cluster_centers, atol=1e-5)


@pytest.mark.parametrize("asked", [{"balance": 1.0}, {"min_share": 0.2, "max_share": 0.3}], ids=str)
def test_shares_of_a_model_are_those_under_its_scalings(asked: dict, rng: np.random.Generator) -> None:
    x = uneven(rng)
    model = raydkm.fit(x, **(SOFT | asked | {"max_steps": 2}))  # the scalings are swept after the steps
    np.testing.assert_allclose(model.shares, shares(model, x), atol=1e-4)
    assert np.abs(model.shares.numpy() - shares(replace(model, log_s=torch.zeros(4)), x)).max() > 0.05
    np.testing.assert_allclose(model.read_as("p").scores().bias, 0.5 * np.log(shares(model, x)), atol=1e-3)


@pytest.mark.parametrize(("objective", "told"), [("soft-kmeans", True), ("sr-kmeans", True), ("kmeans", False)])
def test_labels_that_break_bounds_of_the_shares_are_told(
    objective: str, told: bool, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    soft = {} if objective == "kmeans" else {"temperature": "0.7Tc"}
    options = {"clusters": 4, "objective": objective, **soft}
    model = raydkm.fit(uneven(rng), **options, min_share=0.2, max_share=0.3)
    assert ("bind the posteriors" in caplog.text) == told
    of_labels = model.counts / model.counts.sum()
    assert bool(of_labels.min() < 0.19 or of_labels.max() > 0.31) == told
    caplog.clear()
    raydkm.fit(uneven(rng), **options)
    assert "bind" not in caplog.text


def test_hard_clusters_too_have_bounds() -> None:
    x = load_digits().data
    model = raydkm.fit(x, clusters=10, objective="kmeans", min_share=0.09, max_share=0.11)
    assert model.history[-1]["smallest"] > 0.07 * len(x)  # 0.05 without bounds
    assert model.history[-1]["largest"] < 0.125 * len(x)  # 0.14 without


def test_a_balance_without_anything_asked_is_none() -> None:
    assert not Balance().active
    assert not Balance(0.5).held
    assert Balance(1.0).held
    assert Balance(low=0.1).held


def test_annealing_lowers_the_temperature_and_forgets_the_seeds(blobs) -> None:
    """Of 20 random seedings, which alone end in many optima."""
    x, _ = blobs(rows=600, dim=8, clusters=10, apart=3.0)
    options = {"clusters": 10, "init": "random", "n_init": 1, "temperature": "0.05Tc", "tol": 1e-8}
    plain, annealed = ([raydkm.fit(x, seed=seed, anneal=anneal, **options) for seed in range(20)] for anneal in (0, 40))
    course = annealed[0].history
    assert course[0]["temperature"] == pytest.approx(0.9 * annealed[0].record["collapse_temperature"])
    temperatures = [entry["temperature"] for entry in course]
    assert temperatures[:41] == sorted(temperatures[:41], reverse=True)
    assert set(temperatures[40:]) == {annealed[0].temperature}
    reached = [np.array([model.history[-1]["objective"] for model in models]) for models in (plain, annealed)]
    assert reached[1].std() < reached[0].std()
    assert reached[1].mean() < reached[0].mean()


def test_the_rule_that_ended_a_fit_is_told(blobs) -> None:
    x, _ = blobs(rows=500, dim=4, clusters=5, apart=3.0)
    fits = {
        "shift": {},
        "objective": {"tol": 0, "objective_tol": 1e-3},
        "max_steps": {"tol": 0, "max_steps": 2},
        "max_time": {"tol": 0, "max_time": 1e-9},
    }
    for rule, options in fits.items():
        model = raydkm.fit(x, clusters=5, **options)
        assert model.record["stopped"] == rule
        assert model.history[-1]["settled"] == (rule if rule in ("shift", "objective") else None)
    assert len(raydkm.fit(x, clusters=5, tol=0, max_time=1e-9).history) == 1


def test_prototypes_without_rows_may_be_kept(blobs) -> None:
    x, _ = blobs(rows=300, dim=3, clusters=4)
    start = x[:4].astype(np.float64)
    start[2] = 1e5
    options = {"clusters": 4, "objective": "kmeans", "init": start, "max_steps": 50}
    split, kept = (raydkm.fit(x, empty=empty, **options) for empty in ("split", "keep"))
    assert split.history[0]["relocated"] == 1
    assert split.counts.min() > 0
    assert [entry["relocated"] for entry in kept.history] == [0] * len(kept.history)
    np.testing.assert_allclose(kept.cluster_centers[2], 1e5, rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_prototypes_without_rows_may_be_moved_to_the_farthest_rows(rng: np.random.Generator, threads: int) -> None:
    x = rng.standard_normal((9000, 3)).astype(np.float32)
    x[[17, 4500, 8999]] = [[50, 0, 0], [50, 0, 0], [0, 70, 0]]  # two of them equal
    start = np.array([[0.1, 0, 0], [-0.1, 0, 0], [1e5, 0, 0], [0, 1e5, 0], [0, 0, 1e5]])
    options = {"clusters": 5, "objective": "kmeans", "init": start, "empty": "farthest", "tol": 0, "threads": threads}
    first = raydkm.fit(x, max_steps=1, **options)
    assert first.history[0]["relocated"] == 3
    halves = [x[x[:, 0] > 0].mean(0), x[x[:, 0] < 0].mean(0)]
    third = np.argsort(np.min([np.square(x - mean).sum(1) for mean in halves], axis=0))[-4]  # all but these three
    np.testing.assert_allclose(first.cluster_centers[2:4], [[0, 70, 0], [50, 0, 0]], atol=1e-5)
    np.testing.assert_allclose(first.cluster_centers[4], x[third], atol=1e-5)
    model = raydkm.fit(x, max_steps=20, **options)
    assert sorted(model.counts.tolist())[:2] == [1, 2]


def test_where_no_row_is_away_from_its_prototype_the_others_stay(rng: np.random.Generator) -> None:
    x = np.repeat(rng.standard_normal((2, 3)), 10, axis=0)
    model = raydkm.fit(x, clusters=4, objective="kmeans", empty="farthest", max_steps=20)
    assert model.prototypes.isfinite().all()
    assert model.record["inertia"] == pytest.approx(0, abs=1e-9)
    assert model.history[-1]["settled"]
    assert model.history[-1]["relocated"] == 0


def test_duplicate_prototypes_are_counted() -> None:
    x = np.repeat(np.arange(3.0), 5)[:, None]
    model = raydkm.fit(x, clusters=5, objective="kmeans", empty="keep")
    assert model.history[-1]["duplicates"] == 2
    assert raydkm.fit(x, clusters=3, objective="kmeans").history[-1]["duplicates"] == 0


SOFT_FITS = pytest.mark.parametrize("objective", ["soft-kmeans", "sr-kmeans"])


@SOFT_FITS
@pytest.mark.parametrize("temperature", ["1.2Tc", "2Tc", "10Tc"])
@pytest.mark.parametrize("clusters", [2, 5])
def test_soft_prototypes_that_collapse_are_duplicates(
    objective: str, temperature: str, clusters: int, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    x = rng.standard_normal((400, 6)) * [3, 1, 1, 0.5, 0.5, 0.1]
    estimator = raydkm.DKMeans(clusters, objective=objective, temperature=temperature, random_state=0)
    with pytest.warns(ConvergenceWarning, match=f"{clusters - 1} of {clusters} prototypes coincide"):
        estimator.fit(x)
    assert estimator.history_[-1]["duplicates"] == clusters - 1
    assert f"{clusters - 1} of {clusters} prototypes coincide with another one at T" in caplog.text


@SOFT_FITS
@pytest.mark.parametrize("temperature", ["auto", "0.5Tc", "0.9Tc"])
def test_soft_prototypes_that_are_apart_are_no_duplicates(
    objective: str, temperature: str, blobs, caplog: pytest.LogCaptureFixture
) -> None:
    x, _ = blobs(rows=400, dim=6, clusters=2)
    model = raydkm.fit(x, clusters=2, objective=objective, temperature=temperature)
    assert model.history[-1]["duplicates"] == 0
    assert "coincide" not in caplog.text


def test_clusters_of_k_means_that_are_far_apart_beside_their_distances_are_no_duplicates() -> None:
    places = np.repeat([0.0, 100, 200, 1e6], 10)[:, None] + np.tile(np.arange(10.0), 4)[:, None]
    model = raydkm.fit(places, clusters=4, objective="kmeans", init=[[4.5], [104.5], [204.5], [1e6]])
    assert model.history[-1]["duplicates"] == 0


@pytest.mark.parametrize(("apart", "counted"), [(0.0, 3), (2.0**-13, 3), (2.0**-10, 0)])
def test_prototypes_are_duplicates_within_a_part_of_the_spread(
    rng: np.random.Generator, apart: float, counted: int
) -> None:
    prototypes = torch.from_numpy(rng.standard_normal((50, 6)))
    aside = torch.from_numpy(rng.standard_normal((3, 6)))
    aside /= torch.linalg.vector_norm(aside, dim=1, keepdim=True)
    prototypes[[4, 19, 48]] = prototypes[[7, 30, 2]] + 5.0 * apart * aside
    assert duplicates(prototypes, 5.0 * SAME) == counted


def test_time_before_a_checkpoint_counts(blobs, tmp_path: Path) -> None:
    x, _ = blobs(rows=500, dim=4, clusters=5)
    run = {"clusters": 5, "tol": 0, "run_dir": str(tmp_path), "max_time": 1000}
    first = raydkm.fit(x, max_steps=2, **run)
    checkpoints = CheckpointFile(str(tmp_path), 0.0)
    saved = checkpoints.load()
    assert saved is not None
    checkpoints.save(replace(saved, history=[{**entry, "seconds": 500.0} for entry in first.history]))
    second = raydkm.fit(x, max_steps=9, **run)
    assert second.record["stopped"] == "max_time"
    assert len(second.history) == 3


def test_logistic_temperature_follows_the_spread_within_clusters(blobs) -> None:
    x, labels = blobs(rows=900, dim=6, clusters=4, apart=5.0)
    auto = raydkm.fit(x, clusters=4, objective="mi", max_steps=20)
    within = sum(np.cov(x[labels == k].T, bias=True) * (labels == k).mean() for k in range(4))
    assert auto.temperature == pytest.approx(np.linalg.eigvalsh(within)[-1], rel=0.02)
    far = raydkm.fit(x + 100.0 * np.eye(6, dtype=np.float32)[labels], clusters=4, objective="mi", max_steps=20)
    assert far.temperature == pytest.approx(auto.temperature, rel=0.02)
    assert far.record["collapse_temperature"] > 20 * auto.record["collapse_temperature"]


def test_a_logistic_fit_goes_on_at_its_temperature(blobs, tmp_path: Path) -> None:
    x, _ = blobs(rows=900, dim=6, clusters=4, apart=1.0)
    run = {"clusters": 4, "objective": "sinkhorn", "tol": 0}
    raydkm.fit(x, max_steps=3, run_dir=str(tmp_path), **run)
    second = raydkm.fit(x, max_steps=8, run_dir=str(tmp_path), **run)
    assert second.checksum() == raydkm.fit(x, max_steps=8, **run).checksum()


def test_a_fit_goes_on_from_a_model(blobs, tmp_path: Path) -> None:
    x, _ = blobs(rows=500, dim=4, clusters=5, apart=2.0)
    first = raydkm.fit(x, clusters=5, max_steps=3, tol=0, out=tmp_path / "m1")
    for start in (first, tmp_path / "m1", str(tmp_path / "m1")):
        second = raydkm.fit(x, clusters=5, init=start, max_steps=5, tol=0)
        assert second.record["seeding"]["init"] == "array"
        assert second.history[0]["objective"] < first.history[-1]["objective"]
    with pytest.raises(ModelError, match=r"no model\.json here"):
        raydkm.fit(x, clusters=5, init=str(tmp_path / "m2"))
    with pytest.raises(ConfigError, match="init: a model of metric euclidean; this fit has metric cosine"):
        raydkm.fit(x, clusters=5, init=first, metric="cosine")
    with pytest.raises(ConfigError, match=r"initial prototypes have shape \(5, 4\), expected \(6, 4\)"):
        raydkm.fit(x, clusters=6, init=first)


@pytest.mark.parametrize("name", ["u.npy", "u.json", "u.txt"])
def test_a_marginal_is_read_from_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "u.npy":
        np.save(path, [1.0, 2, 3])
    else:
        path.write_text(json.dumps([1, 2, 3]) if name == "u.json" else "1\n2, 3\n")
    assert read_given({"marginal": path})[1]["marginal"] == [1, 2, 3]
    path.write_text("no numbers")
    with pytest.raises(ConfigError, match=f"marginal: .*{name}: not a file of numbers"):
        read_given({"marginal": str(path)})
