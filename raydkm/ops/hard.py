"""Hard assignment: the prototype of the highest score, exactly, at low-precision speed.

A screen (`raydkm.ops.screen`) bounds all scores of a row. The prototype of the highest bound is scored in float32, then
those whose bounds reach what has been found, and those that float32 does not tell apart in float64. So labels do not
depend on the screen, on the processor or on how a product is computed: a row's label is the first of the prototypes
whose score in float64 is the highest, to within `TIE` of the scale of that score.

Where leading directions of the rows are given, the screen is of as few of them as pays (`raydkm.ops.leading`). Rows
whose label of the last pass is known, and whose prototype has not moved since, are compared with those alone that have
(`raydkm.ops.last`).
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raydkm.ops import amx
from raydkm.ops.amx_hard import decide_by_tiles, label_by_tiles
from raydkm.ops.batch import HARD_TILE
from raydkm.ops.frame import Shifted
from raydkm.ops.kernels import decide
from raydkm.ops.last import LastPass, Tile
from raydkm.ops.leading import Directions, Leading, widths
from raydkm.ops.rates import fastest_screen, screen_rate
from raydkm.ops.scores import Scores
from raydkm.ops.screen import (
    SCREENS,
    Columns,
    FullScreen,
    Int8Screen,
    LeadingScreen,
    Rows,
    Screen,
    longest,
    rounding,
)

#: Scores nearer to each other than this, relative to the scale of the highest, tie.
TIE = 2.0**-44

#: Scores that are computed again at a time, in tensor operations.
AT_ONCE = 2**20

#: Numbers of the rows of a tile whose scores are not written.
ROWS_OF_TILE = 2**20

#: The part of the prototypes that may have moved, for it to pay to look apart at the rows of the others.
MOST_MOVED = 0.7

#: What precision adds to bounds by leading directions, as a part of ||z|| max ||theta||: a typical value, for the
#: choice alone.
TYPICAL_ERROR = 0.02

#: Directions and what is left of rows beside them are as many as a multiple of this, and on a matrix unit a line.
WIDTHS = 16

#: Nanoseconds for each dimension that leading directions cost where all could be looked at in one loop over the rows.
BESIDES = 0.5

#: Nanoseconds of a score that is computed again: for each dimension, and besides.
AGAIN_EACH, AGAIN = 0.18, 50.0


class _Chosen(NamedTuple):
    """A screen with its columns: of all prototypes, and of those that have moved."""

    screen: Screen
    all: Columns
    moved: Columns | None


class HardAssignment:
    """argmax_k score_ik.

    Parameters
    ----------
    scores : Scores
        In float32, or float64 for reference computations.
    precision : {"auto", "fp32", "bf16", "int8"}
        Of the screen; changes no label. With "auto" it is the fastest on this processor.
    directions : Directions, optional
        Those in which rows vary most; they change no label.
    last : LastPass, optional
        Over the same rows; it changes no label.
    """

    def __init__(
        self,
        scores: Scores,
        precision: str = "auto",
        directions: Directions | None = None,
        last: LastPass | None = None,
    ):
        self._scores = scores
        if precision == "auto":
            precision = fastest_screen(scores.bias.device)
        self._native = scores.prototypes.dtype == torch.float32 and scores.bias.device.type == "cpu"
        if not self._native or (precision == "int8" and not Int8Screen.fits(scores)):
            precision = "fp32"  # on a GPU lower precision is left to the fused kernels
        self._precision = precision
        self._directions = directions if self._native else None
        self._rounding = rounding(scores)
        self._last, self._moved, self._has_moved = last, None, None
        moved = None if last is None else last.moved(scores)
        if moved is not None and self._native and len(moved) < MOST_MOVED * len(scores):
            self._moved, self._has_moved = moved, torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, moved, True)
        self._in_one_loop = self._native and precision == "int8" and amx.available()
        self._chosen: _Chosen | None = None  # by the first tile
        self._lock = threading.Lock()

    @property
    def tile(self) -> int:
        """Numbers of a tile of rows and scores, by which it is as large as pays."""
        clusters, dim = self._scores.prototypes.shape
        return max(clusters, dim) * (ROWS_OF_TILE // dim) if self._in_one_loop else HARD_TILE

    def __call__(self, rows: Tensor | Shifted, tile: Tile | None = None) -> Tensor:
        """Labels (n,) int64 of rows z (n, d), of which something may be known from the last pass."""
        rows = Shifted(rows.contiguous()) if isinstance(rows, Tensor) else rows
        with self._lock:
            chosen = self._chosen = self._chosen or self._first_choice(rows.z)
        if not self._native:
            return self._decide(chosen, rows.z)
        labels = torch.full((len(rows.x),), -1, dtype=torch.int64)
        if isinstance(chosen.screen, Int8Screen) and chosen.screen.tiled and (tile is None or chosen.moved is None):
            computed = self._label(chosen.screen, chosen.all, rows, labels)
        else:
            computed = self._label_known(chosen, rows.z, tile, labels)
        if computed > len(labels) * (4 + len(self._scores) / 32) and not isinstance(chosen.screen, FullScreen):
            # a finer screen costs less than so many candidates
            finer = SCREENS[self._precision] if isinstance(chosen.screen, LeadingScreen) else FullScreen
            self._chosen = self._with_columns(finer(self._scores, rows.z))
        return labels

    def _first_choice(self, z: Tensor) -> _Chosen:
        kind = SCREENS[self._precision]
        leading = None if self._directions is None else self._directions.chosen(self._narrowest)
        if self._directions is not None and leading is not None:
            return self._with_columns(LeadingScreen(self._scores, self._directions.rows, leading, kind))
        return self._with_columns(kind(self._scores, z))

    def _with_columns(self, screen: Screen) -> _Chosen:
        everyone = torch.arange(len(self._scores), device=self._scores.bias.device)
        return _Chosen(screen, screen.columns(everyone), None if self._moved is None else screen.columns(self._moved))

    def _narrowest(self, directions: Directions) -> Leading | None:
        """As few directions as take the least time, by how many candidates they leave; None of all of them."""
        z = directions.rows
        clusters, dim = self._scores.prototypes.shape
        error = (torch.linalg.vector_norm(z, dim=1) * (TYPICAL_ERROR * longest(self._scores)))[:, None]

        def again(candidates: float) -> float:
            return candidates * (AGAIN_EACH * dim + AGAIN)

        each, of_rows = screen_rate(self._precision).each, 2 * dim / screen_rate("fp32").each
        besides = BESIDES * dim if self._in_one_loop else 0.0
        screen = SCREENS[self._precision](self._scores, z)
        seen, (of_left, of_norm, absolute) = screen.rows(z), screen.error
        margin = seen.left.mul(of_left).add_(seen.norm, alpha=of_norm).add_(absolute)
        exact = self._scores(z)
        many = (exact >= (exact.amax(1) - margin)[:, None]).sum()
        del exact
        chosen, least = None, 2 * clusters * dim / each + again(float(many) / len(z))
        for width in widths(dim, amx.BYTES if self._in_one_loop else WIDTHS):
            leading = directions.first(width)
            kept = self._last is not None  # of the rows, for as long as these directions are the ones
            times = (leading is not directions.current) / directions.steps if kept else 1.0
            products = 2 * width * clusters / each + width * of_rows * times + besides
            if products >= least:
                break
            theta = leading(self._scores.prototypes)
            bounds = Scores(theta, self._scores.bias, 0.0)(leading(z)).add_(error)
            first = bounds.argmax(1)
            score = (z * self._scores.prototypes[first]).sum(1).add_(self._scores.bias[first])
            time = products + again(float((bounds >= score[:, None]).sum()) / len(z))
            if time < least:
                chosen, least = leading, time
        return chosen

    def _label(self, screen: Int8Screen, columns: Columns, rows: Shifted, labels: Tensor) -> int:
        """Write labels (n,) in one loop over the rows; return how many scores were computed again."""
        x, shift = rows.less()
        return int(
            label_by_tiles(
                x.numpy(),
                shift.numpy(),
                np.float32(screen.step),
                columns.factor.numpy(),
                *self._of_columns(screen, columns),
                *self._of_scores,
                labels.numpy(),
            )
        )

    def _label_known(self, chosen: _Chosen, z: Tensor, tile: Tile | None, labels: Tensor) -> int:
        """The same, by what is known of the rows."""
        screen, computed, seen = chosen.screen, 0, self._seen(chosen.screen, z, tile)
        if tile is not None and chosen.moved is not None and self._has_moved is not None:
            known = tile.labels.long()
            stay = (known >= 0).logical_and_(self._has_moved[known].logical_not_()).nonzero()[:, 0]
            labels[stay] = known[stay]
            if len(chosen.moved.which):
                computed += self._settle(screen, seen, stay, chosen.moved, z, labels)
        return computed + self._settle(screen, seen, (labels < 0).nonzero()[:, 0], chosen.all, z, labels)

    def _seen(self, screen: Screen, z: Tensor, tile: Tile | None) -> Rows:
        """What is multiplied of z."""
        if tile is None or self._last is None or screen.leading is None:
            return screen.rows(z)
        if tile.rows is None or tile.leading is not screen.leading:
            rows = screen.rows(z)
            self._last.keep(tile, rows, screen.leading)
            return rows
        return tile.rows

    def _settle(self, screen: Screen, seen: Rows, rows: Tensor, columns: Columns, z: Tensor, labels: Tensor) -> int:
        """Write the labels of some rows (m,); return how many scores were computed again."""
        if not len(rows):
            return 0
        if not screen.tiled and len(rows) > (most := max(128, HARD_TILE // len(columns.bias))):  # of written scores
            return sum(self._settle(screen, seen, some, columns, z, labels) for some in rows.split(most))
        some = seen if len(rows) == len(z) else seen.some(rows)
        of_rows = (some.left.numpy(), some.norm.numpy(), rows.numpy(), z.numpy())
        rest = (*self._of_columns(screen, columns), *of_rows, *self._of_scores)
        if screen.tiled:
            return int(decide_by_tiles(some.factor.numpy(), columns.factor.numpy(), *rest, labels.numpy()))
        return int(decide(screen(some, columns).approximate.numpy(), *rest, (0, 0), labels.numpy()))

    def _of_columns(self, screen: Screen, columns: Columns) -> tuple[Any, ...]:
        """What `decide` asks of them."""
        bias = columns.bias
        return bias.numpy(), columns.which.numpy(), lowest(bias.dtype), screen.unit, screen.error

    @cached_property
    def _of_scores(self) -> tuple[Any, ...]:
        """What it asks of them."""
        scores = self._scores
        arrays = (x.numpy() for x in (scores.prototypes, scores.lengths, scores.bias))
        return *arrays, self._rounding, TIE

    def _decide(self, chosen: _Chosen, z: Tensor) -> Tensor:
        """The same by tensor operations: float64 scores of the rows whose best two lie within the error."""
        scores = self._scores
        found = chosen.screen(chosen.screen.rows(z), chosen.all)
        approximate = found.approximate.add_(found.bias)
        best, labels = approximate.max(1)
        second = approximate.scatter_(1, labels[:, None], -torch.inf).amax(1)
        margin = found.norm.mul(2 * found.error[1]).add_(2 * found.error[2])
        unsure = (best - second <= margin).nonzero()[:, 0]
        theta, bias = scores.prototypes.double(), scores.bias.double()
        for rows in unsure.split(max(1, AT_ONCE // len(bias))):
            value = torch.addmm(bias, z[rows].double(), theta.T)
            highest, which = value.max(1)
            scale = found.norm[rows].double().mul_(scores.lengths[which]).add_(bias[which].abs())
            labels[rows] = (value >= highest.sub_(scale, alpha=TIE)[:, None]).to(torch.uint8).argmax(1)
        return labels


def lowest(dtype: torch.dtype) -> float:
    """The least number of a dtype."""
    return float((torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).min)
