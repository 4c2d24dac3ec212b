"""From rows as they are stored to what a model says of them: features first, then clusters."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from raydkm.errors import ConfigError, InputError
from raydkm.features.features import Features
from raydkm.ops.labeller import Assignment, Labeller
from raydkm.ops.nearest import Choice


class Assigner:
    """A model that is ready for any number of rows, from any number of threads.

    Parameters
    ----------
    labeller : Labeller
    clusters : int
    features : Features, optional
        What makes features of rows; None where rows are clustered as they are.
    """

    def __init__(self, labeller: Labeller, clusters: int, features: Features | None):
        self.labeller = labeller
        self._clusters = clusters
        self._features = features

    @property
    def choice(self) -> Choice:
        """What index was chosen, and why."""
        return self.labeller.choice

    def __call__(self, rows: Tensor, top: int = 1) -> Assignment:
        """Assign rows (n, input_dim) of any numeric dtype, which must be finite, with the `top` best clusters of each.

        Raises
        ------
        ConfigError
            If `top` is not a number from 1 to the number of clusters.
        InputError
            If the features of a row are not finite, or pixels are of other numbers than at the fit.
        """
        if not (isinstance(top, int | np.integer) and 1 <= top <= self._clusters):
            raise ConfigError(f"top {top}: the model has {self._clusters} clusters")
        return self.labeller(self.features(rows), top)

    def features(self, rows: Tensor) -> Tensor:
        """What is clustered (n, dim) in the place of rows."""
        return clustered(rows, self._features)


def clustered(rows: Tensor, features: Features | None) -> Tensor:
    """Features (n, dim) of rows (n, input_dim) as they are stored, or the rows themselves.

    Raises
    ------
    InputError
        If the features of a row are not finite, or pixels are of other numbers than at the fit.
    """
    if features is None:
        return rows
    if features.encoder is not None and not features.maps and rows.element_size() == 1 and not features.pixels:
        raise InputError("pixels of 8 bits, where the model was fitted to other numbers; scale them alike")
    z = features(rows)
    if not bool(z.isfinite().all()):
        bad = int((~z.isfinite()).any(1).nonzero()[0])
        raise InputError(f"row {bad} of a batch: features that are not finite; is it of the scale of the fit's rows?")
    return z
