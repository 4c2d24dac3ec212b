from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raydkm.data.columns import Columns
from raydkm.data.parquet import READ_BYTES, READ_IMAGES, READ_ROWS, ParquetTable, scan_file
from raydkm.errors import InputError
from raydkm.ops.batch import BATCH_ROWS

TOTAL = 47


@pytest.fixture(scope="module")
def shards(tmp_path_factory, write) -> Path:
    """Rows 0 ... 46, each its own number, in three files with row groups of five (one of the files is empty)."""
    directory = tmp_path_factory.mktemp("shards")
    numbers = np.arange(TOTAL, dtype=np.float32)
    for name, start, stop in (("a", 0, 20), ("b", 20, 20), ("c", 20, TOTAL)):
        part = numbers[start:stop]
        write(directory / f"{name}.parquet", row_group_size=5, x=np.stack([part, -part], axis=1), w=part)
    return directory


def joined(table: ParquetTable, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(table.read(start, stop))
    rows = [np.empty((0, 2)), *(block.rows for block in blocks)]
    return np.concatenate(rows), np.concatenate([np.empty(0), *(block.weight for block in blocks)])


@settings(max_examples=40)
@given(st.integers(0, TOTAL), st.integers(0, TOTAL))
def test_any_range_of_rows_is_read_across_files_and_row_groups(shards: Path, start: int, stop: int) -> None:
    rows, weight = joined(ParquetTable.open(shards, "x", "w"), start, stop)
    expected = np.arange(start, max(start, stop))
    np.testing.assert_array_equal(rows[:, 0], expected)
    np.testing.assert_array_equal(rows[:, 1], -expected)
    np.testing.assert_array_equal(weight, expected)


def test_counts_come_from_the_footers_in_sorted_order(shards: Path) -> None:
    table = ParquetTable.open(sorted(shards.iterdir(), reverse=True), "x")
    assert table.counts == (20, 0, 27)
    assert table.rows == TOTAL
    assert [Path(file).stem for file in table.files] == ["a", "b", "c"]


@given(
    st.lists(st.lists(st.integers(0, 9000), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_ranges_to_read_at_the_same_time_cover_all_between_batches(
    groups: list[list[int]], parts: int, skipped: int
) -> None:
    table = ParquetTable((), tuple(map(tuple, groups)), (), (), Columns(("x",)), np.dtype(np.float32), 1)
    start = min(skipped * BATCH_ROWS, table.rows)
    cuts = table.cuts(start, table.rows, parts)
    assert (cuts[0], cuts[-1]) == (start, table.rows)
    assert len(cuts) <= parts + 1
    assert cuts == sorted(set(cuts))
    assert all((cut - start) % BATCH_ROWS == 0 for cut in cuts[:-1])


def test_ranges_to_read_at_the_same_time_are_as_even_as_row_groups_allow() -> None:
    table = ParquetTable((), ((50_000,) * 8, (400_000,)), (), (), Columns(("x",)), np.dtype(np.float32), 1)
    near = [200_704, 401_408]  # the batches after rows 200,000 and 400,000
    assert table.cuts(0, 800_000, 4) == [0, *near, 800_000]


def test_rows_beyond_one_decoded_batch_keep_their_order(tmp_path: Path, write) -> None:
    x = np.arange(2 * READ_ROWS + 10, dtype=np.float32)[:, None]
    path = write(tmp_path / "x.parquet", x=x, row_group_size=READ_ROWS + 7)
    found = np.concatenate([b.rows for b in ParquetTable.open(path, "x").read(5, len(x) - 3)])
    np.testing.assert_array_equal(found, x[5:-3])


def test_only_the_named_columns_are_decoded(shards: Path) -> None:
    batch = next(scan_file(str(shards / "a.parquet"), ["w"]))
    assert batch.schema.names == ["w"]


@pytest.mark.parametrize("column", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), 2)])
def test_list_types_survive_parquet(tmp_path: Path, column: pa.DataType) -> None:
    pq.write_table(pa.table({"x": pa.array([[1, 2], [3, 4]], column)}), tmp_path / "x.parquet")
    [block] = ParquetTable.open(tmp_path, "x").read()
    np.testing.assert_array_equal(block.rows, [[1, 2], [3, 4]])


def test_a_fixed_shape_tensor_column_survives_parquet(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    pq.write_table(pa.table({"x": column}), tmp_path / "x.parquet", row_group_size=1)
    table = ParquetTable.open(tmp_path, "x", dim=6)
    np.testing.assert_array_equal(np.concatenate([b.rows for b in table.read()]), x.reshape(2, 6))


def test_scalar_columns_make_a_vector(tmp_path: Path, write) -> None:
    path = write(tmp_path / "x.parquet", b=[3.0, 4.0], a=[1, 2])
    [block] = ParquetTable.open(path, "a,b").read()
    np.testing.assert_array_equal(block.rows, [[1, 3], [2, 4]])


def test_files_of_several_types_are_read_in_one_that_loses_nothing_whoever_reads_what(tmp_path: Path, write) -> None:
    write(tmp_path / "a.parquet", x=np.array([[200], [7]], np.uint8))
    write(tmp_path / "b.parquet", x=np.array([[0.1]], np.float64))
    table = ParquetTable.open(tmp_path, "x")
    assert np.concatenate([block.rows for block in table.read()]).tolist() == [[200.0], [7.0], [0.1]]
    [block] = table.read(0, 2)  # as a worker does whose rows are all in the first file
    assert block.rows.dtype == np.float64


def test_a_null_is_named_by_its_row_in_its_own_file(tmp_path: Path, write) -> None:
    good = [[1.0, 2.0]] * 8
    write(tmp_path / "a.parquet", x=good)
    write(tmp_path / "b.parquet", x=[*good[:6], None, good[0]], row_group_size=4)
    with pytest.raises(InputError, match=r"b\.parquet: row 6, column 'x': null"):
        list(ParquetTable.open(tmp_path, "x").read())
    with pytest.raises(InputError, match=r"b\.parquet: row 6, column 'x': null"):
        list(ParquetTable.open(tmp_path, "x").read(13, 16))  # as another worker would read it


def test_a_bad_weight_in_a_later_file_is_named_by_row_and_column(tmp_path: Path, write) -> None:
    write(tmp_path / "a.parquet", x=[[1.0], [2.0]], w=[1.0, 1.0])
    write(tmp_path / "b.parquet", x=[[1.0], [2.0]], w=[1.0, -2.0])
    with pytest.raises(InputError, match=r"b\.parquet: row 1, column 'w': weight -2"):
        list(ParquetTable.open(tmp_path, "x", "w").read())


def test_a_vector_of_another_length_in_a_later_file_or_row_group_is_named(tmp_path: Path, write) -> None:
    write(tmp_path / "a.parquet", x=[[1.0, 2.0]] * 3)
    write(tmp_path / "b.parquet", x=[[1.0, 2.0, 3.0]] * 3)
    with pytest.raises(InputError, match=r"b\.parquet: row 0, column 'x': 3 numbers where the rows before have 2"):
        list(ParquetTable.open(tmp_path, "x").read())
    path = write(tmp_path / "c.parquet", x=[[1.0]] * 4 + [[1.0, 2.0]] * 4, row_group_size=4)
    with pytest.raises(InputError, match=r"c\.parquet: row 4, column 'x': 2 numbers"):
        list(ParquetTable.open(path, "x").read())


def test_two_dimensions_are_refused_from_the_footers(tmp_path: Path, write) -> None:
    write(tmp_path / "a.parquet", x=np.ones((3, 2)))
    write(tmp_path / "b.parquet", x=np.ones((3, 4)))
    with pytest.raises(InputError, match=r"b\.parquet: column 'x' has 4 dimensions where .*a\.parquet has 2"):
        ParquetTable.open(tmp_path, "x")
    with pytest.raises(InputError, match=r"a\.parquet: column 'x' has 2 dimensions where the model has 5"):
        ParquetTable.open(tmp_path / "a.parquet", "x", dim=5)


def test_a_column_missing_in_a_later_file_is_refused_from_the_footers(tmp_path: Path, write) -> None:
    write(tmp_path / "a.parquet", x=np.ones((3, 2)), w=[1.0] * 3)
    write(tmp_path / "b.parquet", x=np.ones((3, 2)))
    with pytest.raises(InputError, match=r"b\.parquet: no column 'w'"):
        ParquetTable.open(tmp_path, "x", "w")


def test_files_without_rows_are_refused(tmp_path: Path, write) -> None:
    write(tmp_path / "a.parquet", x=np.ones((0, 2)))
    with pytest.raises(InputError, match=r"a\.parquet: no rows"):
        ParquetTable.open(tmp_path, "x")


@settings(max_examples=25)
@given(share=st.floats(0, 0.99))
def test_a_file_cut_anywhere_is_refused_by_name(shards: Path, tmp_path: Path, share: float) -> None:
    whole = (shards / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"cut\.parquet: not a readable Parquet file"):
        list(ParquetTable.open(tmp_path / "cut.parquet", "x").read())


def test_damaged_pages_are_refused_by_name(tmp_path: Path, write, rng: np.random.Generator) -> None:
    path = write(tmp_path / "bad.parquet", x=rng.standard_normal((500, 4)))
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"bad\.parquet"):
        list(ParquetTable.open(path, "x").read())


def test_a_file_that_changes_while_it_is_read_again_is_refused(tmp_path: Path, write) -> None:
    path = write(tmp_path / "x.parquet", x=[[1.0, 2.0]] * 10)
    table = ParquetTable.open(path, "x")
    assert len(list(table.read())) == 1
    write(path, x=[[3.0, 4.0]] * 10)
    os.utime(path, ns=(0, table.stamps[0][1] + 1))
    with pytest.raises(InputError, match=r"x\.parquet: the file has changed since this run began"):
        list(table.read())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """Images of 6 x 5, as PNG in two files and as their pixels in a third directory, and these pixels (n, 30)."""
    directory = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (READ_IMAGES + 140, 6, 5), dtype=np.uint8)
    encoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        encoded.append(file.getvalue())
    for name, part in (("a", slice(0, 100)), ("b", slice(100, None))):
        table = pa.table({"plain": encoded[part], "image": [{"bytes": value, "path": ""} for value in encoded[part]]})
        (directory / "encoded").mkdir(exist_ok=True)
        pq.write_table(table, directory / "encoded" / f"{name}.parquet", row_group_size=70)
    pq.write_table(
        pa.table({"nested": pixels.tolist()}, schema=pa.schema({"nested": pa.list_(pa.list_(pa.uint8()))})),
        directory / "pixels.parquet",
    )
    return directory, pixels.reshape(len(pixels), 30)


@pytest.mark.parametrize(("path", "column"), [("encoded", "plain"), ("encoded", "image"), ("pixels.parquet", "nested")])
def test_images_in_parquet_are_the_rows_of_their_pixels(pictures, path: str, column: str) -> None:
    directory, pixels = pictures
    table = ParquetTable.open(directory / path, column, shape=(1, 6, 5), dim=30)
    assert (table.dim, table.dtype, table.columns.shape) == (30, np.uint8, (1, 6, 5))
    np.testing.assert_array_equal(np.concatenate([block.rows for block in table.read()]), pixels)
    np.testing.assert_array_equal(np.concatenate([block.rows for block in table.read(95, 103)]), pixels[95:103])


def test_few_images_and_few_long_rows_are_read_at_a_time(pictures, tmp_path: Path, write) -> None:
    directory, _ = pictures
    table = ParquetTable.open(directory / "encoded", "plain", shape=(1, 6, 5))
    assert [len(block.rows) for block in table.read()] == [100, READ_IMAGES, 40]
    assert table.rows_at_once == READ_IMAGES
    wide = write(tmp_path / "x.parquet", x=np.zeros((3, 20_000), np.float32))
    assert ParquetTable.open(wide, "x").rows_at_once == READ_BYTES // 80_000
    assert (
        ParquetTable.open(directory / "encoded", "plain", shape=(3, 1_000, 1_000)).rows_at_once
        == READ_BYTES // 3_000_000
    )


def test_a_damaged_image_is_named_by_its_row_in_its_own_file(pictures, tmp_path: Path) -> None:
    directory, _ = pictures
    column = pq.read_table(directory / "encoded" / "a.parquet")["plain"].to_pylist()
    column[57] = column[57][:-40]
    pq.write_table(pa.table({"x": column}), tmp_path / "x.parquet", row_group_size=50)
    table = ParquetTable.open(tmp_path, "x", shape=(1, 6, 5))
    with pytest.raises(InputError, match=r"x\.parquet: row 57, column 'x': not a readable image"):
        list(table.read())


def test_rows_that_are_not_of_the_shape_are_refused_from_the_footers(pictures, tmp_path: Path, write) -> None:
    path = write(tmp_path / "x.parquet", x=np.zeros((3, 29), np.float32))
    with pytest.raises(InputError, match=r"x\.parquet: column 'x': 29 numbers in a row where the shape 1x6x5.* has 30"):
        ParquetTable.open(path, "x", shape=(1, 6, 5))
    with pytest.raises(InputError, match=r"a\.parquet: column 'plain' is binary: encoded images need a shape"):
        ParquetTable.open(pictures[0] / "encoded", "plain")
