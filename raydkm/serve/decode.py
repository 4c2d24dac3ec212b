"""Bodies to matrices: JSON, Arrow IPC streams, .npy and images, with everything unusable refused by its reason."""

from __future__ import annotations

import io
import struct
import threading

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydkm.data.columns import Columns, check_rows
from raydkm.data.images import decode as decode_images
from raydkm.data.images import image_shape
from raydkm.errors import InputError
from raydkm.model import Model
from raydkm.serve.errors import RefusalError
from raydkm.serve.json_body import read_vectors
from raydkm.serve.schemas import ARROW, JSON

#: Bodies that are one encoded image.
IMAGES = ("image/jpeg", "image/png", "image/webp")

#: Pixels that are decoded for one request: a few hundred megabytes in work, and a second.
REQUEST_PIXELS = 2**25

#: A matrix of these may be assigned; other numbers have no place in a feature vector (see `Columns`).
_DTYPES = ("float16", "float32", "float64", "int8", "uint8")

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def decode(
    body: bytes, kind: str, model: Model, top: int | None, most: int, cancelled: threading.Event | None = None
) -> tuple[NDArray, int | None]:
    """Rows (n, d) of a JSON, Arrow, .npy or image body, checked for `model`, and `top`, which JSON has in its body.

    An image is one row; an Arrow stream may have a column of encoded ones. Setting `cancelled` ends long work.

    Raises
    ------
    RefusalError
        413 for more than `most` vectors, 415 for a compressed body and for images that the model does not take, 400 for
        a body that cannot be read, 422 for vectors that the model cannot take and for damaged or too large images.
    """
    try:
        if kind == JSON:
            if top is not None:
                raise RefusalError(422, "top: of a JSON request it belongs into the body, not into the query")
            rows, top = read_vectors(body, model.input_dim, most, cancelled)
        elif kind == ARROW:
            rows = _from_arrow(body, model, most)
        elif kind in IMAGES:
            rows = _from_image(body, kind, model)
        else:
            rows = _from_npy(body)
        _check(rows, model, most)
    except InputError as error:
        raise RefusalError(422, str(error)) from None
    except RefusalError:
        raise
    except Exception as error:  # noqa: BLE001 - readers of damaged bodies raise whatever they stumble over
        reason = str(error).splitlines() or [type(error).__name__]
        raise RefusalError(400, f"not a whole body of {kind}: {reason[0]}") from None
    return rows, top


def _from_arrow(body: bytes, model: Model, most: int) -> NDArray:
    with pa.ipc.open_stream(body) as reader:
        schema = reader.schema
    names = schema.names
    columns = Columns.named(names[0] if len(names) == 1 else model.config.column, None, names, shape=model.shape)
    columns.check(schema, "the body")
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(pa.py_buffer(body))):
        if number > most:  # after the schema, a batch has at least one vector
            raise RefusalError(413, f"an Arrow stream of more batches than {most}, the vectors that a request may have")
        _check_message(message)
    with pa.ipc.open_stream(body) as reader:
        table = reader.read_all()
    table.validate(full=True)
    _check_count(len(table), most)
    return columns.extract(table, "the body", 0, unit=False, pixels=REQUEST_PIXELS).rows


def _from_image(body: bytes, kind: str, model: Model) -> NDArray:
    try:
        shape = image_shape(model.shape, f"content type {kind}: the model takes no images")
    except InputError as error:
        raise RefusalError(415, str(error)) from None
    return decode_images([body], shape, lambda _: "the body", REQUEST_PIXELS)


def _check_message(message: pa.ipc.Message) -> None:
    """Refuse all that may be compressed, so that a body of known size is one of unknown size.

    A RecordBatch tells by its field 3, but the Message around it (its field 2) may tell too, in metadata of its own
    (field 4). Batches of dictionaries are records in another table; they are not needed for vectors.
    """
    if message.type not in ("schema", "record batch"):
        raise RefusalError(415, f"an Arrow stream with a message of the kind {message.type}; send record batches alone")
    if message.type == "record batch":
        content = message.metadata.to_pybytes()
        root = struct.unpack_from("<I", content)[0]
        header = _field(content, root, 2)
        if header is None or _field(content, header, 3) is not None or _field(content, root, 4) is not None:
            raise RefusalError(
                415, "an Arrow stream that is compressed, or has metadata of batches; send it without either"
            )


def _field(flatbuffer: bytes, table: int, number: int) -> int | None:
    """Position of the table that is a field of another one, or None where the field is not set."""
    layout = table - struct.unpack_from("<i", flatbuffer, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", flatbuffer, layout)[0]:
        return None
    offset = struct.unpack_from("<H", flatbuffer, layout + 4 + 2 * number)[0]
    return table + offset + struct.unpack_from("<I", flatbuffer, table + offset)[0] if offset else None


def _from_npy(body: bytes) -> NDArray:
    stream = io.BytesIO(body)
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise RefusalError(400, f"an .npy array of version {version}; expected 1.0 or 2.0")
    shape, fortran, dtype = _NPY_HEADERS[version](stream)
    if len(shape) != 2 or dtype.name not in _DTYPES:
        raise RefusalError(422, f"an array {shape} of {dtype}; expected (n, d) of one of {', '.join(_DTYPES)}")
    content = memoryview(body)[stream.tell() :]
    if min(shape) < 0 or len(content) != shape[0] * shape[1] * dtype.itemsize:
        raise RefusalError(400, f"not a whole .npy array: {len(content)} bytes for {shape} of {dtype}")
    rows = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(rows, dtype=dtype.newbyteorder("="))


def _check(rows: NDArray, model: Model, most: int) -> None:
    _check_count(len(rows), most)
    if rows.shape[1] != model.input_dim:
        raise RefusalError(422, f"vectors of {rows.shape[1]} dimensions, the model has {model.input_dim}")
    check_rows(rows, lambda row: f"vector {row}", unit=model.unit)


def _check_count(vectors: int, most: int) -> None:
    if not vectors:
        raise RefusalError(422, "no vectors")
    if vectors > most:
        raise RefusalError(413, f"{vectors} vectors; a request may have {most}")
