"""JSON bodies: a small one whole, one of vectors in slices, so that no body holds the interpreter for long.

The list of vectors is cut out of the text, and the small object that remains is parsed whole. A valid list holds no
strings, so each `]` in it ends a vector, and the text can be cut there. The first error ends the work.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, TypeAdapter, ValidationError

from raydkm.serve.errors import RefusalError
from raydkm.serve.schemas import AssignRequest

_Schema = TypeVar("_Schema", bound=BaseModel)

SLICE_BYTES = 2**18  # of text, parsed in a few milliseconds
MOST_BESIDE = 10_000  # bytes of text beside the list of vectors

_SEPARATOR = re.compile(rb"[ \t\r\n]*,")
_VECTORS: TypeAdapter[list[list[float]]] = TypeAdapter(
    Annotated[list[Annotated[list[float], FailFast()]], FailFast()],
    config=ConfigDict(strict=True, allow_inf_nan=False),
)


def parse(schema: type[_Schema], body: bytes) -> _Schema:
    """Parse a small body as `schema`; 400 where it is not JSON, 422 where its values are wrong."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


def read_vectors(
    body: bytes, dim: int, most: int, cancelled: threading.Event | None = None
) -> tuple[NDArray[np.float64], int | None]:
    """Parse an `AssignRequest`; return its vectors (n, dim) and its `top`.

    Parameters
    ----------
    body : bytes
    dim : int
        Numbers of a vector.
    most : int
        Vectors that a request may have.
    cancelled : threading.Event, optional
        Ends the work between two slices when it is set.

    Raises
    ------
    RefusalError
        400 for a text that is not JSON, 413 for more than `most` vectors, 422 for wrong values.
    """
    if body.count(b"[") > most + 1 or body.count(b",") > most * dim:
        raise RefusalError(413, f"more lists or numbers than {most} vectors of {dim} have; a request may have so many")
    start, stop = body.find(b"[") + 1, body.rfind(b"]")
    has_list = 0 < start <= stop
    beside = body
    if has_list:  # another list takes its place, which is empty if it is
        beside = body[:start] + (b"[0]" if body[start:stop].strip() else b"") + body[stop:]
    if len(beside) > MOST_BESIDE:
        raise RefusalError(422, f"{len(beside)} bytes beside the list of vectors; expected top alone")
    top = parse(AssignRequest, beside).top
    parts: list[NDArray[np.float64]] = []
    rows = 0
    for text in _slices(body, start, stop, dim):
        if cancelled is not None and cancelled.is_set():
            raise RefusalError(400, "the client has left")
        parts.append(_matrix(text, dim, rows))
        rows += len(parts[-1])
    return np.concatenate(parts), top


def _slices(body: bytes, start: int, stop: int, dim: int) -> Iterator[bytes]:
    """Cut the text of a list into lists of about SLICE_BYTES, of whole vectors."""
    while True:
        end = body.find(b"]", min(start + SLICE_BYTES, stop), stop) + 1
        if not end or body.find(b"[", end, stop) < 0:  # the last slice has all that follows
            end = stop
        if body.count(b",", min(start + SLICE_BYTES, end), end) > dim:  # one is perhaps before the last vector
            raise RefusalError(422, f"a vector of more than {dim} numbers; the model has {dim} dimensions")
        yield b"[" + body[start:end] + b"]"
        if end == stop:
            return
        separator = _SEPARATOR.match(body, end, stop)
        if separator is None:
            raise RefusalError(400, "Invalid JSON: expected a comma between vectors")
        start = separator.end()


def _matrix(text: bytes, dim: int, before: int) -> NDArray[np.float64]:
    """Parse a list of vectors, of which `before` came before."""
    try:
        vectors = _VECTORS.validate_json(text)
    except ValidationError as error:
        raise _refusal(error, before) from None
    for number, vector in enumerate(vectors, before):
        if len(vector) != dim:
            raise RefusalError(422, f"vectors.{number}: {len(vector)} dimensions, the model has {dim}")
    return np.array(vectors, dtype=np.float64)


def _refusal(error: ValidationError, before: int | None = None) -> RefusalError:
    """Name the first error of a whole body, or of a slice of the vectors after `before`."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = list(first["loc"])
    if before is not None and where:
        where = ["vectors", before + int(where[0]), *where[1:]]
    reason = re.sub(r" at line \d+ column \d+$", "", first["msg"])  # of what was parsed, not of the body
    if where:
        reason = f"{'.'.join(map(str, where))}: {reason}"
    return RefusalError(400 if first["type"] == "json_invalid" else 422, reason)
