"""Maps that follow from moments and landmarks by an eigendecomposition. All tensors are of float64, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from raydkm.features.maps import KernelToLandmarks, Projected, gaussian

#: Eigenvalues below this part of the largest are raised to it: what varies so little may be rounding, and is not
#: amplified by more than a thousand times what varies most is.
EIGENVALUE_FLOOR = 1e-6

#: How far the scatter within clusters is drawn towards a sphere of the same trace.
SHRINKAGE = 0.1


def principal(mean: Tensor, covariance: Tensor, dim: int) -> Projected:
    """The `dim` directions of the largest variance, that one first (Pearson 1901)."""
    return Projected(mean, signed(leading(covariance, dim)))


def principal_of_rows(mean: Tensor, centred: Tensor, dim: int) -> Projected:
    """The same of fewer rows than dimensions, without their covariance; zeros in place of directions there are not.

    Parameters
    ----------
    centred : Tensor (n, d)
        Rows less their mean, times the square roots of their weights.
    """
    vectors = torch.linalg.svd(centred, full_matrices=False).Vh[:dim].T
    return Projected(mean, signed(torch.nn.functional.pad(vectors, (0, dim - vectors.shape[1]))))


def whitening(mean: Tensor, covariance: Tensor) -> Projected:
    """(x − mean) · covariance^(−1/2), with a floor of small eigenvalues.

    Of all matrices that whiten, the symmetric one leaves rows nearest to where they were ("ZCA"; Kessy, Lewin and
    Strimmer 2018), and it alone is a continuous function of the covariance: eigenvectors of equal eigenvalues are not.
    Distances are those of any other.
    """
    return Projected(mean, inverse_root(covariance))


def discriminants(mean: Tensor, within: Tensor, between: Tensor, dim: int) -> Projected:
    """The `dim` directions in which clusters lie farthest apart, in units of their spread (Fisher 1936; Rao 1948).

    The scatter within clusters is shrunk (see `shrunk`), and has unit variances in the features.

    Parameters
    ----------
    within, between : Tensor (d, d)
        Scatter matrices, divided by the weight of all rows.
    """
    root = inverse_root(shrunk(within))
    return Projected(mean, signed(root @ leading(root @ between @ root, dim)))


def nystrom(landmarks: Tensor, width: float) -> KernelToLandmarks:
    """The features of the Gaussian kernel of this width that landmarks (D, d) span."""
    root = inverse_root(gaussian(landmarks, landmarks, width))
    return KernelToLandmarks(landmarks, root, torch.tensor(width, dtype=torch.float64))


def shrunk(scatter: Tensor) -> Tensor:
    """A scatter matrix (d, d) drawn towards the multiple of the identity that has its trace (Friedman 1989)."""
    sphere = torch.eye(len(scatter), dtype=scatter.dtype) * (scatter.trace() / len(scatter))
    return (1 - SHRINKAGE) * scatter + SHRINKAGE * sphere


def inverse_root(matrix: Tensor) -> Tensor:
    """matrix^(−1/2) of a symmetric positive semi-definite one, small eigenvalues raised; the identity of zero."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if values[-1] <= 0:
        return torch.eye(len(matrix), dtype=matrix.dtype)
    root = vectors * values.clamp(min=EIGENVALUE_FLOOR * float(values[-1])).pow(-0.25)
    return root @ root.T  # symmetric to the last bit


def leading(matrix: Tensor, dim: int) -> Tensor:
    """Eigenvectors (d, dim) of the largest eigenvalues of a symmetric matrix, the largest first."""
    return torch.linalg.eigh((matrix + matrix.T) / 2).eigenvectors.flip(1)[:, :dim]


def signed(vectors: Tensor) -> Tensor:
    """Columns turned so that the largest entry of each is positive, for their sign is an accident of the solver."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * torch.where(largest < 0, -1.0, 1.0)).contiguous()
