"""What goes over the wire: JSON as pydantic models, which OpenAPI shows, and the columns of an Arrow reply."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from raydkm.engine.assign import arrays_of, fields_of
from raydkm.ops.labeller import Assignment

JSON, ARROW, NPY = "application/json", "application/vnd.apache.arrow.stream", "application/x-npy"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class AssignRequest(_Strict):
    """Vectors, all of the model's dimension, and for how many of the best clusters to ask."""

    vectors: list[list[float]] = Field(min_length=1, description="One list of numbers a vector.")
    top: int | None = Field(None, ge=1, description="Also tell the best clusters, and their posteriors.")


class AssignReply(BaseModel):
    """One entry a vector, in the order of the request."""

    model: str = Field(description="SHA-256 of the tensors of the model that answered.")
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
    model: str = Field(description="SHA-256 of the model's tensors.")
    column: str | None = Field(description="The feature column of the fit; null where an array was fitted.")
    objective: str
    metric: str
    clusters: int
    dim: int = Field(description="Numbers of a vector.")
    shape: list[int] | None = Field(description="Of a row, where it is an image or a series.")
    unit: bool = Field(description="Whether vectors need a direction, so that one of zeros is refused.")
    temperature: float
    collapse_temperature: float | None
    balance: float
    loss: float | None = Field(description="Of the last step; null after partial_fit.")
    inertia: float
    rows: int
    steps: int
    stopped: str | None = Field(description="By which rule the fit ended; null after partial_fit.")
    created: str
    seconds: float | None = Field(description="Of the fit; null after partial_fit.")
    counts: list[float] = Field(description="Weight of the training rows of each cluster.")
    history: list[float] = Field(description="The objective after each step.")
    max_top: int
    max_vectors: int
    max_megabytes: float


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
    schema = pa.schema(fields_of(top), metadata={"raydkm.model": checksum})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays_of(found, top), schema=schema))
    return sink.getvalue().to_pybytes()
