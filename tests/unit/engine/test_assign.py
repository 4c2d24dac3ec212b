"""An assignment in parts: cut, interrupted, gone on with, refused; its summaries."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raydkm
from raydkm.data import storage
from raydkm.data.files import find_files
from raydkm.data.output import Output
from raydkm.engine import manifest
from raydkm.engine.manifest import cut
from raydkm.engine.tally import QUANTILE_ERROR, QUANTILES, Tally
from raydkm.errors import ConfigError, EngineError, InputError, OutputError
from raydkm.model import Model
from tests.unit.data.dying import Dying, Stopped

ROWS, CLUSTERS = 60_000, 7
OPTIONS = {"column": "z", "keep": ["id"], "range_rows": 4000, "nearest": 3, "top": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path]) -> Path:
    place = tmp_path_factory.mktemp("in")
    z = np.random.default_rng(0).standard_normal((ROWS, 8)).astype(np.float32)
    for number, ids in enumerate(np.split(np.arange(ROWS), [20_000, 50_001])):
        write(place / f"{number}.parquet", row_group_size=1500, z=z[ids], id=ids)
    return place


@pytest.fixture(scope="module")
def model(data: Path) -> Model:
    return raydkm.fit(data, column="z", clusters=CLUSTERS, temperature="0.3Tc", max_steps=5)


@pytest.fixture(scope="module")
def whole(data: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    raydkm.assign(model, data, out=out, threads=1, **OPTIONS)
    return out


def content(out: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(out)): path.read_bytes() if path.is_file() else None for path in out.rglob("*")}


def rows_of(out: Path) -> pa.Table:
    return pa.concat_tables(pq.ParquetFile(path).read() for path in sorted(out.glob("*-*.parquet")))


@given(groups=st.lists(st.integers(0, 50), max_size=30), most=st.integers(1, 60))
def test_ranges_are_of_whole_row_groups_and_hold_every_row_once(groups: list[int], most: int) -> None:
    ranges = list(cut(groups, most))
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == sum(groups)
    edges = set(np.cumsum([0, *groups]).tolist())
    for start, stop in ranges:
        assert {start, stop} <= edges
        assert stop - start <= most or stop - start in groups


def test_any_number_of_threads_writes_the_same_bytes(data: Path, model: Model, whole: Path, tmp_path: Path) -> None:
    raydkm.assign(model, data, out=tmp_path / "out", threads=3, **OPTIONS)
    assert content(tmp_path / "out") == content(whole)


def test_the_manifest_lists_the_outputs_and_the_summary_is_that_of_the_rows(data, model, whole: Path) -> None:
    rows, listed = rows_of(whole), pq.read_table(whole / "_manifest.parquet").to_pylist()
    assert [entry["output"] for entry in listed] == sorted(path.name for path in whole.glob("*-*.parquet"))
    assert len(listed) == 20
    assert all(entry["rows"] == entry["stop"] - entry["start"] <= 4000 for entry in listed)
    clusters, distance = rows["cluster"].to_numpy(), rows["distance"].to_numpy()
    sizes = pq.read_table(whole / "_summary.parquet")
    assert sizes["rows"].to_pylist() == np.bincount(clusters, minlength=CLUSTERS).tolist()
    for number, row in enumerate(sizes.to_pylist()):
        own = clusters == number
        assert row["mean_entropy"] == pytest.approx(rows["entropy"].to_numpy()[own].mean(), rel=1e-5)
        for quantile in QUANTILES:
            exact = np.quantile(distance[own], quantile / 100, method="inverted_cdf")
            assert row[f"distance_q{quantile:02d}"] == pytest.approx(exact, rel=QUANTILE_ERROR)
    summary = json.loads((whole / "_summary.json").read_text())
    assert (summary["rows"], summary["largest"]) == (ROWS, np.bincount(clusters).max())
    exact = np.quantile(distance, 0.5, method="inverted_cdf")
    assert summary["distance_q50"] == pytest.approx(exact, rel=QUANTILE_ERROR)


def test_the_nearest_rows_are_those_of_all_ranges(whole: Path) -> None:
    found, rows = pq.read_table(whole / "_nearest.parquet").to_pydict(), rows_of(whole)
    clusters, distance, ids = (rows[name].to_numpy() for name in ("cluster", "distance", "id"))
    best = np.lexsort((ids, distance, clusters))
    expected = np.concatenate([best[clusters[best] == number][:3] for number in range(CLUSTERS)])
    assert found["id"] == ids[expected].tolist()
    assert found["distance"] == distance[expected].tolist()
    starts = {"0.parquet": 0, "1.parquet": 20_000, "2.parquet": 50_001}
    places = zip(found["file"], found["row"], strict=True)
    assert [starts[file] + row for file, row in places] == found["id"]


def test_clusters_become_directories_with_the_same_rows(data: Path, model: Model, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    raydkm.assign(model, data, out=out, partition_by="cluster", **OPTIONS)
    found = pq.read_table(out, partitioning="hive").sort_by("id")
    assert found["cluster"].to_pylist() == rows_of(whole)["cluster"].to_pylist()
    assert found["id"].to_pylist() == list(range(ROWS))
    listed = pq.read_table(out / "_manifest.parquet")["output"].to_pylist()
    assert sorted(listed) == sorted(str(p.relative_to(out)) for p in out.rglob("cluster=*/*.parquet"))


def test_a_whole_output_is_not_written_again(data: Path, model: Model, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    again = raydkm.assign(model, data, out=whole, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert (again["rows"], again["resumed"]) == (ROWS, 20)


def test_another_job_is_refused_with_the_difference_named(
    data: Path, model: Model, whole: Path, tmp_path: Path
) -> None:
    before = content(whole)
    other = raydkm.fit(data, column="z", clusters=CLUSTERS, max_steps=2)
    for given_model, files, options, told in (
        (model, data, {"top": 3}, r"top 2, now 3"),
        (other, data, {}, r"model \"[0-9a-f]+\", now"),
        (model, [data / "0.parquet", data / "1.parquet"], {}, r"no input 2\.parquet"),
    ):
        with pytest.raises(OutputError, match=told):
            raydkm.assign(given_model, files, out=whole, **OPTIONS | options)
    assert content(whole) == before


def test_a_changed_input_is_refused_and_overwrite_starts_afresh(model, tmp_path: Path, write) -> None:
    z = np.ones((10, 8), dtype=np.float32)
    path, out = write(tmp_path / "x.parquet", z=z), tmp_path / "out"
    raydkm.assign(model, path, out=out, column="z")
    write(path, z=z[:5])
    with pytest.raises(OutputError, match=r"a changed input x\.parquet"):
        raydkm.assign(model, path, out=out, column="z")
    assert raydkm.assign(model, path, out=out, column="z", overwrite=True)["rows"] == 5


@pytest.mark.parametrize("searched", ["", "/**/*.parquet", "/*/*.parquet", "/ou[tx]/**"])
def test_an_output_that_a_search_for_inputs_would_find_is_refused(data: Path, model: Model, searched: str) -> None:
    with pytest.raises(OutputError, match="lies in the input"):
        raydkm.assign(model, f"{data}{searched}", out=data / "out", **OPTIONS)
    assert not (data / "out").exists()


def test_an_output_beside_the_files_of_a_glob_is_no_input(model: Model, tmp_path: Path, write) -> None:
    write(tmp_path / "day=1" / "x.parquet", z=np.ones((10, 8), dtype=np.float32))
    for _ in range(2):
        assert raydkm.assign(model, f"{tmp_path}/day=*/*.parquet", out=tmp_path / "out", column="z")["rows"] == 10


def test_columns_of_two_types_are_not_kept_for_the_nearest(model: Model, tmp_path: Path, write) -> None:
    z = np.ones((10, 8), dtype=np.float32)
    write(tmp_path / "a.parquet", z=z, id=np.arange(10))
    write(tmp_path / "b.parquet", z=z, id=[str(number) for number in range(10)])
    with pytest.raises(InputError, match=r"b\.parquet: column 'id' is string, elsewhere int64"):
        raydkm.assign(model, tmp_path, out=tmp_path.with_name("out"), column="z", keep=["id"], nearest=1)
    with pytest.raises(ConfigError, match="partition_by"):
        raydkm.assign(model, tmp_path, out=tmp_path.with_name("out"), column="z", partition_by="colour")


def test_a_column_kept_for_the_nearest_may_be_required_in_some_files(model: Model, tmp_path: Path, write) -> None:
    z = np.arange(80, dtype=np.float32).reshape(10, 8)
    write(tmp_path / "in" / "a.parquet", z=z, id=np.arange(10))
    write(tmp_path / "in" / "b.parquet", z=z, id=np.arange(10))
    table = pq.read_table(tmp_path / "in" / "a.parquet")
    required = pa.schema([field.with_nullable(field.name != "id") for field in table.schema])
    pq.write_table(table.cast(required), tmp_path / "in" / "a.parquet")
    raydkm.assign(model, tmp_path / "in", out=tmp_path / "out", column="z", keep=["id"], nearest=30)
    assert pq.read_schema(tmp_path / "out" / "_nearest.parquet").field("id").nullable
    assert sorted(pq.read_table(tmp_path / "out" / "_nearest.parquet")["id"].to_pylist()) == sorted([*range(10)] * 2)


def test_many_files_of_partitions_are_warned_of(data, model, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("raydkm.api.assign.MANY_FILES", 20 * CLUSTERS - 1)
    raydkm.assign(model, data, out=tmp_path / "out", **OPTIONS, partition_by="cluster")
    assert f"up to 140 output files: {CLUSTERS} clusters in each of 20 ranges; a larger --range-rows" in caplog.text


def test_what_is_missing_is_done_and_nothing_twice(data, model, whole, tmp_path: Path, monkeypatch) -> None:
    """Also where an output is there without its record, or a record without its output."""
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(manifest.Manifest, "finish", stop)
        with pytest.raises(Stopped):
            raydkm.assign(model, data, out=out, **OPTIONS)
    with pytest.raises(InputError, match="is not complete; run it again"):
        raydkm.evaluate(model, out, label="cluster", column="z")
    (out / "_ranges" / "00000003.parquet").unlink()
    (out / "1-00002.parquet").unlink()
    (out / "_attempt-0123" / "dir").mkdir(parents=True)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*-*.parquet")}
    report = raydkm.assign(model, data, out=out, **OPTIONS)
    assert report["resumed"] == 18
    assert content(out) == content(whole)
    written = [path.name for path, modified in kept.items() if path.stat().st_mtime_ns != modified]
    assert written == ["0-00003.parquet"]


def test_who_outlives_its_run_writes_no_more(data, model, whole: Path, tmp_path: Path) -> None:
    first, second = Output(str(tmp_path / "out")), Output(str(tmp_path / "out"))
    first.begin()
    first.commit("a", b"first")
    second.begin()
    with pytest.raises(OutputError, match="another run has taken it over"):
        first.commit("a", b"late")
    second.end()
    assert second.sizes() == {".raydkm": 0, "a": 5}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".raydkm", "a"]


def test_a_killed_process_leaves_what_the_next_one_completes(data, model, whole, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    out = tmp_path / "out"
    code = f"import raydkm; raydkm.assign({str(tmp_path / 'model')!r}, {str(data)!r}, out={str(out)!r}, **{OPTIONS!r})"
    at = random.randint(0, 14)
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and len(list(out.glob("_ranges/*[0-9].parquet"))) < at:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = raydkm.assign(tmp_path / "model", data, out=out, **OPTIONS)
    assert report["resumed"] >= at
    assert content(out) == content(whole)


def test_ranges_of_two_kinds_of_index_are_no_whole_output(data, model, tmp_path: Path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(manifest.Manifest, "finish", stop)
        with pytest.raises(Stopped):
            raydkm.assign(model, data, out=tmp_path, **OPTIONS)
    path = tmp_path / "_ranges" / "00000004.parquet"
    record = manifest.Record.parse(pa.py_buffer(path.read_bytes()))
    path.write_bytes(replace(record, index=record.index | {"index": "ivf"}).content())
    with pytest.raises(EngineError, match="ranges of indexes flat and ivf"):
        raydkm.assign(model, data, out=tmp_path, **OPTIONS)
    assert not (tmp_path / "_SUCCESS").exists()


def before(patch: pytest.MonkeyPatch, owner: type, name: str, first: Callable[[], object]) -> None:
    """Have the next call of a method do something else first."""
    method = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        patch.setattr(owner, name, method)
        first()
        return method(*arguments, **options)

    patch.setattr(owner, name, call)


def test_a_run_that_begins_while_another_does_looks_again(data, model, whole, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    before(monkeypatch, Output, "claim", lambda: raydkm.assign(model, data, out=out, **OPTIONS))
    with pytest.raises(OutputError, match=r"of another job \(top 2, now 3"):
        raydkm.assign(model, data, out=out, **OPTIONS | {"top": 3})
    assert content(out) == content(whole)


@pytest.mark.parametrize("at", ["claim", "begin", "check_owned", "commit"])
def test_of_two_jobs_that_begin_together_one_wins(data, model, whole, tmp_path: Path, monkeypatch, at: str) -> None:
    """The first to write its manifest; the other one ends with a sentence, and ends no other."""
    out, told = tmp_path / "out", []

    def other() -> None:
        try:
            raydkm.assign(model, data, out=out, **OPTIONS | {"top": 3})
        except OutputError as error:
            told.append(str(error))

    before(monkeypatch, Output, at, other)
    if at == "claim":
        with pytest.raises(OutputError, match=r"of another job \(top 3, now 2"):
            raydkm.assign(model, data, out=out, **OPTIONS)
        assert told == []
        assert "top_clusters" in rows_of(out).column_names
        assert (out / "_SUCCESS").exists()
    else:
        raydkm.assign(model, data, out=out, **OPTIONS)
        assert len(told) == 1
        assert "of another job (top 2, now 3" in told[0]
        assert content(out) == content(whole)


def test_a_claim_on_a_file_system_without_links_is_made_all_the_same(tmp_path: Path, monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    first, second = Output(str(tmp_path / "out")), Output(str(tmp_path / "out"))
    first.claim("a", b"first")
    second.claim("a", b"second")
    assert first.read("a").to_pybytes() == b"first"
    assert first.sizes() == {".raydkm": 0, "a": 5}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".raydkm", "a"]


@pytest.mark.parametrize(("owner", "name"), [(Output, "begin"), (manifest.Manifest, "finish")])
def test_what_another_run_of_the_job_has_completed_is_taken(
    data, model, whole, tmp_path: Path, monkeypatch, owner: type, name: str
) -> None:
    out, reports = tmp_path / "out", []
    before(monkeypatch, owner, name, lambda: reports.append(raydkm.assign(model, data, out=out, **OPTIONS)))
    report = raydkm.assign(model, data, out=out, **OPTIONS)
    assert report["counts"] == reports[0]["counts"]
    assert content(out) == content(whole)


@pytest.mark.parametrize("removed", [0, 1, 2, 10, 24])
def test_what_a_killed_overwrite_leaves_is_no_input(data, model, whole, tmp_path, monkeypatch, removed: int) -> None:
    out, files = tmp_path / "out", Dying()
    files.left = removed
    shutil.copytree(whole, out)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_LOCAL", files)
        with pytest.raises(Stopped):
            raydkm.assign(model, data, out=out, overwrite=True, **OPTIONS)
    if removed:  # before that nothing has happened
        with pytest.raises(InputError, match="is not complete"):
            find_files(out)
    raydkm.assign(model, data, out=out, overwrite=True, **OPTIONS)
    assert content(out) == content(whole)


def test_the_job_is_also_the_scores_and_the_versions(data, tmp_path: Path, monkeypatch) -> None:
    model = raydkm.fit(data, column="z", clusters=3, objective="tim", max_steps=2)
    options = {"column": "z", "out": tmp_path / "out"}
    raydkm.assign(model, data, **options)
    assert raydkm.assign(model, data, reading="p", **options)["resumed"] == 3  # as by default
    of_q = options | {"out": tmp_path / "q", "reading": "q"}
    raydkm.assign(model, data, **of_q)
    other = replace(model, config=model.config.model_copy(update={"l2": 3.0}))
    assert other.checksum() == model.checksum()
    with pytest.raises(OutputError, match="scores"):
        raydkm.assign(other, data, **of_q)
    monkeypatch.setattr("raydkm.engine.assign.version", lambda name: "9")
    with pytest.raises(OutputError, match=r'versions .*now .*"torch": "9"'):
        raydkm.assign(model, data, **options)


def test_tallies_of_parts_are_added_alike_however_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    parts = [
        Tally.of(
            pa.table(
                {
                    "cluster": rng.integers(5, size=200).astype(np.int32),
                    "distance": rng.exponential(size=200).astype(np.float32),
                    "entropy": np.zeros(200, dtype=np.float32),
                }
            )
        )
        for _ in range(20)
    ]
    once = Tally.sum(parts)
    monkeypatch.setattr("raydkm.engine.tally._PENDING_ROWS", 1)
    again = Tally.sum(parts)
    assert (once.keys == again.keys).all()
    assert (once.rows == again.rows).all()
    assert once.rows.sum() == 4000
