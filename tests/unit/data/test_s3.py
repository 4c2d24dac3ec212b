"""Rows, checkpoints and events in an object store, over the S3 protocol, with reads that fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

import raydkm
import raydkm.api.assign as assign_module
from raydkm.data import storage
from raydkm.data.files import find_files, relative_names
from raydkm.data.storage import locate
from raydkm.engine.manifest import Manifest
from raydkm.errors import ConfigError, EngineError, InputError, OutputError
from tests.s3_server import S3Server

OPTIONS = {"column": "z", "clusters": 5, "max_steps": 10}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rows") / "rows"
    directory.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        x = rng.standard_normal((3000, 4)).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 4)
        pq.write_table(pa.table({"z": column}), directory / f"{name}.parquet", row_group_size=1000)
    return directory


@pytest.fixture(scope="module")
def server(local: Path) -> Iterator[S3Server]:
    with S3Server() as started:
        for path in local.iterdir():
            started.put(f"rows/{path.name}", path.read_bytes())
        started.put("rows/_hidden/d.parquet", b"")
        yield started


@pytest.fixture
def s3(server: S3Server) -> S3Server:
    server.clear()
    return server


def test_directories_globs_and_files_are_found_by_uri(s3: S3Server) -> None:
    names = find_files(s3.uri("rows"))
    assert [locate(name)[1] for name in names] == [f"bucket/rows/{name}.parquet" for name in "abc"]
    assert relative_names(names) == ["a.parquet", "b.parquet", "c.parquet"]
    assert find_files(s3.uri("rows/*.parquet").replace("%2A", "*")) == names
    assert find_files([s3.uri("rows/b.parquet"), s3.uri("rows/a.parquet")]) == names[:2]
    with pytest.raises(InputError, match="named twice"):
        find_files([s3.uri("rows"), s3.uri("rows/a.parquet")])
    with pytest.raises(InputError, match=r"no-rows.*: no such file or directory"):
        find_files(s3.uri("no-rows"))


def test_file_uris_are_local_files(local: Path) -> None:
    assert raydkm.fit(f"file://{local}", **OPTIONS).checksum() == raydkm.fit(local, **OPTIONS).checksum()


@pytest.mark.parametrize("uri", ["nowhere://bucket/x", "s3://bucket/x?no_such_option=1"])
def test_a_uri_that_names_no_storage_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=uri[:8]):
        raydkm.fit(uri, **OPTIONS)
    with pytest.raises(ConfigError, match="run_dir"):
        raydkm.fit(np.ones((10, 2)), clusters=2, run_dir=uri)


@pytest.mark.parametrize("cache", ["host", pytest.param("stream", marks=pytest.mark.long)])
def test_reads_that_fail_or_break_off_are_tried_again_where_they_were(
    s3: S3Server, local: Path, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The S3 client tries 31 times itself; what is over needs another attempt of ours."""
    s3.fail("a.parquet", status=500, times=40)
    s3.cut("b.parquet", after=100, times=3)
    s3.fail("c.parquet", status=503, times=1)
    options = OPTIONS | {"cache": cache, "max_steps": 3}
    assert raydkm.fit(s3.uri("rows"), **options).checksum() == raydkm.fit(local, **options).checksum()
    assert caplog.text.count("trying again") >= 1
    assert all(fault.times == 0 for fault in s3.app.faults)


def test_a_read_that_always_fails_ends_the_fit_with_the_file_named(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    names = find_files(s3.uri("rows"))
    s3.fail("b.parquet", status=500, times=None)
    with pytest.raises(InputError, match=r"rows/b\.parquet\?.*: cannot be read, after 2 attempts \(.*AWS Error"):
        raydkm.fit(names, **OPTIONS)


def test_what_is_not_parquet_is_refused_at_once(s3: S3Server) -> None:
    s3.put("bad/x.parquet", b"no parquet at all")
    s3.app.reads.clear()
    with pytest.raises(InputError, match=r"bad/x\.parquet\?.*: not a readable Parquet file"):
        raydkm.fit(s3.uri("bad/x.parquet"), **OPTIONS)
    assert len(s3.app.reads) == 1


def test_checkpoints_and_events_live_in_an_object_store(s3: S3Server, local: Path) -> None:
    run = {"run_dir": s3.uri("run"), "checkpoint_every": 0}
    raydkm.fit(local, **OPTIONS | {"max_steps": 2, "tol": 0}, **run)
    resumed = raydkm.fit(local, **OPTIONS | {"tol": 0}, **run)
    assert resumed.checksum() == raydkm.fit(local, **OPTIONS | {"tol": 0}).checksum()
    files, path = locate(s3.uri("run/events.jsonl"))
    with files.open_input_stream(path) as stream:
        events = [json.loads(line) for line in stream.read().splitlines()]
    assert [event["resumed_step"] for event in events if event["event"] == "run"] == [0, 2]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, *range(3, 11)]


@pytest.mark.long
def test_a_checkpoint_that_the_storage_does_not_deliver_is_not_taken_for_none(
    s3: S3Server, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    run = {"run_dir": s3.uri("kept")}
    raydkm.fit(local, **OPTIONS, **run)
    s3.fail("checkpoint", status=500, times=None)
    with pytest.raises(EngineError, match=r"the checkpoint of this run: .*: cannot be read, after 2 attempts"):
        raydkm.fit(local, **OPTIONS, **run)


def test_assignments_of_an_object_store_have_the_names_of_its_files(s3: S3Server, local: Path, tmp_path: Path) -> None:
    model = raydkm.fit(local, **OPTIONS)
    raydkm.assign(model, s3.uri("rows"), out=tmp_path / "there")
    raydkm.assign(model, local, out=tmp_path / "here")
    for name in ("a-00000.parquet", "b-00000.parquet", "c-00000.parquet"):
        assert pq.read_table(BytesIO((tmp_path / "there" / name).read_bytes())).equals(
            pq.read_table(tmp_path / "here" / name)
        )


def test_assignments_are_written_to_an_object_store_and_gone_on_with(s3: S3Server, local: Path, tmp_path: Path) -> None:
    model = raydkm.fit(local, **OPTIONS)
    options = {"range_rows": 1000, "nearest": 2}
    whole = raydkm.assign(model, local, out=tmp_path / "here", **options)
    out = s3.uri("assigned")
    raydkm.assign(model, local, out=out, **options)
    assert bytes_in(out) == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    with pytest.raises(OutputError, match="nearest 2, now 3"):
        raydkm.assign(model, local, out=out, **options | {"nearest": 3})
    files, root = locate(out)
    for name in ("_SUCCESS", "b-00001.parquet"):
        files.delete_file(f"{root}/{name}")
    with pytest.raises(InputError, match="is not complete"):
        find_files(out)
    assert raydkm.assign(model, local, out=out, **options)["distance_q50"] == whole["distance_q50"]
    assert bytes_in(out) == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    raydkm.assign(model, local / "a.parquet", out=out, overwrite=True)
    assert len([name for name in bytes_in(out) if not name.startswith(("_", "."))]) == 1
    s3.put("mine/thesis.txt", b"mine")
    with pytest.raises(OutputError, match="not written by raydkm"):
        raydkm.assign(model, local, out=s3.uri("mine"), overwrite=True)


@pytest.mark.parametrize("other", [{"nearest": 2}, {"nearest": 3, "overwrite": True}])
def test_in_an_object_store_the_later_of_two_runs_goes_on_and_the_other_ends(
    s3: S3Server, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    model = raydkm.fit(local, **OPTIONS)
    options, out = {"range_rows": 1000, "nearest": 2}, s3.uri(f"two-{len(other)}")
    raydkm.assign(model, local, out=tmp_path / "here", **options | other)
    done = assign_module.assign_range

    def late(assigner: Any, task: Any, each: Any, *rest: Any) -> None:
        if each.number == 4:
            monkeypatch.setattr(assign_module, "assign_range", done)
            raydkm.assign(model, local, out=out, **options | other)
        done(assigner, task, each, *rest)

    monkeypatch.setattr(assign_module, "assign_range", late)
    with pytest.raises(OutputError, match="another run has taken it over"):
        raydkm.assign(model, local, out=out, **options)
    assert bytes_in(out) == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}


def test_what_another_run_has_completed_in_an_object_store_is_taken(
    s3: S3Server, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = raydkm.fit(local, **OPTIONS), s3.uri("both")
    raydkm.assign(model, local, out=tmp_path / "here")
    finish = Manifest.finish

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(Manifest, "finish", finish)
        raydkm.assign(model, local, out=out)
        return finish(*arguments)

    monkeypatch.setattr(Manifest, "finish", late)
    assert raydkm.assign(model, local, out=out)["rows"] == 9000
    assert bytes_in(out) == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}


def bytes_in(uri: str) -> dict[str, bytes]:
    files, root = locate(uri)
    found = [info.path for info in files.get_file_info(fs.FileSelector(root, recursive=True)) if info.is_file]
    return {path.rpartition("/")[2]: files.open_input_file(path).read() for path in found}
