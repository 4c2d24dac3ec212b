"""Versions of the model: verified when loaded, one of them current, and the file by which replicas agree on it.

`POST /v1/reload` reaches one replica. What it chose is told to the others, and to replicas that start later, by a file
in the directory of models that each of them looks at every second. It holds the configured model too, and is followed
only while that is the configured one: a new `user_config` is always stronger than a reload before it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydkm.engine.assign import Assigner, Assignment
from raydkm.errors import ModelError
from raydkm.model import Model, load
from raydkm.serve.errors import RefusalError
from raydkm.serve.settings import ServeConfig

CURRENT = ".serving.json"

#: Rows are computed in multiples of so many: libraries compute few rows by other loops, whose last bits differ.
BLOCK_ROWS = 32

#: Prototypes that a new version is tried on.
TRIAL_ROWS = 256


@dataclass(frozen=True)
class Version:
    """A model that is ready to assign.

    Parameters
    ----------
    path : str
    model : Model
    checksum : str
    best, several : Assigner
        Of the best cluster, and of as many as a request may ask for.
    most : int
        That number.
    """

    path: str
    model: Model
    checksum: str
    best: Assigner
    several: Assigner
    most: int

    @classmethod
    def loaded(cls, path: str, config: ServeConfig) -> Version:
        """Load and verify a model; raise `ModelError` where it is damaged."""
        model = load(path).read_as(config.reading)
        most = min(config.max_top, model.clusters)
        best = Assigner(model, threads=config.threads)
        several = best if most == 1 else Assigner(model, threads=config.threads, top=most)
        return cls(path, model, model.checksum(), best, several, most)

    @property
    def name(self) -> str:
        return os.path.basename(os.path.normpath(self.path))

    def assign(self, rows: NDArray, top: int | None) -> Assignment:
        """Assign rows (n, d); a row's answer does not depend on the others."""
        missing = -len(rows) % BLOCK_ROWS
        padded = np.concatenate((rows, np.repeat(rows[-1:], missing, axis=0))) if missing else rows
        found = (self.best if top is None else self.several)(padded)
        return slice_of(found, 0, len(rows), top)

    def try_out(self) -> None:
        """Assign the model's own prototypes; raise `ModelError` where the answers are impossible."""
        rows = self.model.cluster_centers[:TRIAL_ROWS]
        found = self.assign(rows, self.most)
        known = (found.clusters >= 0) & (found.clusters < self.model.clusters)
        if not (known.all() and all(np.isfinite(x).all() for x in (found.posteriors, found.distance, found.entropy))):
            raise ModelError(f"{self.path}: a trial assignment of its own prototypes gives impossible answers")


def slice_of(found: Assignment, start: int, stop: int, top: int | None) -> Assignment:
    """Rows `start` to `stop` of an assignment, and the first `top` of the clusters."""
    rows, columns = slice(start, stop), slice(0, top or 1)
    return Assignment(
        found.clusters[rows, columns], found.posteriors[rows, columns], found.distance[rows], found.entropy[rows]
    )


class Choice:
    """Which model is to be served: the configured one, or that of the last reload since.

    Parameters
    ----------
    models : str or None
        The directory of models.
    """

    def __init__(self, models: str | None):
        self._models = None if models is None else Path(models).resolve()
        self._configured = ""

    def configure(self, model: str) -> None:
        self._configured = os.path.abspath(model)

    def path(self) -> str:
        """Path of the model that is to be served."""
        if self._models is not None:
            try:
                told = json.loads((self._models / CURRENT).read_text())
            except FileNotFoundError:
                return self._configured
            if told["configured"] == self._configured:
                return str(self._models / told["model"])
        return self._configured

    def resolve(self, name: str) -> str:
        """The path of a model below the directory; refuse one that is not, wherever links lead."""
        if self._models is None:
            raise RefusalError(
                403, "no directory of models is configured (--models), so there is nothing to go over to"
            )
        try:
            path = (self._models / name).resolve()
            inside = path.is_relative_to(self._models) and path != self._models and path.is_dir()
        except (OSError, ValueError):  # a name that no file can have
            inside = False
        if not inside:
            raise RefusalError(422, f"model {name!r}: no such directory below that of the models")
        return str(path)

    def tell(self, path: str) -> None:
        """Let all replicas go over to the model at `path`."""
        assert self._models is not None
        told = {"configured": self._configured, "model": os.path.relpath(path, self._models)}
        partial = self._models / f"{CURRENT}.{os.getpid()}.partial"
        partial.write_text(json.dumps(told) + "\n")
        os.replace(partial, self._models / CURRENT)
