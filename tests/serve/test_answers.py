"""What the service answers is what the model says."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raydkm
from tests.serve.conftest import ADMIN, DIM, Running

FIELDS = ("clusters", "posteriors", "distance", "entropy")


def rows_of(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


@pytest.mark.parametrize("top", [None, 1, 5])
def test_answers_are_those_of_a_batch_assignment_bit_for_bit(
    service: Running, tmp_path: Path, write: Callable[..., Path], top: int | None
) -> None:
    rows = rows_of(1024)
    source = write(tmp_path / "x.parquet", x=rows)
    model = service.models / "first"
    raydkm.assign(model, source, column="x", top=top, out=tmp_path / "out", engine="local", threads=1)
    expected = pq.read_table(tmp_path / "out")
    with service.client() as client:
        found = client.assign_table(rows, top)
        assert client.model == raydkm.load(service.models / "first").checksum()
    assert found.equals(expected)
    assert found.schema.equals(expected.schema)


@given(cuts=st.lists(st.integers(1, 99), max_size=12, unique=True))
@settings(max_examples=10)
def test_no_answer_depends_on_which_vectors_come_together(service: Running, cuts: list[int]) -> None:
    rows = rows_of(100)
    parts = np.split(rows, sorted(cuts))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: service.client().assign(part, 3), parts))
    with service.client() as client:
        whole = client.assign(rows, 3)
    for name in FIELDS:
        assert np.array_equal(np.concatenate([getattr(part, name) for part in found]), getattr(whole, name))


def test_json_npy_and_arrow_have_the_same_answer(service: Running, tmp_path: Path) -> None:
    rows = rows_of(7)
    with service.client() as client:
        expected = client.assign(rows, 2)
    np.save(tmp_path / "rows.npy", np.asfortranarray(rows))
    by_json = json.dumps({"vectors": rows.tolist(), "top": 2})
    of_json = service.send("POST", "/v1/assign", by_json, content_type="application/json")
    of_npy = service.send(
        "POST", "/v1/assign?top=2", (tmp_path / "rows.npy").read_bytes(), content_type="application/x-npy"
    )
    for status, reply, _ in (of_json, of_npy):
        assert status == 200, reply
        assert np.array_equal(reply["cluster"], expected.clusters[:, 0])
        assert np.array_equal(reply["top_clusters"], expected.clusters)
        assert np.array_equal(np.float32(reply["top_posteriors"]), expected.posteriors)
        assert np.array_equal(np.float32(reply["distance"]), expected.distance)
        assert np.array_equal(np.float32(reply["entropy"]), expected.entropy)


def test_the_column_of_the_fit_is_found_among_others(service: Running) -> None:
    table = pa.table({"id": [1, 2], "x": rows_of(2).tolist()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    status, reply, _ = service.send(
        "POST", "/v1/assign", sink.getvalue().to_pybytes(), content_type="application/vnd.apache.arrow.stream"
    )
    assert status == 422  # an array was fitted: no column has a name
    assert "name the feature column" in reply["error"]


def test_the_report_and_probes(service: Running) -> None:
    with service.client() as client:
        told = client.describe()
    model = raydkm.load(service.models / told["name"])
    assert told["model"] == model.checksum()
    assert told["counts"] == model.counts.tolist()
    assert (told["clusters"], told["dim"], told["rows"]) == (12, DIM, 500)
    assert service.send("GET", "/healthz", token=None)[0] == 200
    status, reply, _ = service.send("GET", "/readyz", token=None)
    assert (status, reply["model"]) == (200, model.checksum())


def test_prometheus_metrics(service: Running) -> None:
    with service.client() as client:
        client.assign(rows_of(3))
    text = b"".join(service.send("GET", "/metrics")[1]["text"] for _ in range(8)).decode()
    for name in ("raydkm_requests_total", "raydkm_batch_vectors_bucket", "raydkm_waiting_vectors", "raydkm_model"):
        assert f"\n{name}{{" in text
    assert 'route="/v1/assign",status="200"' in text


def test_a_model_is_reloaded_in_all_replicas_and_no_answer_is_lost_or_of_another_model(service: Running) -> None:
    rows = rows_of(64)
    models = {m.checksum(): m for m in (raydkm.load(service.models / name) for name in ("first", "second"))}
    expected = {checksum: model.assign(rows).clusters for checksum, model in models.items()}
    wanted = ["second", "first"]
    with service.client(ADMIN) as admin, ThreadPoolExecutor(2) as pool:
        for name in wanted:
            target = raydkm.load(service.models / name).checksum()

            def until_all_agree(target: str = target) -> int:
                streak = answers = 0
                with service.client() as client:
                    while streak < 20:  # two replicas answer by chance
                        found = client.assign(rows)
                        assert np.array_equal(found.clusters, expected[str(client.model)])
                        streak = streak + 1 if client.model == target else 0
                        answers += 1
                return answers

            running = [pool.submit(until_all_agree) for _ in range(2)]
            told = admin.reload(name)
            assert (told["name"], told["model"]) == (name, target)
            assert all(task.result(timeout=60) >= 20 for task in running)
