"""Hard assignment: the prototype of the highest score, exactly, at low-precision speed.

A screen (`raydkm.ops.screen`) gives approximate scores and their largest error. Prototypes that may be the best by them
are the candidates of a row; where there are several, their scores are computed again in float32, and those that this
does not tell apart in float64. So labels do not depend on the precision of the screen, on the processor or on how a
product is computed: a row's label is the first of the prototypes whose score in float64 is the highest, to within `TIE`
of the scale of that score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydkm.ops.kernels import decide
from raydkm.ops.rates import fastest_screen
from raydkm.ops.scores import Scores
from raydkm.ops.screen import SCREENS, FullScreen, Int8Screen, Screen, Screened, rounding

#: Scores nearer to each other than this, relative to the scale of the highest, tie.
TIE = 2.0**-44

#: Scores that are computed again at a time.
AT_ONCE = 2**20


class HardAssignment:
    """argmax_k score_ik.

    Parameters
    ----------
    scores : Scores
        In float32, or float64 for reference computations.
    precision : {"auto", "fp32", "bf16", "int8"}
        Of the screen; changes no label. With "auto" it is the fastest on this processor.
    """

    def __init__(self, scores: Scores, precision: str = "auto"):
        self._scores = scores
        if precision == "auto":
            precision = fastest_screen(scores.bias.device)
        self._native = scores.prototypes.dtype == torch.float32 and scores.bias.device.type == "cpu"
        if not self._native or (precision == "int8" and not Int8Screen.fits(scores)):
            precision = "fp32"  # on a GPU lower precision is left to the fused kernels
        self._screen: Screen = SCREENS[precision](scores)

    def __call__(self, z: Tensor) -> Tensor:
        """Labels (n,) int64 of z (n, d)."""
        labels = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        if self._native:
            self._decide_natively(z.contiguous(), labels)
        else:
            self._decide(z, self._screen(z), labels)
        return labels

    def _decide_natively(self, z: Tensor, labels: Tensor) -> None:
        screen, scores = self._screen, self._scores
        found = screen(z)
        candidates = decide(
            *(x.numpy() for x in (found.approximate, found.bias, found.margin)),
            z.numpy(),
            found.norm.numpy(),
            scores.prototypes.numpy(),
            screen.size.numpy(),
            scores.bias.numpy(),
            rounding(screen),
            TIE,
            labels.numpy(),
        )
        if candidates > len(z) * (4 + len(scores) / 32) and not isinstance(screen, FullScreen):
            self._screen = FullScreen(scores)  # a finer screen costs less than so many candidates

    def _decide(self, z: Tensor, found: Screened, labels: Tensor) -> None:
        """The same by tensor operations: float64 scores of the rows whose best two lie within the margin."""
        scores, screen = self._scores, self._screen
        approximate = found.approximate.add_(found.bias)
        best, labels[:] = approximate.max(1)
        second = approximate.scatter_(1, labels[:, None], -torch.inf).amax(1)
        unsure = (best - second <= found.margin).nonzero()[:, 0]
        theta, bias = scores.prototypes.double(), scores.bias.double()
        for rows in unsure.split(max(1, AT_ONCE // len(bias))):
            value = torch.addmm(bias, z[rows].double(), theta.T)
            highest, which = value.max(1)
            scale = found.norm[rows].double().mul_(screen.size[which]).add_(bias[which].abs())
            labels[rows] = (value >= highest.sub_(scale, alpha=TIE)[:, None]).to(torch.uint8).argmax(1)
