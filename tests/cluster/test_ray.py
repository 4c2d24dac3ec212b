"""The Ray engine gives what the local one gives: the same bits, the same refusals, the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import torch

import raydkm
from raydkm.engine import ray_train
from raydkm.engine.ray_train import row_range
from raydkm.errors import ConfigError, EngineError, InputError
from raydkm.ops.batch import BATCH_ROWS

pytestmark = pytest.mark.timeout(120)

ROWS, DIM = 3 * BATCH_ROWS + 100, 16


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, DIM)) * 4
    return (centers[rng.integers(6, size=ROWS)] + rng.normal(size=(ROWS, DIM))).astype(np.float16)


@pytest.fixture(scope="module")
def shards(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of unlike sizes and dtypes, of which no file or row group ends where a batch does."""
    place = tmp_path_factory.mktemp("shards")
    weight = np.random.default_rng(1).uniform(0.5, 2, size=ROWS)
    for number, rows in enumerate(np.split(np.arange(ROWS), [1000, 6001])):
        values = vectors[rows].astype(np.float32) if number == 1 else vectors[rows]
        table = pa.table({"id": rows, "z": vector_column(values), "w": weight[rows]})
        pq.write_table(table, place / f"{number}.parquet", row_group_size=700)
    return place


def vector_column(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), DIM)


OPTIONS = {
    "kmeans": {"objective": "kmeans", "metric": "cosine"},
    "sr-kmeans": {"objective": "sr-kmeans", "weight": "w"},
    "balanced soft-kmeans": {"objective": "soft-kmeans", "balance": 0.5},
    "sinkhorn": {"objective": "sinkhorn"},
}


@pytest.mark.parametrize(
    ("name", "workers"), [("kmeans", 1), ("sr-kmeans", 2), ("balanced soft-kmeans", 3), ("sinkhorn", 2)]
)
def test_any_number_of_workers_gives_the_bits_of_the_local_engine(shards: Path, name: str, workers: int) -> None:
    options = {"column": "z", "clusters": 6, "seed": 3, "seed_rows": 5000, "max_steps": 15, **OPTIONS[name]}
    local = raydkm.fit(shards, engine="local", **options)
    on_ray = raydkm.fit(shards, engine="ray", workers=workers, cache="disk" if workers == 3 else "host", **options)
    assert on_ray.record["workers"] == workers
    assert on_ray.checksum() == local.checksum()
    assert [entry["objective"] for entry in on_ray.history] == [entry["objective"] for entry in local.history]
    assert on_ray.record["fingerprint"] == local.record["fingerprint"]


@pytest.mark.parametrize("cache", ["auto", "stream"])
def test_a_data_set_is_fitted_on_every_row_and_agrees_with_its_files(
    shards: Path, vectors: np.ndarray, tmp_path: Path, cache: str
) -> None:
    """A pipeline that has not run, and with "auto" runs once; its rows are not divisible by three."""
    options = {"column": "z", "clusters": 6, "objective": "kmeans", "tol": 0, "weight": "w", "max_steps": 5}
    local = raydkm.fit(shards, engine="local", **options)
    weight = pq.read_table(shards, columns=["w"])["w"]
    table = pa.table({"unused": weight, "z": vector_column(vectors), "w": weight})
    blocks = ray.data.from_arrow([table.slice(0, 9000), table.slice(9000)])
    data = blocks.map_batches(Passing(tmp_path), batch_format="pyarrow", batch_size=None)
    on_ray = raydkm.fit(data, workers=3, cache=cache, **options)
    assert on_ray.record["rows"] == ROWS
    assert on_ray.record["fingerprint"] == local.record["fingerprint"]
    torch.testing.assert_close(on_ray.prototypes, local.prototypes, rtol=1e-6, atol=1e-6)
    if cache == "auto":
        seen = [int(path.name.split("-")[0]) for path in tmp_path.iterdir()]
        assert sum(seen) == ROWS  # each row went through the pipeline once


class Passing:
    """A step of somebody's pipeline, which leaves a file for each block that goes through it."""

    def __init__(self, place: Path):
        self._place = place

    def __call__(self, table: pa.Table) -> pa.Table:
        (self._place / f"{table.num_rows}-{uuid.uuid4().hex}").touch()
        return table


def test_a_data_set_with_a_bad_row_is_refused(vectors: np.ndarray) -> None:
    bad = vectors.copy()
    bad[5000, 3] = np.inf
    data = ray.data.from_arrow(pa.table({"z": vector_column(bad)}))
    with pytest.raises(InputError, match=r"the data set \(this worker's part\): row .*, column 'z': an infinite value"):
        raydkm.fit(data, column="z", clusters=6, workers=2)


def test_a_frame_with_a_column_of_arrays_is_fitted(vectors: np.ndarray) -> None:
    pandas = pytest.importorskip("pandas")
    data = ray.data.from_pandas(pandas.DataFrame({"z": list(vectors.astype(np.float32)[:500])}))
    model = raydkm.fit(data, column="z", clusters=6, workers=1, max_steps=2)
    assert (model.record["rows"], model.dim) == (500, DIM)


@pytest.mark.parametrize("cache", ["auto", "stream"])
def test_the_error_of_a_users_function_is_told(vectors: np.ndarray, cache: str) -> None:
    def failing(batch: object) -> object:
        raise KeyError("no such\nword")

    data = ray.data.from_arrow(pa.table({"z": vector_column(vectors[:100])})).map_batches(failing)
    with pytest.raises(InputError, match=r"^a function of the data set failed: KeyError: 'no such\\nword'$"):
        raydkm.fit(data, column="z", clusters=6, workers=1, cache=cache)


def test_no_worker_is_left_without_rows(vectors: np.ndarray, tmp_path: Path) -> None:
    pq.write_table(pa.table({"z": vector_column(vectors[: BATCH_ROWS + 1])}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"z": vector_column(vectors[:BATCH_ROWS])}), tmp_path / "y.parquet")
    options = {"column": "z", "clusters": 2, "max_steps": 2, "engine": "ray", "workers": 2}
    assert raydkm.fit(tmp_path / "x.parquet", **options).record["workers"] == 2
    assert raydkm.fit(tmp_path / "y.parquet", **options).record["workers"] == 1


def test_a_refusal_is_told_at_once_though_the_data_set_exceeds_the_object_store() -> None:
    """Ray Data hands blocks out in turn: a worker that stopped taking them would keep the others from theirs."""

    def vectors_of(batch: dict[str, np.ndarray]) -> pa.Table:
        values = np.ones((len(batch["id"]), 256), dtype=np.float32)
        values[batch["id"] == 0] = np.nan
        return pa.table({"z": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 256)})

    rows = 6_000_000  # 6 GB, in a store of 0.2
    data = ray.data.range(rows, override_num_blocks=200).map_batches(vectors_of, batch_size=None)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"row 0, column 'z': NaN"):
        raydkm.fit(data, column="z", clusters=6, workers=2, timeout=50, max_failures=0)
    assert time.monotonic() - began < 50


def test_what_one_worker_refuses_is_refused_with_its_file_and_row(shards: Path, tmp_path: Path) -> None:
    for path in shards.iterdir():
        table = pq.read_table(path)
        if path.name == "2.parquet":
            values = table["z"].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
            values[4000 * DIM + 5] = np.nan
            table = table.set_column(1, "z", vector_column(values))
        pq.write_table(table, tmp_path / path.name)
    out = tmp_path / "model"
    with pytest.raises(InputError, match=r"2\.parquet: row 4000, column 'z': NaN"):
        raydkm.fit(tmp_path, column="z", clusters=6, engine="ray", workers=2, out=out)
    assert not out.exists()


def test_more_workers_than_the_cluster_has_cpus_are_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match="99 workers"):
        raydkm.fit(shards, column="z", clusters=6, engine="ray", workers=99)


def test_assignment_on_ray_writes_the_bytes_of_the_local_engine(shards: Path, tmp_path: Path) -> None:
    model = raydkm.fit(shards, column="z", clusters=6, balance=0.3)
    written = {}
    for engine in ("local", "ray"):
        out = tmp_path / engine
        summary = raydkm.assign(model, shards, out=out, keep=["id"], top=2, engine=engine, threads=1)
        assert summary["rows"] == ROWS
        written[engine] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    assert [f"{number}-00000.parquet" for number in range(3)] == [
        name for name in written["local"] if name[0] not in "._"
    ]
    assert written["local"] == written["ray"]


def test_assignment_on_ray_refuses_bad_rows(shards: Path, tmp_path: Path) -> None:
    model = raydkm.fit(shards, column="z", clusters=6)
    bad = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"z": pa.array([[1.0] * DIM, [float("inf")] * DIM])}), bad)
    with pytest.raises(InputError, match=r"bad\.parquet: row 1, column 'z': an infinite value"):
        raydkm.assign(model, [shards, bad], out=tmp_path / "out", engine="ray")
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_cluster_that_is_no_more_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was killed leaves its address in a file, and Ray would try for minutes to reach it."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_train._address() == "local"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert ray_train._address() == "local"
    running = ray.get_runtime_context().gcs_address
    (tmp_path / "ray" / "ray_current_cluster").write_text(running)
    assert ray_train._address() == running
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(EngineError, match=r"no Ray cluster answers at RAY_ADDRESS 127\.0\.0\.1:1"):
        ray_train._address()


def test_row_ranges_cover_every_row_once_between_batches() -> None:
    for rows in (1, BATCH_ROWS, 10 * BATCH_ROWS + 1):
        for world_size in (1, 2, 3, 16):
            ranges = [row_range(rows, rank, world_size) for rank in range(world_size)]
            assert (ranges[0][0], ranges[-1][1]) == (0, rows)
            for (_, stop), (start, _) in pairwise(ranges):
                assert stop == start
                assert stop % BATCH_ROWS == 0 or stop == rows


def test_the_jobs_fit_and_assign_on_the_connected_cluster(shards: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    jobs = Path(__file__).parents[2] / "jobs"

    def job(*arguments: str) -> dict:
        done = subprocess.run(
            [sys.executable, *arguments, "--json"], env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    model = str(tmp_path / "model")
    fitted = job(str(jobs / "fit.py"), str(shards), "--column", "z", "--clusters", "6", "--out", model)
    assert fitted["rows"] == ROWS
    assert raydkm.load(model).record["engine"] == "ray"
    assigned = job(str(jobs / "assign.py"), model, str(shards), "--out", str(tmp_path / "assigned"))
    assert assigned["rows"] == ROWS
