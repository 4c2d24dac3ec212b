"""Searches pass over nothing that may hold rows without a word, and read no table of which a log tells the rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from raydkm.data.files import find_files
from raydkm.errors import InputError
from tests.s3_server import S3Server

TABLE = pa.table({"x": [1.0, 2.0, 3.0]})


def put(path: Path, content: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        pq.write_table(TABLE, path)
    else:
        path.write_bytes(content)


def found(root: Path, item: str = "") -> list[str]:
    return [os.path.relpath(name, root) for name in find_files(f"{root}/{item}" if item else root)]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "raydkm")
    return lambda: [record.getMessage() for record in caplog.records]


# Endings


@pytest.mark.parametrize(
    "name", ["a.PARQUET", "a.pq", "a.parq", "a.parquet.gzip", "a.snappy.parquet", "part-0", "a.v2"]
)
def test_a_parquet_file_is_read_whatever_its_name_ends_in(tmp_path: Path, log, name: str) -> None:
    put(tmp_path / "in" / name)
    put(tmp_path / "in" / "b.parquet")
    assert found(tmp_path, "in") == sorted([f"in/{name}", "in/b.parquet"])
    assert found(tmp_path, "*") == sorted([f"in/{name}", "in/b.parquet"])
    assert log() == []


@pytest.mark.parametrize("name", ["a.PARQUET", "a.parquet.gz"])
def test_what_a_name_calls_parquet_is_never_skipped(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, b"\x1f\x8b\x08 compressed as a whole")
    assert found(tmp_path) == [name]  # and refused when its footer is read


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("note.txt", "of other kinds"),
        ("a.parquet.md5", "of other kinds"),
        ("_temporary/0/part.parquet", "hidden"),
        (".staging/part.parquet", "hidden"),
        ("_part.parquet", "hidden"),
    ],
)
@pytest.mark.parametrize("item", ["in", "i*", "**/*.parquet"])
def test_what_is_skipped_is_named_with_a_count(tmp_path: Path, log, name: str, what: str, item: str) -> None:
    put(tmp_path / "in" / "a.parquet")
    put(tmp_path / "in" / name, None if what == "hidden" else b"text")
    assert found(tmp_path, item) == ["in/a.parquet"]
    if item.startswith("**") and (what != "hidden" or name.startswith(".")):
        assert log() == []  # no match of the glob
    else:
        [line] = log()
        assert f"skipped 1 {what} (such as {tmp_path}/in/{name.split('/')[0]}" in line


def test_what_raydkm_hadoop_and_spark_keep_beside_rows_is_not_told_of(tmp_path: Path, log) -> None:
    put(tmp_path / "a.parquet")
    for name in ("_SUCCESS", "_metadata", ".a.parquet.crc", "_committed_1", ".raydkm", "_manifest.parquet"):
        put(tmp_path / name, b"")
    assert found(tmp_path) == ["a.parquet"]
    assert log() == []


def test_a_partition_by_a_hidden_name_is_shown_as_spark_does(tmp_path: Path, log) -> None:
    put(tmp_path / "_year=2024" / "a.parquet")
    put(tmp_path / "_year" / "b.parquet")
    for item in ("", "**/*.parquet", "*/*.parquet", "_year=*/*.parquet", "*"):
        assert found(tmp_path, item) == ["_year=2024/a.parquet"]
    assert found(tmp_path, "_year*/*") == ["_year/b.parquet", "_year=2024/a.parquet"]


# Directories and links


def test_directories_that_a_glob_matches_are_searched(tmp_path: Path) -> None:
    for name in ("2023/a.parquet", "2024/b/c.parquet", "2025.parquet/part-0.parquet", "19/d.parquet"):
        put(tmp_path / name)
    assert found(tmp_path, "20*") == ["2023/a.parquet", "2024/b/c.parquet", "2025.parquet/part-0.parquet"]
    assert found(tmp_path, "*.parquet") == ["2025.parquet/part-0.parquet"]
    assert found(tmp_path, "**") == found(tmp_path, "**/*.parquet") == found(tmp_path, "**/*") == found(tmp_path)


@pytest.mark.parametrize("item", ["", "*.parquet", "**/*.parquet", "**"])
def test_a_dangling_link_is_refused(tmp_path: Path, item: str) -> None:
    put(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"b\.parquet: a link to a file that is not there"):
        found(tmp_path, item)


@pytest.mark.parametrize("item", ["", "*", "*/*.parquet", "**/*.parquet"])
def test_a_directory_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch, item: str) -> None:
    put(tmp_path / "a" / "a.parquet")
    put(tmp_path / "b" / "b.parquet")
    scandir = os.scandir

    def refusing(path: str) -> object:  # as permissions do; the tests may run as root
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"/b: this directory cannot be read \(Permission denied\)"):
        found(tmp_path, item)


@pytest.mark.parametrize("item", ["", "**/*.parquet"])
def test_a_link_to_a_directory_is_followed_but_not_in_a_circle(tmp_path: Path, item: str) -> None:
    put(tmp_path / "elsewhere" / "a.parquet")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "in", item) == ["link/a.parquet"]
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    with pytest.raises(InputError, match="a link to a directory that it lies in"):
        found(tmp_path / "in", item)


@pytest.mark.parametrize("item", ["", "*"])
def test_a_pipe_is_refused(tmp_path: Path, item: str) -> None:
    put(tmp_path / "a.parquet")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: neither a file nor a directory"):
        found(tmp_path, item)


# Tables of which a log tells the rows, and assignments that are not complete


def delta(place: Path) -> None:
    deltalake.write_deltalake(
        str(place), pa.table({"x": [1.0, 2.0, 3.0], "day": ["a", "b", "b"]}), partition_by=["day"]
    )
    deltalake.DeltaTable(str(place)).delete("x > 2.5")


def iceberg(place: Path) -> None:
    catalog = SqlCatalog("c", uri=f"sqlite:///{place.parent}/catalog.db", warehouse=f"file://{place.parent}")
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", schema=TABLE.schema, location=f"file://{place}")
    table.append(TABLE)
    table.delete("x > 2.5")


def hudi(place: Path) -> None:
    put(place / ".hoodie" / "hoodie.properties", b"hoodie.table.name=t\n")
    put(place / "day=a" / "a.parquet")


def incomplete(place: Path) -> None:
    put(place / "_manifest.json", b"{}")
    put(place / "cluster=0" / "a.parquet")


DIRECTORIES = {
    delta: "is a Delta table: its files also hold rows that were deleted",
    iceberg: "is an Iceberg table: its files",
    hudi: "is a Hudi table: its files",
    incomplete: "is not complete; run it again",
}


@pytest.mark.parametrize("make", DIRECTORIES)
def test_files_whose_rows_a_log_tells_are_refused_from_above_below_and_by_a_glob(tmp_path: Path, make) -> None:
    place = tmp_path / "lake" / "table"
    place.parent.mkdir()
    make(place)
    put(tmp_path / "lake" / "plain" / "a.parquet")
    file = next(path for path in sorted(place.rglob("*.parquet")))
    linked = tmp_path / "linked.parquet"
    linked.symlink_to(file)
    for item in (
        *(place, place.parent, file, file.parent, linked),
        *(
            f"{place}/**/*.parquet",
            f"{place.parent}/*",
            f"{file.parent}/*.parquet",
            f"{tmp_path}/l*/**",
            f"file://{place}",
        ),
    ):
        with pytest.raises(InputError, match=DIRECTORIES[make]):
            find_files(item)
    with pytest.raises(InputError, match=DIRECTORIES[make]):
        find_files([tmp_path / "lake" / "plain", file])
    assert found(tmp_path, "lake/plain") == ["lake/plain/a.parquet"]


def test_a_folder_called_metadata_alone_is_no_table(tmp_path: Path) -> None:
    put(tmp_path / "metadata" / "a.parquet")
    put(tmp_path / "metadata" / "about.json", b"{}")
    assert found(tmp_path) == found(tmp_path, "metadata") == ["metadata/a.parquet"]


def test_an_object_store_is_searched_and_refused_alike(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    with S3Server() as server:
        for name in ("in/2023/a.parquet", "in/2024.parquet/part-0", "in/_year=1/b.pq", "in/_temporary/c.parquet"):
            server.put(name, content)
        server.put("in/2023/note.txt", b"text")
        paths = {"2023/a.parquet", "2024.parquet/part-0", "_year=1/b.pq"}
        for item in ("in", "in/*", "in/**"):
            if item == "in/**":  # names what is no Parquet file too
                paths |= {"2023/note.txt"}
            names = find_files(server.uri(item).replace("%2A", "*"))
            assert {name.partition("?")[0].partition("/in/")[2].replace("%3D", "=") for name in names} == paths
        for lake, name, told in (
            ("d", "_delta_log/0.json", "a Delta"),
            ("i", "metadata/v1.metadata.json", "an Iceberg"),
        ):
            server.put(f"{lake}/t/{name}", b"{}")
            server.put(f"{lake}/t/data/a.parquet", content)
            for item in (lake, f"{lake}/t/data", f"{lake}/t/data/*.parquet", f"{lake}/*"):
                with pytest.raises(InputError, match=f"is {told} table"):
                    find_files(server.uri(item).replace("%2A", "*"))
