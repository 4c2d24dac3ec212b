"""Versions of the model: verified when loaded, one of them current, and the file by which replicas agree on it.

`POST /v1/reload` reaches one replica. What it chose is told to the others, and to replicas that start later, by a file
in the directory of models that each of them looks at every second. It holds the configured model too, and is followed
only while that is the configured one: a new `user_config` is always stronger than a reload before it, and removes it.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydkm.assigner import Assigner
from raydkm.data.source import as_tensor
from raydkm.engine.manifest import digest_of
from raydkm.errors import ModelError
from raydkm.model import Model, load
from raydkm.ops.labeller import Assignment
from raydkm.serve.errors import RefusalError
from raydkm.serve.schemas import ModelReply
from raydkm.serve.settings import ServeConfig

logger = logging.getLogger("raydkm")

CURRENT = ".serving.json"

#: Rows are computed in multiples of so many: libraries compute few rows by other loops, whose last bits differ.
BLOCK_ROWS = 32

#: Prototypes that a new version is tried on.
TRIAL_ROWS = 256


@dataclass(frozen=True)
class Told:
    """Which model is to be served: its directory, and what was in it, for a directory may be overwritten."""

    path: str
    identity: str


@dataclass(frozen=True, eq=False)
class Version:
    """A model that is ready to assign.

    Parameters
    ----------
    path : str
    model : Model
    checksum : str
        SHA-256 of its tensors.
    assigner : Assigner
    most : int
        Clusters that a request may ask for.
    report : bytes
        `ModelReply`, which is long where there are many clusters.
    """

    path: str
    model: Model
    checksum: str
    assigner: Assigner
    most: int
    report: bytes

    @classmethod
    def loaded(cls, path: str, config: ServeConfig) -> Version:
        """Load and verify a model; raise `ModelError` where it is damaged."""
        model = load(path, encoder=config.encoder).read_as(config.reading)
        most, checksum = min(config.max_top, model.clusters), model.checksum()
        report = _report(name_of(path), model, checksum, most, config).model_dump_json().encode()
        return cls(path, model, checksum, model.assigner(), most, report)

    @cached_property
    def told(self) -> Told:
        """What other replicas need to know to serve the same."""
        config = self.model.config.model_dump()
        identity = digest_of({"model": self.checksum, "config": config, "temperature": self.model.temperature})
        return Told(self.path, identity)

    @property
    def name(self) -> str:
        return name_of(self.path)

    def assign(self, rows: NDArray, top: int | None) -> Assignment:
        """Assign rows (n, d); a row's answer does not depend on the others."""
        missing = -len(rows) % BLOCK_ROWS
        padded = np.concatenate((rows, np.repeat(rows[-1:], missing, axis=0))) if missing else rows
        found = self.assigner(as_tensor(padded), 1 if top is None else self.most)
        return slice_of(found, 0, len(rows), top)

    def try_out(self) -> None:
        """Assign rows that the model knows of; raise `ModelError` where the answers are impossible."""
        rows = self.model.cluster_centers[:TRIAL_ROWS]
        if self.model.features is not None:
            rows = np.random.default_rng(0).random((TRIAL_ROWS, self.model.input_dim))
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


def name_of(path: str) -> str:
    return os.path.basename(os.path.normpath(path))


def _report(name: str, model: Model, checksum: str, most: int, config: ServeConfig) -> ModelReply:
    record = model.record
    return ModelReply(
        name=name,
        model=checksum,
        column=model.config.column,
        objective=model.config.objective,
        metric=model.config.metric,
        clusters=model.clusters,
        dim=model.input_dim,
        shape=None if model.shape is None else list(model.shape),
        unit=model.unit,
        temperature=model.temperature,
        collapse_temperature=record["collapse_temperature"],
        balance=model.config.balance,
        loss=model.history[-1]["objective"] if model.history else None,
        inertia=record["inertia"],
        rows=record["rows"],
        steps=record["steps"],
        stopped=record.get("stopped"),
        created=record["created"],
        seconds=record["seconds"]["total"] if "seconds" in record else None,
        counts=model.counts.tolist(),
        history=[entry["objective"] for entry in model.history],
        max_top=most,
        max_vectors=config.request_vectors,
        max_megabytes=config.request_megabytes,
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
        self._complaint = ""
        self.configured = ""

    def told(self) -> Told | None:
        """What the last reload chose, if there was one since this model was configured."""
        if self._models is None:
            return None
        try:
            told = self._read()
            if told is None or told["configured"] != self.configured:
                return None
            return Told(str(self._models / told["model"]), str(told["identity"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            if self._complaint != str(error):  # it is looked at every second
                self._complaint = str(error)
                logger.error("%s cannot be used, and is not followed: %s", self._models / CURRENT, error)
            return None

    def forget(self) -> None:
        """Remove what a reload chose while another model was configured: configured again, that one is served."""
        if self._models is not None:
            try:
                told = self._read()
                if told is not None and told["configured"] != self.configured:
                    (self._models / CURRENT).unlink(missing_ok=True)
            except (OSError, ValueError, LookupError, TypeError) as error:
                logger.warning("%s stays: %s", self._models / CURRENT, error)

    def _read(self) -> Any:
        assert self._models is not None
        try:
            return json.loads((self._models / CURRENT).read_text())
        except FileNotFoundError:
            return None

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

    def tell(self, chosen: Told) -> None:
        """Let all replicas go over to a model; raise OSError where the directory cannot be written."""
        assert self._models is not None
        told = {
            "configured": self.configured,
            "model": os.path.relpath(chosen.path, self._models),
            "identity": chosen.identity,
        }
        partial = self._models / f"{CURRENT}.{uuid.uuid4().hex}.partial"
        partial.write_text(json.dumps(told) + "\n")
        os.replace(partial, self._models / CURRENT)
