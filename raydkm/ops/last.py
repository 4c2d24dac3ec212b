"""What is known from the last pass over the same rows: their labels, and the sums by cluster.

Sums are exact, so that the rows whose label is another one now, taken from their old cluster and added to their new
one, make the very sums that all rows would. And a row whose prototype has not moved has to be compared with those alone
that have: none of the others was better, and they are where they were.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydkm.ops.batch import Batch
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.kernels import differing
from raydkm.ops.scores import Scores

#: Sums that go on from pass to pass.
_KEPT = ("counts", "sums")


class LastPass:
    """The last hard pass of one worker over its rows, which come in the same order each time.

    A pass adds to what `begin` returns, and the next one goes on from there.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """The next pass is the first one."""
        self._labels: dict[int, Tensor] = {}
        self._scores: Scores | None = None
        self._sums: Statistics | None = None

    def moved(self, scores: Scores) -> Tensor | None:
        """The prototypes (m,) int64 whose score is not that of the last pass; None in the first one."""
        last, self._scores = self._scores, scores
        if last is None:
            return None
        moved = torch.empty(len(scores), dtype=torch.bool)
        differing(scores.prototypes.numpy(), last.prototypes.numpy(), moved.numpy())
        return moved.logical_or_(scores.bias != last.bias).nonzero()[:, 0]

    @property
    def known(self) -> bool:
        """Whether the next pass goes on from sums."""
        return bool(self._labels)

    def labels(self, batch: Batch) -> Tensor:
        """Those of a batch's rows (n,) int32, to be overwritten; -1 in the first pass."""
        if batch.first not in self._labels:
            self._labels[batch.first] = torch.full((len(batch),), -1, dtype=torch.int32)
        return self._labels[batch.first]

    def begin(self, fields: tuple[Field, ...]) -> Statistics:
        """The sums to add to: those by cluster are of the last pass, if there was one."""
        if self._sums is None or not self.known:
            self._sums = Statistics(fields)
        for field in fields:
            if field.name not in _KEPT:
                self._sums.part(field.name).zero_()
        return self._sums
