"""Hard assignment: the prototype of the highest score, exactly, at low-precision speed.

A screen (`raydkm.ops.screen`) bounds all scores of a row. The prototype of the highest bound is scored in float32, then
those whose bounds reach what has been found, and those that float32 does not tell apart in float64. So labels do not
depend on the screen, on the processor or on how a product is computed: a row's label is the first of the prototypes
whose score in float64 is the highest, to within `TIE` of the scale of that score.

Where leading directions of the rows are given, the screen is of as few of them as pays (`raydkm.ops.leading`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydkm.ops.kernels import decide
from raydkm.ops.leading import Leading, widths
from raydkm.ops.rates import fastest_screen, matrix_rates
from raydkm.ops.scores import Scores
from raydkm.ops.screen import SCREENS, FullScreen, Int8Screen, LeadingScreen, Screen, Screened, longest, rounding

#: Scores nearer to each other than this, relative to the scale of the highest, tie.
TIE = 2.0**-44

#: Scores that are computed again at a time, in tensor operations.
AT_ONCE = 2**20

#: Rows of the first tile that a screen is chosen by.
TRIED_ROWS = 128

#: What a screen's precision adds to bounds, as a part of ||z|| max ||theta||, and how many scores of a row are computed
#: again without leading directions: typical values, for the choice alone.
TYPICAL_ERROR = 0.02
TYPICAL_CANDIDATES = 1.5

#: Nanoseconds of a score that is computed again: for each dimension, and besides.
AGAIN_EACH, AGAIN = 0.12, 40.0


class HardAssignment:
    """argmax_k score_ik.

    Parameters
    ----------
    scores : Scores
        In float32, or float64 for reference computations.
    precision : {"auto", "fp32", "bf16", "int8"}
        Of the screen; changes no label. With "auto" it is the fastest on this processor.
    directions : Tensor (d, d) of float64, optional
        Those in which rows vary most first, see `raydkm.ops.leading.directions`; they change no label.
    """

    def __init__(self, scores: Scores, precision: str = "auto", directions: Tensor | None = None):
        self._scores = scores
        if precision == "auto":
            precision = fastest_screen(scores.bias.device)
        self._native = scores.prototypes.dtype == torch.float32 and scores.bias.device.type == "cpu"
        if not self._native or (precision == "int8" and not Int8Screen.fits(scores)):
            precision = "fp32"  # on a GPU lower precision is left to the fused kernels
        self._precision = precision
        self._directions = directions if self._native else None
        self._rounding = rounding(scores)
        self._screen: Screen | None = None  # chosen by the first tile

    def __call__(self, z: Tensor) -> Tensor:
        """Labels (n,) int64 of z (n, d)."""
        labels = torch.empty(len(z), dtype=torch.int64, device=z.device)
        screen = self._screen = self._screen or self._chosen(z)
        if self._native:
            self._decide_natively(screen, z.contiguous(), labels)
        else:
            self._decide(z, screen(z), labels)
        return labels

    def _chosen(self, z: Tensor) -> Screen:
        kind, leading = SCREENS[self._precision], None
        if self._directions is not None and len(z) >= TRIED_ROWS:
            leading = self._narrowest(z[:: len(z) // TRIED_ROWS][:TRIED_ROWS], self._directions)
        return kind(self._scores) if leading is None else LeadingScreen(self._scores, leading, kind)

    def _narrowest(self, z: Tensor, directions: Tensor) -> Leading | None:
        """As few directions as take the least time, by how many candidates they leave of z; None of all of them."""
        clusters, dim = self._scores.prototypes.shape
        rates = matrix_rates()
        error = (torch.linalg.vector_norm(z, dim=1) * (TYPICAL_ERROR * longest(self._scores)))[:, None]

        def again(candidates: float) -> float:
            return candidates * (AGAIN_EACH * dim + AGAIN)

        chosen, least = None, 2 * clusters * dim / rates[self._precision] + again(TYPICAL_CANDIDATES)
        for width in widths(dim):
            products = 2 * width * (clusters / rates[self._precision] + dim / rates["fp32"])
            if products >= least:
                break
            leading = Leading(directions[:, :width])
            theta = leading(self._scores.prototypes).clone()
            bounds = Scores(theta, self._scores.bias, 0.0)(leading(z)).add_(error)
            first = bounds.argmax(1)
            score = (z * self._scores.prototypes[first]).sum(1).add_(self._scores.bias[first])
            time = products + again(float((bounds >= score[:, None]).sum()) / len(z))
            if time < least:
                chosen, least = leading, time
        return chosen

    def _decide_natively(self, screen: Screen, z: Tensor, labels: Tensor) -> None:
        scores, found = self._scores, screen(z)
        computed = decide(
            found.approximate.numpy(),
            found.bias.numpy(),
            lowest(found.approximate.dtype),
            found.unit,
            found.error,
            found.left.numpy(),
            z.numpy(),
            found.norm.numpy(),
            scores.prototypes.numpy(),
            scores.lengths.numpy(),
            scores.bias.numpy(),
            self._rounding,
            TIE,
            labels.numpy(),
        )
        if computed > len(z) * (4 + len(scores) / 32) and not isinstance(screen, FullScreen):
            # a finer screen costs less than so many candidates
            finer = SCREENS[self._precision] if isinstance(screen, LeadingScreen) else FullScreen
            self._screen = finer(scores)

    def _decide(self, z: Tensor, found: Screened, labels: Tensor) -> None:
        """The same by tensor operations: float64 scores of the rows whose best two lie within the error."""
        scores = self._scores
        approximate = found.approximate.add_(found.bias)
        best, labels[:] = approximate.max(1)
        second = approximate.scatter_(1, labels[:, None], -torch.inf).amax(1)
        margin = found.norm.mul(2 * found.error[1]).add_(2 * found.error[2])
        unsure = (best - second <= margin).nonzero()[:, 0]
        theta, bias = scores.prototypes.double(), scores.bias.double()
        for rows in unsure.split(max(1, AT_ONCE // len(bias))):
            value = torch.addmm(bias, z[rows].double(), theta.T)
            highest, which = value.max(1)
            scale = found.norm[rows].double().mul_(scores.lengths[which]).add_(bias[which].abs())
            labels[rows] = (value >= highest.sub_(scale, alpha=TIE)[:, None]).to(torch.uint8).argmax(1)


def lowest(dtype: torch.dtype) -> float:
    """The least number of a dtype."""
    return float((torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).min)
