from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from raydkm.features.spectra import (
    EIGENVALUE_FLOOR,
    SHRINKAGE,
    discriminants,
    inverse_root,
    nystrom,
    principal,
    principal_of_rows,
    shrunk,
    signed,
    whitening,
)


def rows(n: int = 400, dim: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim)) + 10 * rng.standard_normal(dim)


def moments(x: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T, bias=True))


def test_principal_directions_are_scikit_learns_up_to_their_signs() -> None:
    x = rows()
    found = principal(*moments(x), 3)
    theirs = PCA(3).fit(x)
    signs = np.sign(theirs.components_[np.arange(3), np.abs(theirs.components_).argmax(1)])
    np.testing.assert_allclose(found.matrix.T, theirs.components_ * signs[:, None], atol=1e-10)
    np.testing.assert_allclose(found(torch.from_numpy(x)), theirs.transform(x) * signs, atol=1e-4)


@pytest.mark.parametrize("n", [2, 5, 20, 39])
def test_fewer_rows_than_dimensions_have_the_principal_directions_of_their_covariance(n: int) -> None:
    x, weight = rows(n, 40), np.random.default_rng(n).random(n) + 0.1
    mean = np.average(x, axis=0, weights=weight)
    centred = (x - mean) * np.sqrt(weight / weight.sum())[:, None]
    found = principal_of_rows(torch.from_numpy(mean), torch.from_numpy(centred), n)
    exact = principal(torch.from_numpy(mean), torch.from_numpy(centred.T @ centred), n)
    torch.testing.assert_close(
        found.matrix[:, :-1], exact.matrix[:, :-1], rtol=0, atol=1e-6
    )  # the last has no variance
    more = principal_of_rows(torch.from_numpy(mean), torch.from_numpy(centred), n + 2)
    assert more.dim == n + 2
    assert not more.matrix[:, n:].any()


@given(st.integers(0, 1000))
def test_whitened_rows_have_unit_covariance(seed: int) -> None:
    x = rows(seed=seed)
    mean, covariance = moments(x)
    values = torch.linalg.eigvalsh(covariance)
    if values[0] > EIGENVALUE_FLOOR * values[-1]:
        white = whitening(mean, covariance)(torch.from_numpy(x)).double().numpy()
        np.testing.assert_allclose(white.mean(0), np.zeros(6), atol=1e-5)
        np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=1e-4)


def test_the_signs_of_directions_do_not_depend_on_the_solver() -> None:
    vectors = torch.tensor([[-3.0, 0.1, -0.5], [1.0, -0.2, 0.5], [2.0, 0.3, -0.1]])
    expected = torch.tensor([[3.0, 0.1, 0.5], [-1.0, -0.2, -0.5], [-2.0, 0.3, 0.1]])
    assert torch.equal(signed(vectors), expected)
    assert torch.equal(signed(-vectors), expected)
    mean, covariance = moments(rows())
    for map_ in (principal(mean, covariance, 6), discriminants(mean, covariance, torch.diag(mean**2), 6)):
        assert torch.equal(signed(map_.matrix), map_.matrix)


def test_of_all_whitenings_it_is_the_symmetric_one() -> None:
    matrix = whitening(*moments(rows())).matrix
    assert torch.equal(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > 0


def test_directions_of_hardly_any_variance_are_not_amplified_beyond_the_floor() -> None:
    variances = torch.tensor([4.0, 1.0, 4.0 * EIGENVALUE_FLOOR / 100, 0.0], dtype=torch.float64)
    expected = torch.tensor([0.5, 1.0, *2 * [0.5 * EIGENVALUE_FLOOR**-0.5]], dtype=torch.float64)
    torch.testing.assert_close(inverse_root(torch.diag(variances)), torch.diag(expected))


def test_rows_that_are_all_equal_are_whitened_to_zero() -> None:
    white = whitening(torch.ones(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(white(torch.ones(2, 3)), torch.zeros(2, 3))


def test_discriminants_solve_the_generalised_eigenproblem_of_the_scatters() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=600)
    x = rows(600) + 5 * rng.standard_normal((4, 6))[labels]
    mean, total = moments(x)
    means, share = np.stack([x[labels == k].mean(0) for k in range(4)]) - x.mean(0), np.bincount(labels) / 600
    between = torch.from_numpy((means.T * share) @ means)
    found = discriminants(mean, total - between, between, 3)
    within = shrunk(total - between)
    sphere = torch.eye(6, dtype=torch.float64) * within.trace() / 6
    torch.testing.assert_close(within, (1 - SHRINKAGE) * (total - between) + SHRINKAGE * sphere)
    theirs = scipy.linalg.eigh(between, within)[1][:, ::-1][:, :3]  # within' of unit length, as ours are
    np.testing.assert_allclose(found.matrix.abs().numpy(), np.abs(theirs), atol=1e-10)
    spread = found.matrix.T @ within @ found.matrix
    torch.testing.assert_close(spread, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("repeated", [False, True])
def test_landmarks_have_among_them_the_kernel_that_is_approximated(repeated: bool) -> None:
    landmarks = torch.from_numpy(np.random.default_rng(0).standard_normal((30, 4)))
    if repeated:  # the kernel matrix is then singular
        landmarks[1] = landmarks[0]
    features = nystrom(landmarks, 1.0)(landmarks).double()
    np.testing.assert_allclose(features @ features.T, rbf_kernel(landmarks, gamma=0.5), atol=1e-4)
