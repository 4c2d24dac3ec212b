"""What readers of directories see of an assignment: pyarrow.dataset and DuckDB, which take KEY=value for a column."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raydkm
from raydkm.data.files import output_name
from raydkm.model import Model

ROWS = 200


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def models(x: np.ndarray) -> tuple[Model, Model]:
    options = {"clusters": 5, "objective": "kmeans", "max_steps": 3}
    return raydkm.fit(x, seed=1, **options), raydkm.fit(x, seed=2, **options)


def seen(out: Path, *names: str) -> list[Counter]:
    """Rows of some columns, counted as pyarrow.dataset and DuckDB show them."""
    table = ds.dataset(out, partitioning="hive").to_table(columns=list(names))
    query = f"SELECT {', '.join(names)} FROM read_parquet('{out}/**/[!_]*.parquet', hive_partitioning = true)"
    return [Counter(zip(*table.to_pydict().values(), strict=True)), Counter(duckdb.sql(query).fetchall())]


def wanted(model: Model, x: np.ndarray, ids: np.ndarray) -> Counter:
    nearest = np.square(x[:, None].astype(np.float64) - model.cluster_centers).sum(2).argmin(1)
    return Counter(zip(ids.tolist(), nearest.tolist(), strict=True))


@pytest.mark.parametrize("partition_by", [None, "cluster"])
def test_an_assignment_of_an_assignment_shows_the_new_clusters(
    models, x: np.ndarray, tmp_path: Path, write, partition_by
) -> None:
    write(tmp_path / "in" / "a.parquet", x=x, id=np.arange(ROWS))
    first, second = tmp_path / "first", tmp_path / "second"
    raydkm.assign(models[0], tmp_path / "in", out=first, column="x", keep=["id", "x"], partition_by="cluster")
    assert len(list(first.glob("cluster=*"))) == 5
    raydkm.assign(models[1], first, out=second, column="x", keep=["id"], partition_by=partition_by)
    assert seen(second, "id", "cluster") == [wanted(models[1], x, np.arange(ROWS))] * 2
    old = wanted(models[0], x, np.arange(ROWS))
    assert old != wanted(models[1], x, np.arange(ROWS))  # or this test could not fail


@pytest.mark.parametrize(
    "part", ["cluster=3", "CLUSTER=3", "Distance=7", "id=9", "clus%74er=3", "cluster%3D3", "top_clusters=1", "day=1"]
)
def test_no_part_of_an_input_path_takes_the_place_of_a_column(models, x, tmp_path: Path, write, part: str) -> None:
    write(tmp_path / "in" / part / "a.parquet", x=x[:150], id=np.arange(150))
    write(tmp_path / "in" / f"{part[:-1]}8" / "b.parquet", x=x[150:], id=np.arange(150, ROWS))
    raydkm.assign(models[0], tmp_path / "in", out=tmp_path / "out", column="x", keep=["id"], top=2)
    assert seen(tmp_path / "out", "id", "cluster") == [wanted(models[0], x, np.arange(ROWS))] * 2
    found = ds.dataset(tmp_path / "out", partitioning="hive").to_table()
    assert found["distance"].to_numpy().max() < 6
    assert (tmp_path / "out" / "day=1").exists() == (part == "day=1")


@pytest.mark.parametrize(
    "name", ["_a.parquet", ".a.parquet", "_ranges/00000000.parquet", "_year=2024/a.parquet", ".x/b.pq"]
)
@pytest.mark.parametrize("partition_by", [None, "cluster"])
def test_rows_of_hidden_inputs_are_visible(models, x, tmp_path: Path, write, name: str, partition_by) -> None:
    write(tmp_path / "in" / name, x=x[:150], id=np.arange(150))
    other = name.replace("2024/a", "2025/b") if "=" in name else "b.parquet"  # DuckDB wants KEY=value of all or none
    write(tmp_path / "in" / other, x=x[150:], id=np.arange(150, ROWS))
    inputs = [tmp_path / "in" / name, tmp_path / "in" / other]
    raydkm.assign(models[0], inputs, out=tmp_path / "out", column="x", keep=["id"], partition_by=partition_by)
    assert seen(tmp_path / "out", "id", "cluster") == [wanted(models[0], x, np.arange(ROWS))] * 2
    listed = pq.read_table(tmp_path / "out" / "_manifest.parquet")
    assert all((tmp_path / "out" / output).exists() for output in listed["output"].to_pylist())
    assert sorted(set(listed["file"].to_pylist())) == sorted([name, other])


def test_an_output_in_a_partition_of_its_column_is_warned_of(models, x, tmp_path: Path, write, caplog) -> None:
    write(tmp_path / "a.parquet", x=x)
    for place, warned in (("day=1", False), ("Cluster=1", True)):
        caplog.clear()
        raydkm.assign(models[0], tmp_path / "a.parquet", out=tmp_path / place / "out", column="x")
        assert ("readers such as DuckDB take that for its column" in caplog.text) == warned


PARTS = st.sampled_from(["a", "_", ".", "%", "=", "%25", "%3D", "%5F", "cluster", "CLUSTER", "day", "3"])
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=5).map("".join), min_size=1, max_size=3).map("/".join)


@given(NAMES, NAMES)
def test_output_names_are_visible_and_differ(one: str, other: str) -> None:
    names = [output_name(name, ["cluster", "distance"]) for name in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    for part in names[0].split("/"):
        assert not part.startswith(("_", "."))
        assert not part.lower().startswith("cluster=")


@given(st.text(st.characters(blacklist_characters="/_.=%"), min_size=1))
def test_plain_names_stay_as_they_are(name: str) -> None:
    assert output_name(f"day=1/{name}", ["cluster"]) == f"day=1/{name}"
