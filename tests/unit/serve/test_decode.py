"""Bodies of Arrow that could be larger than they look, or that no reader expects, for a model with a named column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raydkm
from raydkm.model import Model
from raydkm.serve.decode import decode
from raydkm.serve.errors import RefusalError
from raydkm.serve.schemas import ARROW, JSON

GOOD = [0.5] * 4


@pytest.fixture(scope="module")
def model() -> Model:
    rows = pa.array(np.random.default_rng(0).standard_normal((50, 4)).tolist())
    return raydkm.fit(pa.table({"x": rows}), column="x", clusters=3)


def stream(columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> bytes:
    batch, sink = pa.record_batch(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch, custom_metadata=metadata)
    return sink.getvalue().to_pybytes()


def refusal(body: bytes, kind: str, model: Model) -> tuple[int, str]:
    with pytest.raises(RefusalError) as refused:
        decode(body, kind, model, None, 100)
    return refused.value.status, refused.value.reason


def test_columns_beside_the_vectors_are_left_out(model: Model) -> None:
    rows, _ = decode(stream({"id": pa.array([7, 8]), "x": pa.array([GOOD, GOOD])}), ARROW, model, None, 100)
    assert np.array_equal(rows, [GOOD, GOOD])


def test_dictionaries_that_may_be_compressed_are_refused(model: Model) -> None:
    words = pa.array(["a" * 1000]).dictionary_encode()
    for compression in (None, "zstd"):
        status, reason = refusal(stream({"w": words, "x": pa.array([GOOD])}, compression=compression), ARROW, model)
        assert (status, "dictionary" in reason) == (415, True)


def test_compression_that_the_message_tells_of_is_refused(model: Model) -> None:
    body = stream(
        {"x": pa.array([GOOD])},
        {"ARROW:experimental_compression": "zstd"},
        metadata_version=pa.ipc.MetadataVersion.V4,
    )
    assert refusal(body, ARROW, model)[0] == 415


def test_two_columns_of_the_name_of_the_features_are_refused(model: Model) -> None:
    column = pa.array([GOOD])
    batch, sink = pa.record_batch([column, column], ["x", "x"]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    assert refusal(sink.getvalue().to_pybytes(), ARROW, model)[0] == 400


def test_json_as_large_as_a_request_may_be_is_parsed(model: Model) -> None:
    body = f'{{"vectors": [{",".join(["[1, 2, 3, 4]"] * 100)}], "top": 3}}'.encode()
    assert len(decode(body, JSON, model, None, 100)[0]) == 100
    assert refusal(body.replace(b"[[", b"[[1, 2, 3, 4], ["), JSON, model)[0] == 413
