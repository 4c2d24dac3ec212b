"""Hard assignment: the prototype of the highest score, exactly, at low-precision speed where there is some."""

from __future__ import annotations

import torch
from torch import Tensor

from raydkm.ops.scores import Scores

#: With fewer prototypes than this, a float32 product costs less than screening.
MIN_SCREENED = 64


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def screens(precision: str, device: torch.device) -> bool:
    """Whether hard assignments are screened in bf16, by the precision asked for ("auto", "fp32" or "bf16")."""
    return precision == "bf16" or (precision == "auto" and has_bf16_units(device))


class HardAssignment:
    """argmax_k score_ik.

    Parameters
    ----------
    scores : Scores
        In float32, or float64 for reference computations.
    screen : bool
        Screen in bf16 and recompute in full precision the rows whose two best scores lie within the rounding
        bound. Labels are those of the full-precision product.
    """

    def __init__(self, scores: Scores, *, screen: bool):
        self._scores = scores
        self._screened = screen and scores.prototypes.dtype == torch.float32 and len(scores) >= MIN_SCREENED
        if self._screened:
            theta = scores.prototypes
            self._low = theta.to(torch.bfloat16)
            self._low_t = self._low.T.contiguous()
            self._norm = _largest_norm(theta)
            self._rounding = _largest_norm(theta - self._low.float())
            self._bias_scale = float(scores.bias.abs().max())

    def __call__(self, z: Tensor) -> Tensor:
        """Labels (n,) int64 of z (n, d)."""
        if not self._screened:
            return self._scores(z).max(1).indices
        low = z.to(torch.bfloat16)
        approximate = torch.mm(low, self._low_t).float().add_(self._scores.bias)
        best, labels = approximate.max(1)
        second = approximate.scatter_(1, labels[:, None], -torch.inf).amax(1)
        # "not above", so that a row whose scores are not finite is recomputed too
        unsure = (~(best - second > 2 * self._error(z, low))).nonzero()[:, 0]
        if len(unsure):
            labels[unsure] = self._scores(z[unsure]).max(1).indices
        return labels

    def _error(self, z: Tensor, low: Tensor) -> Tensor:
        """Bound (n,) of |approximate - exact score| over all prototypes, by Cauchy-Schwarz.

        With z' and theta' rounded to bf16,
        |z.theta - z'.theta'| <= ||z - z'|| max||theta|| + ||z'|| max||theta - theta'||.
        The product is accumulated in float32 (d additions) and rounded to bf16 (2^-8 relative), the bias is added
        in float32; both constants are doubled for rounding in this bound itself.
        """
        rounded = low.float()
        norm = torch.linalg.vector_norm(rounded, dim=1)
        residual = torch.linalg.vector_norm(z - rounded, dim=1)
        product = 2.0**-8 * 1.01 + 2.0**-22 * z.shape[1]
        return (
            residual.mul_(self._norm * 1.001)
            .add_(norm.mul_(self._rounding * 1.001 + product * (self._norm + self._rounding)))
            .add_(2.0**-22 * self._bias_scale + 1e-37)
        )


def _largest_norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).max())
