"""Columns that are kept: of any type that can be, of more bytes than one array holds, or refused before any work."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import raydkm
from raydkm.data import parquet, rows
from raydkm.engine import assign as engine
from raydkm.errors import InputError
from raydkm.model import Model

ROWS = 9_000


@pytest.fixture(scope="module")
def z() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model(z: np.ndarray) -> Model:
    return raydkm.fit(z, clusters=6, objective="kmeans", max_steps=3)


def docs(count: int = ROWS) -> pa.Array:
    kind = pa.struct([("text", pa.string()), ("parts", pa.list_(pa.binary()))])
    return pa.array([{"text": f"row {i}", "parts": [b"x" * (i % 90), b"y"]} for i in range(count)], kind)


KEPT = {
    "structs": docs(),
    "binaries": pa.array([b"b" * (i % 70) for i in range(ROWS)]),
    "lists": pa.array([[i, i + 1][: i % 3] for i in range(ROWS)]),
    "views": pa.array([f"view {i}" for i in range(ROWS)]),
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("partition_by", [None, "cluster"])
def test_rows_of_many_bytes_are_put_together_in_pieces(
    z, model, tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch, kept: str, partition_by: str | None
) -> None:
    """As 2 GiB and more are, with bounds of a few kilobytes; a piece that is too large all the same is halved."""
    write(tmp_path / "in.parquet", row_group_size=3_500, z=z, id=np.arange(ROWS), kept=KEPT[kept])
    options = {"column": "z", "keep": ["id", "kept"], "nearest": 40, "partition_by": partition_by}
    raydkm.assign(model, tmp_path / "in.parquet", out=tmp_path / "plain", **options)
    most, bytes_held = 60_000, []
    for module, name, value in (
        *((each, "PIECE_BYTES", most // 4) for each in (rows, engine)),
        *((rows, "LARGEST_PIECE_BYTES", most), (parquet, "READ_BYTES", most)),
    ):
        monkeypatch.setattr(module, name, value)
    whole = pa.concat_batches

    def concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
        bytes_held.append(sum(batch.nbytes for batch in batches))
        return whole(batches)

    monkeypatch.setattr(pa, "concat_batches", concat)
    for name in ("bounded", "again"):
        raydkm.assign(model, tmp_path / "in.parquet", out=tmp_path / name, threads=2, **options)
    assert bytes_held
    assert max(bytes_held) <= most
    tables = [
        ds.dataset(tmp_path / name, partitioning="hive").to_table().sort_by("id") for name in ("plain", "bounded")
    ]
    assert tables[0].equals(tables[1])
    assert tables[0]["kept"].combine_chunks().equals(KEPT[kept])
    query = f"SELECT count(*), count(DISTINCT id) FROM read_parquet('{tmp_path}/bounded/**/[!_]*.parquet')"
    assert duckdb.sql(query).fetchall() == [(ROWS, ROWS)]
    nearest = [pq.read_table(tmp_path / name / "_nearest.parquet") for name in ("plain", "bounded")]
    assert nearest[0].equals(nearest[1])
    assert len(nearest[0]) == 240
    for path in (tmp_path / "bounded").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "bounded")).read_bytes()


def test_rows_are_taken_in_any_order_from_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PIECE_BYTES", 2_000)
    monkeypatch.setattr(rows, "LARGEST_PIECE_BYTES", 3_000)
    rng = np.random.default_rng(0)
    table = pa.table({"doc": docs(500), "id": np.arange(500)})
    cuts = [0, 0, *sorted(rng.integers(0, 500, 20)), 500]
    chunked = pa.concat_tables(table.slice(a, b - a) for a, b in pairwise(cuts))
    for order in (rng.permutation(500), np.arange(0), rng.integers(0, 500, 700), np.full(300, 89)):
        assert rows.take(chunked, order).combine_chunks().equals(table.take(pa.array(order)).combine_chunks())


def test_nested_rows_that_arrow_cannot_read_at_once_are_read_in_smaller_parts(
    z, tmp_path: Path, write, monkeypatch
) -> None:
    write(tmp_path / "x.parquet", z=z)
    sizes, iterate = [], pq.ParquetFile.iter_batches

    def refusing(self: pq.ParquetFile, batch_size: int, **options: object) -> object:
        for number, batch in enumerate(iterate(self, batch_size, **options)):
            sizes.append(batch_size)
            if batch_size > 100 and number == 2:
                raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", refusing)
    found = pa.Table.from_batches(parquet.scan_file(str(tmp_path / "x.parquet"), ["z"], at_once=500))
    np.testing.assert_array_equal(found["z"].combine_chunks().flatten().to_numpy().reshape(-1, 3), z)
    assert sorted(set(sizes)) == [62, 500]


def dictionaries(prefix: str) -> pa.Array:
    values = pa.array([f"{prefix}{number}" for number in range(100)])
    return pa.DictionaryArray.from_arrays(pa.array(np.arange(3_000) % 100, pa.int8()), values)


@pytest.mark.parametrize("partition_by", [None, "cluster"])
@pytest.mark.parametrize("files", [1, 2])
def test_dictionaries_that_together_outgrow_their_index_are_kept_as_values(
    z, model, tmp_path: Path, write, partition_by, files: int
) -> None:
    (tmp_path / "in").mkdir()
    parts = [
        pa.table({"z": z[:3000].tolist(), "id": np.arange(3000) + 3000 * n, "kept": dictionaries("vw"[n])})
        for n in (0, 1)
    ]
    if files == 1:
        with pq.ParquetWriter(tmp_path / "in" / "a.parquet", parts[0].schema) as writer:
            for part in parts:
                writer.write_table(part)
    else:
        for number, part in enumerate(parts):
            pq.write_table(part, tmp_path / "in" / f"{number}.parquet")
    options = {"column": "z", "keep": ["id", "kept"], "nearest": 10_000, "partition_by": partition_by}
    raydkm.assign(model, tmp_path / "in", out=tmp_path / "out", **options)
    expected = [value for part in parts for value in part["kept"].to_pylist()]
    for path in (tmp_path / "out", tmp_path / "out" / "_nearest.parquet"):
        found = ds.dataset(path, partitioning="hive").to_table().sort_by("id")
        assert found["kept"].type == pa.string()
        assert found["kept"].to_pylist() == expected


def test_string_views_are_kept_as_strings(z, model, tmp_path: Path, write) -> None:
    kept = pa.array([f"row {number}" for number in range(ROWS)]).cast(pa.string_view())
    write(tmp_path / "in.parquet", z=z, id=np.arange(ROWS), kept=kept)
    assert pq.read_schema(tmp_path / "in.parquet").field("kept").type == pa.string_view()
    options = {"column": "z", "keep": ["id", "kept"], "nearest": 5, "partition_by": "cluster"}
    raydkm.assign(model, tmp_path / "in.parquet", out=tmp_path / "out", **options)
    found = ds.dataset(tmp_path / "out", partitioning="hive").to_table().sort_by("id")
    assert found["kept"].to_pylist() == kept.to_pylist()


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("a", pa.dictionary(pa.int8(), pa.string()))]),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.list_(pa.string_view()),
        pa.struct([("a", pa.list_(pa.binary_view()))]),
    ],
)
def test_what_cannot_be_kept_is_refused_before_any_work(z, model, tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"z": z[:10].tolist(), "kept": pa.nulls(10, kind)}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet: column 'kept' is .*, which cannot be kept: cast"):
        raydkm.assign(model, tmp_path / "in.parquet", out=tmp_path / "out", column="z", keep=["kept"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("column", "keep"), [("z", []), ("x", ["z"])])
def test_a_column_that_is_there_twice_is_refused(z, model, tmp_path: Path, column: str, keep: list[str]) -> None:
    rows = pa.array(z[:10].tolist())
    table = pa.Table.from_arrays([rows, rows, rows], names=["z", "x", "z"])
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet: 2 columns are called 'z'"):
        raydkm.assign(model, tmp_path / "in.parquet", out=tmp_path / "out", column=column, keep=keep)
    with pytest.raises(InputError, match="2 columns are called 'z'"):
        raydkm.fit(tmp_path / "in.parquet", column="z", clusters=2)
    with pytest.raises(InputError, match="the table: 2 columns are called 'z'"):
        raydkm.fit(table, column="z", clusters=2)
