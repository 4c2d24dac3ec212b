"""Wrong and hostile requests: each gets a refusal with its reason, in one shape, and none is a fault of the service."""

from __future__ import annotations

import io
import json
import pickle
import socket
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from raydkm.serve.decode import IMAGES
from tests.serve.conftest import ADMIN, DIM, TOKEN, Running

JSON, ARROW, NPY = "application/json", "application/vnd.apache.arrow.stream", "application/x-npy"
GOOD = [0.5] * DIM


def arrow(compression: str | None = None, **columns: Any) -> bytes:
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def vectors(*rows: Any, **more: Any) -> str:
    return json.dumps({"vectors": list(rows), **more})


def npy_of(header: str) -> bytes:
    """An .npy file without content whose header is any text."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def with_extension() -> bytes:
    return arrow(x=pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16))))


def with_a_name_that_is_no_text() -> bytes:
    return arrow(xxxx=[GOOD]).replace(b"xxxx", b"\xff\xfe\xff\xfe")


def with_two_columns_of_a_name() -> bytes:
    column = pa.array([GOOD], pa.list_(pa.float32(), DIM))
    batch, sink = pa.record_batch([column, column], ["x", "x"]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


LARGE_HEADER = npy(np.zeros((1, DIM))).replace(b"(1, 4), ", b"(999999999999, 4), ", 1)[:200]

HOSTILE = {
    "not JSON": (JSON, "{", 400, "JSON"),
    "deep JSON": (JSON, "[" * 2_000, 400, "JSON"),
    "deeper JSON": (JSON, "[" * 100_000, 413, "lists"),
    "JSON of empty lists": (JSON, f'{{"vectors": [{"[]," * 3000}[]]}}', 413, "lists"),
    "JSON of many numbers": (JSON, f'{{"vectors": [[{"1," * 9000}1]]}}', 413, "numbers"),
    "no vectors": (JSON, "{}", 422, "vectors"),
    "empty list": (JSON, vectors(), 422, "vectors"),
    "empty vector": (JSON, vectors([]), 422, "0 dimensions"),
    "unknown key": (JSON, vectors(GOOD, tpo=1), 422, "tpo"),
    "ragged": (JSON, vectors(GOOD, GOOD[1:]), 422, "vectors.1: 3 dimensions"),
    "NaN": (JSON, '{"vectors": [[NaN, 1, 1, 1]]}', 422, "finite"),
    "infinite": (JSON, '{"vectors": [[1e999, 1, 1, 1]]}', 422, "finite"),
    "integer of 400 digits": (JSON, f'{{"vectors": [[{"9" * 400}, 1, 1, 1]]}}', 422, "vectors.0.0"),
    "square overflows": (JSON, vectors([1e30, 1, 1, 1]), 422, "1e+15"),
    "text for a number": (JSON, vectors(["1", 1, 1, 1]), 422, "vectors.0.0"),
    "null for a number": (JSON, vectors([None, 1, 1, 1]), 422, "vectors.0.0"),
    "wrong dimension": (JSON, vectors([*GOOD, 1.0]), 422, "5 dimensions, the model has 4"),
    "top too large": (JSON, vectors(GOOD, top=6), 422, "at most 5"),
    "top of zero": (JSON, vectors(GOOD, top=0), 422, "top"),
    "too many vectors": (JSON, vectors(*[GOOD] * 2001), 413, "2000 vectors of 4"),
    "too large a body": (JSON, " " * 1_000_001, 413, "1 MB"),
    "wrong content type": ("text/csv", "1,2,3,4", 415, "text/csv"),
    "form": ("multipart/form-data; boundary=x", "--x--", 415, "multipart"),
    "truncated Arrow": (ARROW, arrow(x=[GOOD] * 9)[:-90], 400, "not a whole body"),
    "no Arrow": (ARROW, b"\x00" * 64, 400, "not a whole body"),
    "empty Arrow": (ARROW, b"", 400, "not a whole body"),
    "compressed Arrow": (ARROW, arrow("zstd", x=[GOOD] * 9), 415, "compress"),
    "ragged Arrow": (ARROW, arrow(x=[GOOD, GOOD[1:]]), 422, "row 1"),
    "Arrow with nulls": (ARROW, arrow(x=[GOOD, None]), 422, "null"),
    "Arrow with NaN": (ARROW, arrow(x=[GOOD, [np.nan] * DIM]), 422, "NaN"),
    "Arrow of text": (ARROW, arrow(x=["a"]), 422, "string"),
    "Arrow without rows": (ARROW, arrow(x=pa.array([], pa.list_(pa.float32(), DIM))), 422, "no vectors"),
    "Arrow with an extension type": (ARROW, with_extension(), 422, "uuid"),
    "Arrow whose name is no text": (ARROW, with_a_name_that_is_no_text(), 400, "utf-8"),
    "Arrow with two columns of a name": (ARROW, with_two_columns_of_a_name(), 422, "feature column"),
    ".npy of 0 columns": (NPY, npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 0)}\n"), 422, "0 dim"),
    ".npy of 10^30 rows": (NPY, npy_of(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 0)}}"), 400, ""),
    ".npy whose header is no Python": (NPY, npy_of("{'descr': '"), 400, ""),
    ".npy whose header is a list": (NPY, npy_of("[[], {}]"), 400, ""),
    ".npy whose dtype is a list": (NPY, npy_of("{'descr': [()], 'fortran_order': False, 'shape': (1, 4)}"), 400, ""),
    ".npy whose keys differ": (NPY, npy_of("{1: 2, 'descr': 3, None: 4}"), 400, ""),
    ".npy whose header is deep": (NPY, npy_of("(" * 5000 + ")" * 4000), 400, ""),
    ".npy whose header is deeper": (NPY, npy_of("-" * 9000 + "1"), 400, ""),
    ".npy of version 3": (NPY, b"\x93NUMPY\x03\x00" + bytes(60), 400, "version"),
    "pickle in .npy": (NPY, npy(np.array([[print]], dtype=object)), 422, "object"),
    "pickle": (NPY, pickle.dumps([GOOD]), 400, "magic string"),
    "truncated .npy": (NPY, npy(np.zeros((9, DIM)))[:-1], 400, "287 bytes"),
    ".npy that announces 32 TB": (NPY, LARGE_HEADER, 400, "bytes for"),
    ".npy of one axis": (NPY, npy(np.zeros(DIM)), 422, "(n, d)"),
    "an image for a model of vectors": ("image/png", b"\x89PNG", 415, "the model takes no images"),
    "Arrow of images for a model of vectors": (ARROW, arrow(x=[b"\x89PNG"]), 422, "need a shape"),
    ".npy of complex numbers": (NPY, npy(np.zeros((1, DIM), complex)), 422, "complex"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_wrong_body_is_refused_with_its_reason(service: Running, case: str) -> None:
    kind, body, status, reason = HOSTILE[case]
    found, reply, _ = service.send("POST", "/v1/assign", body, content_type=kind)
    assert (found, list(reply)) == (status, ["error"]), reply
    assert reason in reply["error"]


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("POST", "/v1/assign", None, 401),
        ("POST", "/v1/assign", "a-token-of-the-testz", 401),
        ("GET", "/v1/model", None, 401),
        ("GET", "/metrics", None, 401),
        ("POST", "/v1/reload", None, 401),
        ("POST", "/v1/reload", TOKEN, 403),
        ("GET", "/v1/assign", TOKEN, 405),
        ("GET", "/v2/assign", TOKEN, 404),
        ("POST", "/v1/assign?top=many", TOKEN, 422),
    ],
)
def test_missing_and_wrong_tokens_and_routes(
    service: Running, method: str, path: str, token: str | None, status: int
) -> None:
    body = vectors(GOOD) if method == "POST" else None
    found, reply, headers = service.send(method, path, body, token, content_type=JSON)
    assert (found, list(reply)) == (status, ["error"])
    assert (headers["WWW-Authenticate"] == "Bearer") == (status == 401)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wide", "dimensions"),
        ("absent", "no such directory"),
        ("../first", "no such directory"),
        ("/etc", "no such directory"),
        (".", "no such directory"),
        ("a\0b", "no such directory"),
        ("x" * 255, "no such directory"),
        ("damaged", "checksum"),
    ],
)
def test_a_model_that_cannot_be_taken_leaves_the_one_before(service: Running, name: str, reason: str) -> None:
    damaged = service.models / "damaged"
    if not damaged.exists():
        damaged.mkdir()
        for file in (service.models / "first").iterdir():
            (damaged / file.name).write_bytes(file.read_bytes())
        (damaged / "history.jsonl").write_text("")
    before = service.client().describe()["model"]
    status, reply, _ = service.send("POST", "/v1/reload", json.dumps({"model": name}), ADMIN, content_type=JSON)
    assert status == 422
    assert reason in reply["error"]
    assert service.client().describe()["model"] == before


def raw(service: Running, *parts: bytes) -> bytes:
    """Send bytes as they are, and read all that comes back until the service closes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
        return received


def head(length: int, kind: str = JSON) -> bytes:
    return (
        f"POST /v1/assign HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def test_a_body_that_does_not_come_is_not_waited_for(service: Running) -> None:
    reply = raw(service, head(1000), b'{"vectors"')
    assert b" 408 " in reply.splitlines()[0]
    assert b'"error":"the body did not arrive within 1 s"' in reply


def test_a_body_is_refused_by_its_announced_size_before_it_is_sent(service: Running) -> None:
    assert b" 413 " in raw(service, head(10**12)).splitlines()[0]


numbers = st.one_of(st.floats(width=32), st.integers(), st.text(max_size=3), st.none(), st.booleans())


@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "vectors": st.one_of(st.lists(st.lists(numbers, max_size=5), max_size=4), numbers),
            "top": st.one_of(st.integers(-2, 7), numbers),
            "other": numbers,
        },
    )
)
def test_no_json_is_answered_by_a_fault(service: Running, body: dict[str, Any]) -> None:
    status, reply, _ = service.send("POST", "/v1/assign", json.dumps(body), content_type=JSON)
    assert status in (200, 400, 422), reply


@given(vectors=arrays(np.float64, st.tuples(st.integers(1, 5), st.just(DIM)), elements=st.floats(-1e15, 1e15)))
def test_every_good_vector_is_answered(service: Running, vectors: np.ndarray) -> None:
    status, reply, _ = service.send(
        "POST", "/v1/assign", json.dumps({"vectors": vectors.tolist(), "top": 5}), content_type=JSON
    )
    assert status == 200, reply
    assert [len(reply[name]) for name in ("cluster", "distance", "top_clusters")] == [len(vectors)] * 3


@given(array=arrays(scalar_dtypes(), array_shapes(min_dims=1, max_dims=3, max_side=5)), cut=st.integers(0, 40))
@settings(max_examples=30)
def test_no_npy_is_answered_by_a_fault(service: Running, array: np.ndarray, cut: int) -> None:
    body = npy(array)
    status, reply, _ = service.send("POST", "/v1/assign", body[: len(body) - cut], content_type=NPY)
    assert status in (200, 400, 422), reply


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), cut=st.integers(0, 60))
@settings(max_examples=60)
def test_no_arrow_is_answered_by_a_fault(service: Running, flips: list[tuple[int, int]], cut: int) -> None:
    body = bytearray(arrow(x=pa.array([GOOD] * 3, pa.list_(pa.float32(), DIM))))
    for place, value in flips:
        body[place % len(body)] = value
    status, reply, _ = service.send("POST", "/v1/assign", bytes(body[: len(body) - cut]), content_type=ARROW)
    assert status in (200, 400, 415, 422), reply


def test_the_openapi_document_names_every_body_and_refusal(service: Running) -> None:
    _, document, _ = service.send("GET", "/openapi.json", token=None)
    assign = document["paths"]["/v1/assign"]["post"]
    assert set(assign["requestBody"]["content"]) == {JSON, ARROW, NPY, *IMAGES}
    assert {"200", "400", "401", "408", "413", "415", "422", "503"} <= set(assign["responses"])
