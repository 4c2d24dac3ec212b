"""The collapse temperature, by all eigenvalues and by Lanczos' method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import raydkm
from raydkm.ops import temperature
from raydkm.ops.temperature import collapse_temperature, collapse_temperature_of_rows, largest_eigenvalue


def spectra(rng: np.random.Generator) -> dict[str, np.ndarray]:
    decay = np.geomspace(1, 1e-9, 60)
    return {
        "decaying": decay,
        "two that are nearly equal": np.concatenate([[1.0, 1 - 1e-7], decay[1:]]),
        "all equal": np.ones(40),
        "of low rank": np.concatenate([[5.0, 3.0], np.zeros(50)]),
        "of random rows": np.linalg.eigvalsh(np.cov(rng.standard_normal((300, 80)), rowvar=False)),
        "zero": np.zeros(10),
        "one": np.array([7.0]),
    }


@pytest.mark.parametrize("name", spectra(np.random.default_rng(0)))
@pytest.mark.parametrize("turned", [False, True])
def test_lanczos_finds_the_largest_eigenvalue(name: str, turned: bool, rng: np.random.Generator) -> None:
    values = spectra(rng)[name]
    turn = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0] if turned else np.eye(len(values))
    matrix = torch.from_numpy((turn * values) @ turn.T)
    assert largest_eigenvalue(matrix.mv, len(matrix)) == pytest.approx(values.max(), rel=1e-7, abs=1e-12)


def test_many_dimensions_have_the_collapse_temperature_of_few(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    covariance = torch.from_numpy(np.cov(rng.standard_normal((50, 30)), rowvar=False))
    exact = collapse_temperature(covariance)
    monkeypatch.setattr(temperature, "LANCZOS_DIMENSIONS", 10)
    assert collapse_temperature(covariance) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("rows", "dim"), [(1, 5), (2, 3), (20, 90), (2500, 40)])
def test_rows_have_the_collapse_temperature_of_their_covariance(rows: int, dim: int, rng: np.random.Generator) -> None:
    z, weight = rng.standard_normal((rows, dim)) * np.linspace(1, 4, dim) + 3, rng.random(rows) + 0.1
    centred = z - np.average(z, axis=0, weights=weight)
    covariance = torch.from_numpy((weight[:, None] * centred).T @ centred / weight.sum())
    mean = torch.from_numpy(np.average(z, axis=0, weights=weight))
    found = collapse_temperature_of_rows(torch.from_numpy(z), torch.from_numpy(weight), mean)
    assert found == pytest.approx(collapse_temperature(covariance), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("objective", ["soft-kmeans", "sr-kmeans"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_few_rows_of_many_dimensions_are_fitted_as_any_others(
    objective: str, metric: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((30, 3)) @ rng.standard_normal((3, 200)) + 5
    weight = rng.integers(1, 4, size=30)
    options = {"clusters": 3, "objective": objective, "metric": metric}
    fits = [
        raydkm.fit(x, sample_weight=weight, **options),
        raydkm.fit(np.repeat(x, weight, axis=0), **options),
        raydkm.fit(np.repeat(x, 10, axis=0)[:, :20], **options),  # more rows than dimensions, fewer different ones
    ]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    exact = 2 * np.linalg.eigvalsh(np.cov(unit, rowvar=False, fweights=weight, ddof=0))[-1]
    assert fits[0].record["collapse_temperature"] == pytest.approx(exact, rel=1e-4)
    assert fits[0].checksum() == fits[1].checksum()
    assert fits[2].record["collapse_temperature"] > 0


def test_few_rows_of_very_many_dimensions_need_no_matrix_of_these(rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 30_000)).astype(np.float32)  # their covariance would take 7 GB
    model = raydkm.fit(x, clusters=2, objective="soft-kmeans", max_steps=3)
    assert model.record["collapse_temperature"] > 0
    raydkm.DKMeans(2, objective="soft-kmeans", random_state=0).partial_fit(x)
