"""What goes over the wire: JSON as pydantic models, which OpenAPI shows, and the columns of an Arrow reply."""

from __future__ import annotations

import json

import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from raydkm.engine.assign import arrays_of, fields_of
from raydkm.ops.labeller import Assignment

JSON, ARROW, NPY = "application/json", "application/vnd.apache.arrow.stream", "application/x-npy"

REPLY_ROWS = 1024  # written as JSON at a time, in a few milliseconds


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
    """An `AssignReply`, written without building one, and in parts: text of floats holds the interpreter for long."""
    columns = {
        "cluster": found.clusters[:, 0],
        "distance": found.distance,
        "posterior": found.posteriors[:, 0],
        "entropy": found.entropy,
    }
    if top is not None:
        columns |= {"top_clusters": found.clusters, "top_posteriors": found.posteriors}
    lists = (f'"{name}": [{_json_of(column)}]' for name, column in columns.items())
    return f'{{"model": "{checksum}", {", ".join(lists)}}}'.encode()


def _json_of(column: NDArray) -> str:
    """The elements of an array as JSON, without the brackets around them."""
    parts = (column[start : start + REPLY_ROWS].tolist() for start in range(0, len(column), REPLY_ROWS))
    return ", ".join(json.dumps(part, allow_nan=False)[1:-1] for part in parts)


def reply_arrow(found: Assignment, checksum: str, top: int | None) -> bytes:
    """The same as an Arrow IPC stream, with the columns of a batch assignment."""
    schema = pa.schema(fields_of(top), metadata={"raydkm.model": checksum})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays_of(found, top), schema=schema))
    return sink.getvalue().to_pybytes()
