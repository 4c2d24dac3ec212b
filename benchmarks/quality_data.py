"""Data sets of the quality benchmark: where they lie, and their rows as every method gets them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize

from raydkm.data.parquet import ParquetTable
from raydkm.errors import InputError

SYNTAX = "NAME=PATH:COLUMN:LABEL:K:METRIC"


@dataclass(frozen=True)
class Place:
    """Where a labelled data set lies; without paths it is scikit-learn's digits."""

    name: str
    paths: tuple[str, ...]
    column: str
    label: str
    clusters: int
    metric: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read NAME=PATH:COLUMN:LABEL:K:METRIC (a path may have colons of its own), or the word digits.

        Raises
        ------
        ValueError
            Saying what is wrong with `text`.
        """
        if text == DIGITS.name:
            return DIGITS
        name, equals, rest = text.partition("=")
        parts = rest.rsplit(":", 4)
        if not (equals and name and len(parts) == 5 and all(parts)):
            raise ValueError(f"{text!r} is not {SYNTAX}, nor the word digits")
        path, column, label, clusters, metric = parts
        if not clusters.isdecimal() or int(clusters) < 1:
            raise ValueError(f"{text!r}: K must be a positive number, not {clusters!r}")
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"{text!r}: METRIC must be euclidean or cosine, not {metric!r}")
        return cls(name, (path,), column, label, int(clusters), metric)

    def open(self) -> ParquetTable:
        """The files' table, whose columns are checked; raise `InputError` where they are not as they should be."""
        table = ParquetTable.open(list(self.paths), self.column, unit=self.metric == "cosine")
        for path, schema in zip(table.files, table.schemas, strict=True):
            if self.label not in schema.names:
                raise InputError(f"{path}: no label column '{self.label}'; there are: {', '.join(schema.names)}")
        return table


DIGITS = Place("digits", (), "pixels", "label", 10, "euclidean")


@dataclass(frozen=True)
class DataSet:
    """Rows x (n, d) of float32, of unit length with metric cosine, and their labels (n,).

    `stored` holds x as an .npy file, for methods that run in a process of their own.
    """

    name: str
    x: NDArray[np.float32]
    labels: NDArray
    clusters: int
    metric: str
    stored: Path

    @property
    def described(self) -> str:
        rows, dim = self.x.shape
        return f"{rows:,} × {dim} (float32), K = {self.clusters}, {self.metric}"


def read(place: Place, directory: Path) -> DataSet:
    """Read a data set, and store its rows in `directory`.

    Raises
    ------
    InputError
        If files, columns or rows are not as they should be.
    """
    if place.paths:
        table = place.open()
        x = np.concatenate([block.rows for block in table.read()]).astype(np.float32)
        labels = np.concatenate([_labels(path, place.label) for path in table.files])
    else:
        pixels, labels = load_digits(return_X_y=True)
        x = pixels.astype(np.float32)
    if place.metric == "cosine":
        x = normalize(x)
    stored = directory / "rows.npy"
    np.save(stored, x)
    return DataSet(place.name, x, labels, place.clusters, place.metric, stored)


def _labels(path: str, column: str) -> NDArray:
    labels = pq.read_table(path, columns=[column])[column]
    if labels.null_count:
        raise InputError(f"{path}: column '{column}' has {labels.null_count} nulls")
    return labels.to_numpy()
