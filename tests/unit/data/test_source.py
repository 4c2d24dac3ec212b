from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raydkm
import raydkm.data.source
import raydkm.data.tiers
from raydkm.data.columns import Block
from raydkm.data.parquet import READ_ROWS, ParquetTable
from raydkm.data.source import RowSource, hold_rows
from raydkm.data.tiers import Chunk, Tiers
from raydkm.errors import EngineError, InputError
from raydkm.ops.batch import BATCH_ROWS

CPU = torch.device("cpu")


def taken(source: RowSource) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows and weights, in order."""
    batches = list(source.batches())
    return torch.cat([batch.rows for batch in batches]), torch.cat([batch.weights() for batch in batches])


def tiers(cache: str = "host", memory: int = 0) -> Tiers:
    return Tiers(cache, memory, CPU)


@settings(max_examples=10)
@given(st.integers(1, 3 * BATCH_ROWS), st.booleans())
def test_batches_are_fixed_ranges_that_cover_every_row_once(rows: int, weighted: bool) -> None:
    x = np.arange(rows, dtype=np.float32)[:, None]
    source = RowSource.from_array(x, np.arange(rows) if weighted else None)
    batches = list(source.batches())
    assert [batch.first for batch in batches] == list(range(0, rows, BATCH_ROWS))
    np.testing.assert_array_equal(torch.cat([batch.rows for batch in batches]), x)
    weights = torch.cat([batch.weights() for batch in batches]).numpy()
    np.testing.assert_array_equal(weights, np.arange(rows) if weighted else np.ones(rows))


@pytest.mark.parametrize("way", ["host", "disk", "stream", "half", "half, then stream"])
@pytest.mark.parametrize("known", [True, False])
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), weighted=st.booleans())
def test_rows_held_anywhere_are_the_rows_that_were_read_in_batches(
    way: str, known: bool, sizes: list[int], weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of one batch of four rows, of which the budget of "half" holds two."""
    monkeypatch.setattr(raydkm.data.source, "BATCH_ROWS", 4)
    monkeypatch.setattr(raydkm.data.source, "CHUNK_BYTES", 1)
    monkeypatch.setattr(raydkm.data.tiers, "FREE_OF_DISK", 1.0 if "stream" in way else 0.0)
    x = np.arange(2 * sum(sizes), dtype=np.float32).reshape(-1, 2)
    cuts = np.cumsum([0, *sizes])

    def read(after: int) -> Iterator[Block]:
        for a, b in pairwise(cuts):
            a = max(a, after)
            if a < b:
                yield Block(x[a:b], np.arange(a, b, dtype=float) if weighted else None)

    room = tiers("auto", 2 * 4 * (8 + 8 * weighted)) if "half" in way else tiers(way)
    chunks, rest = hold_rows(read, room, rows=len(x) if known else None)
    source = RowSource(chunks, total=1000, rests=[rest] if rest else [])
    for _ in range(2):
        rows, weight = taken(source)
        np.testing.assert_array_equal(rows, x)
        np.testing.assert_array_equal(weight, np.arange(len(x)) if weighted else np.ones(len(x)))
    firsts = [batch.first for batch in source.batches()]
    assert firsts == list(range(0, len(x), 4))
    for sharers in (1, 3, 64):  # each row once, and cut alike in each pass
        cut, again = ([(batch.first, len(batch)) for batch in source.batches(8, sharers)] for _ in range(2))
        assert sorted(cut) == sorted(again)
        ends = [first + rows for first, rows in sorted(cut)]
        assert [first for first, _ in sorted(cut)] == [0, *ends][: len(cut)]
        assert ends[-1:] == [len(x)][: len(cut)]
    if len(x) > 8 and "half" in way:
        assert room.held["host"] and room.held["stream" if "stream" in way else "disk"]
    assert source.total == 1000


@pytest.mark.parametrize(
    ("second", "told"),
    [(np.array([[0.1]]), "vectors of uint8 and of float64"), (np.ones((1, 3), np.uint8), "vectors of 1 and of 3 dim")],
)
def test_blocks_of_several_types_or_dimensions_are_refused_rather_than_cast(second: np.ndarray, told: str) -> None:
    blocks = [Block(np.array([[200]], np.uint8), None), Block(second, None)]
    with pytest.raises(InputError, match=told):
        hold_rows(lambda _: (block for block in blocks), tiers(), rows=2)


def test_a_worker_without_rows_has_no_batches() -> None:
    source = RowSource.of_stream(lambda: (block for block in ()), tiers(), total=10)
    assert (list(source.batches()), source.held, source.total) == ([], 0, 10)


def test_rows_that_come_but_once_need_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raydkm.data.tiers, "FREE_OF_DISK", 1.0)
    blocks = (block for block in [Block(np.ones((3, 2)), None)])
    with pytest.raises(EngineError, match=r"no room for .* more"):
        RowSource.of_stream(lambda: blocks, tiers("auto"))


def test_what_is_wrong_with_rows_read_again_is_raised_by_the_pass_and_ends_the_reading() -> None:
    def read() -> Iterator[Block]:
        for _ in range(100):
            yield Block(np.ones((BATCH_ROWS, 2)), None)
        raise InputError("row 1")

    source = RowSource.of_stream(read, tiers("stream"), total=0)
    before = threading.active_count()
    with pytest.raises(InputError, match="row 1"):
        list(source.batches())
    some = source.batches()
    next(some)
    some.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("dtype", "held"),
    [
        (np.float16, torch.float16),
        (np.float32, torch.float32),
        (np.float64, torch.float64),
        (np.uint8, torch.uint8),
        (np.int8, torch.int8),
        (np.int32, torch.float64),
        (np.uint16, torch.float64),
        (np.int64, torch.float64),
    ],
)
def test_arrays_are_held_in_their_type_or_one_that_holds_their_values(dtype, held: torch.dtype) -> None:
    x = np.arange(6, dtype=dtype).reshape(3, 2)
    rows, _ = taken(RowSource.from_array(x))
    assert rows.dtype == held
    assert rows.tolist() == x.tolist()


def test_arrays_in_any_layout_and_tensors_are_accepted_and_never_written_to() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    frozen = x.copy()
    frozen.flags.writeable = False
    graph = torch.from_numpy(x.copy()).requires_grad_()
    for array in (np.asfortranarray(x), x[:, ::-1][:, ::-1], frozen, torch.from_numpy(x), graph, x.astype(">f4")):
        rows, _ = taken(RowSource.from_array(array))
        np.testing.assert_array_equal(rows, x)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_tensors_of_floats_of_any_size_keep_their_values(kind: torch.dtype) -> None:
    x = (torch.arange(12).reshape(4, 3) / 8).to(kind)  # exact in all of them
    rows, weight = taken(RowSource.from_array(x, x[:, 0]))
    assert rows.dtype == (torch.float16 if kind == torch.float16 else torch.float32)
    assert torch.equal(rows.double(), x.double())
    assert weight.tolist() == x[:, 0].tolist()


def masked(*values: float) -> np.ma.MaskedArray:
    return np.ma.masked_equal(np.array(values), 9.0)


@pytest.mark.filterwarnings("error")
def test_memory_that_may_only_be_read_is_shared(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12.0, dtype=np.float32).reshape(3, 4))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    [batch] = RowSource.from_array(mapped).batches()
    assert batch.rows.data_ptr() == mapped.ctypes.data
    rows = batch.rows.clone()
    del mapped
    np.testing.assert_array_equal(batch.rows, rows)  # the memory is kept
    fitted = raydkm.fit(np.load(tmp_path / "x.npy", mmap_mode="r"), clusters=2, metric="cosine")
    assert fitted.checksum() == raydkm.fit(np.load(tmp_path / "x.npy"), clusters=2, metric="cosine").checksum()


@pytest.mark.parametrize(
    ("array", "weight", "told"),
    [
        (masked(1, 9, 3, 4).reshape(2, 2), None, r"masked array: fill its masked values .* or drop their rows"),
        (np.ones((2, 2)), masked(1, 9), "masked array: fill"),
        (torch.ones(2, 2).to_sparse(), None, "a sparse tensor; give a dense one"),
        (torch.ones(2, 2, device="meta"), None, "a meta tensor"),
        (torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.quint8), None, "a quantised tensor"),
        (np.array([[1.0, None]], dtype=object), None, "dtype object"),
        (np.ones((2, 2), dtype=np.longdouble), None, "dtype .*: features are floats or integers of up to 64 bits"),
        (np.ones(3), None, "got 1 dimension"),
        (np.ones((2, 2, 2)), None, "got 3 dimension"),
        (np.ones((0, 2)), None, "has no rows"),
        (np.ones((2, 0)), None, "has no features"),
        (np.array([["a"]]), None, "dtype <U1"),
        (np.ones((2, 2), dtype=complex), None, "dtype complex128"),
        (np.array([[1.0], [np.nan], [np.nan]]), None, "^row 1: NaN"),
        (np.array([[1.0], [1.0], [-np.inf]]), None, "^row 2: an infinite value"),
        (np.array([[1.0], [1e30]]), None, "^row 1: a value beyond"),
        (np.ones((3, 2)), np.ones(2), r"3 rows but weights of shape \(2,\)"),
        (np.ones((3, 2)), np.array([1.0, -1.0, 1.0]), "^row 1: weight -1; weights are between 0 and 1e"),
    ],
)
def test_arrays_that_cannot_serve_are_refused(array, weight, told: str) -> None:
    with pytest.raises(InputError, match=told):
        RowSource.from_array(array, weight)


def test_masked_arrays_of_which_no_value_is_masked_are_arrays() -> None:
    rows, _ = taken(RowSource.from_array(masked(1, 2, 3, 4).reshape(2, 2)))
    assert rows.tolist() == [[1, 2], [3, 4]]


def test_a_zero_row_is_refused_where_directions_count() -> None:
    with pytest.raises(InputError, match=r"^row 1: a zero vector"):
        RowSource.from_array(np.array([[1.0, 0.0], [0.0, 0.0]]), unit=True)


@pytest.fixture
def table(tmp_path: Path, write) -> ParquetTable:
    """Two files, of which no row group ends where a canonical batch does."""
    for number, rows in enumerate(np.split(np.arange(12 * READ_ROWS), [7 * READ_ROWS + 11])):
        write(
            tmp_path / f"{number}.parquet",
            z=np.stack([rows, -rows], axis=1).astype(float),
            row_group_size=READ_ROWS + 7,
        )
    return ParquetTable.open(tmp_path, "z")


@pytest.mark.parametrize("way", ["host", "disk", "stream", "a third, then stream"])
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_several_readers_bring_every_batch_once(
    table: ParquetTable, way: str, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raydkm.data.source, "CHUNK_BYTES", 2**20)
    monkeypatch.setattr(raydkm.data.tiers, "FREE_OF_DISK", 1.0 if "then" in way else 0.0)
    room = tiers("auto", 16 * table.rows // 3) if "then" in way else tiers(way)
    start = 2 * BATCH_ROWS
    source = RowSource.of_table(table, room, start, readers=readers)
    assert (source.first, source.total) == (start, table.rows)
    for _ in range(2):
        batches = list(source.batches())
        assert sorted(batch.first for batch in batches) == list(range(0, table.rows - start, BATCH_ROWS))
        for batch in batches:
            expected = np.arange(batch.first, min(batch.first + BATCH_ROWS, table.rows - start)) + start
            np.testing.assert_array_equal(batch.rows[:, 0], expected)
            np.testing.assert_array_equal(batch.rows[:, 1], -expected)


@pytest.mark.parametrize("way", ["host", "stream"])
def test_what_one_of_several_readers_refuses_is_refused(tmp_path: Path, write, way: str) -> None:
    x = np.ones((12 * READ_ROWS, 2))
    x[9 * READ_ROWS, 1] = np.nan
    path = write(tmp_path / "x.parquet", z=x, row_group_size=READ_ROWS)
    with pytest.raises(InputError, match=f"row {9 * READ_ROWS}, column 'z': NaN"):
        list(RowSource.of_table(ParquetTable.open(path, "z"), tiers(way), readers=3).batches())


def squared(rows: torch.Tensor) -> torch.Tensor:
    """Three columns of two, the last of which tells how many rows were mapped together."""
    return torch.column_stack([rows.double().square(), rows.double().sum(1) + len(rows)]).float()


@pytest.mark.parametrize("way", ["host", "disk", "stream", "a third, then stream"])
@pytest.mark.parametrize("to", ["host", "disk", "stream", "a fifth, then stream"])
@pytest.mark.parametrize("readers", [1, 2])
def test_mapped_rows_are_the_rows_of_each_canonical_batch_mapped_wherever_they_are_held(
    table: ParquetTable, way: str, to: str, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raydkm.data.source, "CHUNK_BYTES", 2**18)
    monkeypatch.setattr(raydkm.data.tiers, "FREE_OF_DISK", 1.0 if "then" in way + to else 0.0)
    start, count = 2 * BATCH_ROWS, table.rows
    held = tiers("auto", 16 * count // 3) if "then" in way else tiers(way)
    source = RowSource.of_table(table, held, start, readers=readers)
    expected = {batch.first: squared(batch.rows) for batch in source.batches()}
    with ThreadPoolExecutor(2) as pool:
        for map_ in (map, pool.map):
            room = tiers("auto", 12 * count // 5) if "then" in to else tiers(to)
            made = source.mapped(squared, room, map_)
            assert (made.first, made.total, made.repeats) == (start, count, True)
            for _ in range(2):
                found = {batch.first: batch.rows for batch in made.batches()}
                assert found.keys() == expected.keys()
                assert all(torch.equal(rows, expected[first]) for first, rows in found.items())
            if way != "stream" and "then" in to:
                assert 0 < room.held["host"] <= room.memory
                assert room.held["stream"] > 0


@pytest.mark.parametrize("cache", ["host", "disk", "stream"])
def test_mapped_rows_keep_their_weights_and_whether_they_come_again_in_order(cache: str) -> None:
    x, weight = np.ones((BATCH_ROWS + 3, 2), np.float32), np.arange(BATCH_ROWS + 3.0)
    made = RowSource.from_array(x, weight).mapped(squared, tiers(cache))
    for _ in range(2):
        np.testing.assert_array_equal(taken(made)[1], weight)
    stream = RowSource.of_stream(lambda: (block for block in [Block(x, weight)]), tiers("stream"), total=len(x))
    again = stream.mapped(squared, tiers("host"))
    assert (again.total, again.repeats) == (len(x), False)
    np.testing.assert_array_equal(taken(again)[1], weight)


def test_chunks_that_do_not_follow_each_other_keep_their_positions() -> None:
    rows = [torch.full((n * BATCH_ROWS, 2), float(n)) for n in (1, 2, 1)]
    chunks = [Chunk(first * BATCH_ROWS, part, None) for first, part in zip((0, 1, 7), rows, strict=True)]
    for cache in ("host", "stream"):
        made = RowSource(chunks, total=10**6).mapped(squared, tiers(cache))
        assert sorted(batch.first // BATCH_ROWS for batch in made.batches()) == [0, 1, 2, 7]


def test_mapped_rows_that_find_no_room_in_the_only_tier_are_refused() -> None:
    with pytest.raises(EngineError, match="no room for"):
        RowSource.from_array(np.ones((5, 2))).mapped(squared, Tiers("device", 0, torch.device("meta")))


def test_what_a_function_raises_is_raised() -> None:
    def refuse(rows: torch.Tensor) -> torch.Tensor:
        raise InputError("vectors of 2 dimensions")

    source = RowSource.from_array(np.ones((5, 2)))
    with pytest.raises(InputError, match="of 2 dim"):
        source.mapped(refuse, tiers())
    with pytest.raises(InputError, match="of 2 dim"):
        list(source.mapped(refuse, tiers("stream")).batches())


def test_a_worker_without_rows_that_are_to_be_held_says_how_many_workers_there_may_be() -> None:
    with pytest.raises(EngineError, match="a worker has none: 5391 are for at most 2 workers"):
        RowSource([], 2 * BATCH_ROWS, 5391, repeats=True).check_held()
