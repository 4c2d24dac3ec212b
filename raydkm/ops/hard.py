"""Hard assignment: the prototype of the least cost, exactly, at low-precision speed.

A screen (`raydkm.ops.screen`) bounds all scores of a row. One prototype is scored in float32, that of the row's label
in the last pass or else that of the highest bound; then those whose bounds reach what has been found. Those that
float32 does not tell apart are decided by their costs in float64 (`raydkm.ops.candidates`, `raydkm.ops.cost`). So
labels do not depend on the screen, on the processor or on how a product is computed.

Where leading directions of the rows are given, the screen is of as few of them as pays (`raydkm.ops.leading`). Rows
whose label of the last pass is known, and whose prototype has not moved since, are compared with those alone that have
(`raydkm.ops.last`).
"""

from __future__ import annotations

import threading
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raydkm.ops import amx
from raydkm.ops.amx_hard import label_by_tiles
from raydkm.ops.batch import HARD_TILE
from raydkm.ops.candidates import decide
from raydkm.ops.frame import RowTile
from raydkm.ops.last import LastPass, Tile
from raydkm.ops.leading import Directions, Leading, widths
from raydkm.ops.rates import fastest_screen, screen_rate
from raydkm.ops.scores import Scores
from raydkm.ops.screen import (
    LIKE,
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

#: Numbers of the rows of a tile whose scores are not written; loops over many rows have less to do between them.
ROWS_OF_TILE = 2**22

#: Rows at a time that leading directions are found of.
LED = 1024

#: The part of the prototypes that may have moved, for it to pay to look apart at the rows of the others.
MOST_MOVED = 0.7

#: What precision adds to bounds by leading directions, as a part of ||z|| max ||theta||: a typical value, for the
#: choice alone.
TYPICAL_ERROR = 0.02

#: Directions and what is left of rows beside them are as many as a multiple of this, and on a matrix unit a line.
WIDTHS = 16

#: Nanoseconds for each dimension that leading directions cost where all could be looked at in one loop over the rows.
BESIDES = 0.5

#: What is multiplied of rows, where the loop over them sees to it.
NOTHING = Rows(torch.empty(0, 0, dtype=torch.int8), torch.empty(0), torch.empty(0))

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

    def __call__(self, rows: Tensor | RowTile, tile: Tile | None = None) -> Tensor:
        """Labels (n,) int64 of rows, as of `Scores.tile`, of which something may be known from the last pass."""
        rows = self._scores.tile(rows)
        with self._lock:
            chosen = self._chosen = self._chosen or self._first_choice(rows)
        if not self._native:
            return self._decide(chosen, rows)
        labels = torch.full((len(rows),), -1) if tile is None else tile.labels.long()
        seen, computed = self._seen(chosen.screen, rows, tile), 0
        if tile is not None and chosen.moved is not None and self._has_moved is not None:
            stay = (labels >= 0).logical_and_(self._has_moved[labels].logical_not_())
            if len(chosen.moved.which):
                computed += self._settle(chosen.screen, seen, stay.nonzero()[:, 0], chosen.moved, rows, labels)
            rest = stay.logical_not_().nonzero()[:, 0]
        else:
            rest = torch.arange(len(labels))
        computed += self._settle(chosen.screen, seen, rest, chosen.all, rows, labels)
        if computed > len(labels) * (4 + len(self._scores) / 32) and not isinstance(chosen.screen, FullScreen):
            # a finer screen costs less than so many candidates
            finer = SCREENS[self._precision] if isinstance(chosen.screen, LeadingScreen) else FullScreen
            with self._lock:
                if self._chosen is chosen:  # of all threads that see it, the first
                    self._chosen = self._with_columns(finer(self._scores, next(rows.split(LIKE)).z))
        return labels

    def _first_choice(self, rows: RowTile) -> _Chosen:
        kind = SCREENS[self._precision]
        if self._directions is None:
            return self._with_columns(kind(self._scores, next(rows.split(LIKE)).z))
        like = self._directions.rows
        whole = cache(lambda: kind(self._scores, like))  # most steps ask for it only if they take it
        leading = self._directions.chosen(lambda directions: self._narrowest(directions, whole()))
        if leading is None:
            return self._with_columns(whole())
        return self._with_columns(LeadingScreen(self._scores, like, leading, kind))

    def _with_columns(self, screen: Screen) -> _Chosen:
        everyone = torch.arange(len(self._scores), device=self._scores.bias.device)
        return _Chosen(screen, screen.columns(everyone), None if self._moved is None else screen.columns(self._moved))

    def _narrowest(self, directions: Directions, whole: Screen) -> Leading | None:
        """As few directions as take the least time, by how many candidates they leave; None of all of them."""
        z = directions.rows
        clusters, dim = self._scores.prototypes.shape
        error = (torch.linalg.vector_norm(z, dim=1) * (TYPICAL_ERROR * longest(self._scores)))[:, None]

        def again(candidates: float) -> float:
            return candidates * (AGAIN_EACH * dim + AGAIN)

        each, of_rows = screen_rate(self._precision).each, 2 * dim / screen_rate("fp32").each
        besides = BESIDES * dim if self._in_one_loop else 0.0
        many = (bounds_of(whole, z) >= self._scores(z).amax(1, keepdim=True)).sum()
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

    def _seen(self, screen: Screen, rows: RowTile, tile: Tile | None) -> Rows:
        """What is multiplied of rows; none of them where the loop over them sees to it."""
        if screen.leading is None:
            return NOTHING if screen.tiled else screen.rows(rows.z)
        if tile is not None and tile.rows is not None and tile.leading is screen.leading:
            return tile.rows
        seen = Rows.joined(screen.rows(some.z) for some in rows.split(LED))
        if tile is not None and self._last is not None:
            self._last.keep(tile, seen, screen.leading)
        return seen

    def _settle(
        self, screen: Screen, seen: Rows, index: Tensor, columns: Columns, rows: RowTile, labels: Tensor
    ) -> int:
        """Write the labels of some rows (m,); return how many scores were computed again."""
        if not len(index):
            return 0
        bias = columns.bias
        of_columns = (bias.numpy(), columns.which.numpy(), lowest(bias.dtype), screen.unit, screen.error)
        of_scores, costs, x = self._of_scores, self._scores.costs.arrays, rows.x.numpy()
        if screen.tiled:
            minuend, shift = (part.numpy() for part in rows.difference())
            steps, of_rows = (np.float32(screen.step), screen.usual), tuple(part.numpy() for part in seen)
            rest = (columns.factor.numpy(), of_columns, of_scores, costs, labels.numpy())
            return int(label_by_tiles(minuend, shift, x, index.numpy(), steps, of_rows, *rest))
        computed = 0
        for some in index.split(max(128, HARD_TILE // len(bias))):  # of written scores
            part, z = (seen, rows.z) if len(some) == len(rows) else (seen.some(some), rows.z[some])
            of_rows, own = (part.left.numpy(), part.norm.numpy(), z.numpy()), labels[some]
            found = screen(part, columns).approximate.numpy()
            computed += int(decide(found, of_columns, of_scores, costs, *of_rows, x, some.numpy(), own.numpy()))
            labels[some] = own
        return computed

    @cached_property
    def _of_scores(self) -> tuple[Any, ...]:
        """What `decide` asks of scores."""
        return self._scores.prototypes.numpy(), self._scores.bias.numpy(), self._rounding

    @cached_property
    def _full(self) -> tuple[FullScreen, Columns]:
        """A screen of all prototypes in the precision of the scores."""
        screen = FullScreen(self._scores, self._scores.prototypes)
        return screen, screen.columns(torch.arange(len(self._scores)))

    def scored(self, rows: RowTile) -> tuple[Tensor, Tensor]:
        """Labels (n,) int64, and the float32 scores (n, K) of all prototypes, from one product.

        The scores are overwritten by the thread's next call.
        """
        screen, columns = self._full
        seen = screen.rows(rows.z)
        found = screen(seen, columns).approximate
        of_columns = (columns.bias.numpy(), columns.which.numpy(), lowest(found.dtype), screen.unit, screen.error)
        labels = torch.full((len(rows),), -1)
        of_rows = (seen.left.numpy(), seen.norm.numpy(), rows.z.numpy(), rows.x.numpy(), np.arange(len(rows)))
        decide(found.numpy(), of_columns, self._of_scores, self._scores.costs.arrays, *of_rows, labels.numpy())
        return labels, found[:, : len(self._scores)].add_(self._scores.bias)

    def _decide(self, chosen: _Chosen, rows: RowTile) -> Tensor:
        """The same by tensor operations: costs of the rows whose best two scores lie within the error."""
        found = chosen.screen(chosen.screen.rows(rows.z), chosen.all)
        approximate = found.approximate.add_(found.bias)
        best, labels = approximate.max(1)
        second = approximate.scatter_(1, labels[:, None], -torch.inf).amax(1)
        norm = found.norm.double()
        margin = norm.mul(2 * found.error[1]).add_(2 * found.error[2]).add_(norm.square_(), alpha=self._rounding[2])
        unsure = (~(best - second > margin)).nonzero()[:, 0]
        if len(unsure):
            labels[unsure] = self._scores.costs.labels(rows.x[unsure])
        return labels


def bounds_of(screen: Screen, z: Tensor) -> Tensor:
    """The bounds (n, K) of the scores of z (n, d)."""
    clusters = len(screen.scores)
    found = screen(screen.rows(z), screen.columns(torch.arange(clusters)))
    of_left, of_norm, absolute = screen.error
    margin = found.left.mul(of_left).add_(found.norm, alpha=of_norm).add_(absolute)
    return found.approximate.add_(found.bias)[:, :clusters].float().mul_(screen.unit).add_(margin[:, None])


def lowest(dtype: torch.dtype) -> float:
    """The least number of a dtype."""
    return float((torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).min)
