"""What goes over the wire: JSON as pydantic models, which OpenAPI shows, and the columns of an Arrow reply."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from raydkm.engine.assign import Assignment

JSON, ARROW, NPY = "application/json", "application/vnd.apache.arrow.stream", "application/x-npy"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class AssignRequest(_Strict):
    """Vectors, all of the model's dimension, and for how many of the best clusters to ask."""

    vectors: list[list[float]] = Field(min_length=1, description="One list of numbers a vector.")
    top: int | None = Field(None, ge=1, description="Also tell the best clusters, and their posteriors.")


class AssignReply(BaseModel):
    """One entry a vector, in the order of the request."""

    model: str = Field(description="SHA-256 of the model that answered.")
    cluster: list[int]
    distance: list[float] = Field(description="Euclidean, to the cluster's prototype.")
    posterior: list[float] = Field(description="Of the cluster.")
    entropy: list[float] = Field(description="Of the posterior over all clusters, in nats.")
    top_clusters: list[list[int]] | None = Field(None, description="The best clusters, best first; with top.")
    top_posteriors: list[list[float]] | None = Field(None, description="Their posteriors; with top.")


class ReloadRequest(_Strict):
    """Which model to go over to."""

    model: str = Field(min_length=1, max_length=255, description="Its path below the directory of models.")


class ReloadReply(BaseModel):
    """The change that was made."""

    name: str
    model: str = Field(description="SHA-256 of the model that answers from now on.")
    previous: str = Field(description="SHA-256 of the model that answered until now.")


class ModelReply(BaseModel):
    """What the model is, and how it was made."""

    name: str
    model: str = Field(description="SHA-256 of the model.")
    objective: str
    metric: str
    clusters: int
    dim: int
    temperature: float
    collapse_temperature: float | None
    balance: float
    loss: float
    inertia: float
    rows: int
    steps: int
    stopped: str
    created: str
    seconds: float
    counts: list[float] = Field(description="Weight of the training rows of each cluster.")
    history: list[float] = Field(description="The objective after each step.")
    max_top: int
    max_vectors: int


class ErrorReply(BaseModel):
    """What every refusal looks like."""

    error: str


def reply_json(found: Assignment, checksum: str, top: int | None) -> bytes:
    """An `AssignReply`, written without building one."""
    columns: dict[str, Any] = {
        "model": checksum,
        "cluster": found.clusters[:, 0].tolist(),
        "distance": found.distance.tolist(),
        "posterior": found.posteriors[:, 0].tolist(),
        "entropy": found.entropy.tolist(),
    }
    if top is not None:
        columns |= {"top_clusters": found.clusters.tolist(), "top_posteriors": found.posteriors.tolist()}
    return json.dumps(columns, allow_nan=False).encode()


def reply_arrow(found: Assignment, checksum: str, top: int | None) -> bytes:
    """The same as an Arrow IPC stream, with the columns of a batch assignment."""
    columns = {
        "cluster": pa.array(np.ascontiguousarray(found.clusters[:, 0])),
        "distance": pa.array(found.distance),
        "posterior": pa.array(np.ascontiguousarray(found.posteriors[:, 0])),
        "entropy": pa.array(found.entropy),
    }
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    if top is not None:
        for name, lists in (("top_clusters", found.clusters), ("top_posteriors", found.posteriors)):
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(lists).reshape(-1)), top)
            fields.append(pa.field(name, columns[name].type))
    schema = pa.schema(fields, metadata={"raydkm.model": checksum})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_arrays(list(columns.values()), schema=schema))
    return sink.getvalue().to_pybytes()
