from __future__ import annotations

from collections.abc import Iterator
from threading import current_thread, get_ident

import numpy as np
import pytest
import torch

from raydkm.data.source import RowSource
from raydkm.data.tiers import Chunk
from raydkm.engine.comm import Solo
from raydkm.engine.passes import AT_ONCE, Passes, thread_pool
from raydkm.errors import EngineError
from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import Field, Grid, Statistics
from raydkm.ops.statistics import ROWS, Local, RowByRow

FIELDS = (Field("total", (2,), Grid(20)), ROWS)
CPU = torch.device("cpu")


def add_up(batch: Batch, into: Statistics) -> None:
    into.add("total", batch.rows.double().sum(0))
    into.add("rows", len(batch))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6 * BATCH_ROWS + 17, 2))


def test_a_pass_is_the_same_for_any_number_of_threads(rows: np.ndarray) -> None:
    buffers = []
    for threads in (1, 2, 3, 11):
        with thread_pool(threads) as pool:
            passes = Passes(RowSource.from_array(rows), Solo(), CPU, threads, pool.map)
            buffers.append(passes.sum(FIELDS, add_up).buffer)
    assert all(torch.equal(buffer, buffers[0]) for buffer in buffers)
    np.testing.assert_allclose(Statistics(FIELDS, buffers[0])["total"].numpy(), rows.sum(0), atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_come_together_where_sums_are_of_rows_alone(threads: int) -> None:
    x = np.random.default_rng(0).standard_normal((20 * BATCH_ROWS + 17, 2))
    with thread_pool(threads) as pool:
        passes = Passes(RowSource.from_array(x), Solo(), CPU, threads, pool.map)
        sizes: dict[str, list[int]] = {"apart": [], "together": []}

        def added(name: str) -> Local:
            def local(batch: Batch, into: Statistics) -> None:
                sizes[name].append(len(batch))
                into.add_rows("total", torch.zeros(len(batch), dtype=torch.int64), batch.rows)
                into.add("rows", len(batch))

            return local

        fields = (Field("total", (1, 2), Grid(20)), ROWS)
        apart = passes.sum(fields, added("apart"))
        together = passes.sum(fields, RowByRow(added("together")))
    assert torch.equal(apart.buffer, together.buffer)
    assert set(sizes["apart"]) == {BATCH_ROWS, 17}
    assert max(sizes["together"]) == min(AT_ONCE, 20 // (threads + 1)) * BATCH_ROWS
    assert sorted(sizes["together"])[:2] == [17, BATCH_ROWS]  # threads end at about the same time
    assert sum(sizes["together"]) == len(x)


def test_each_batch_goes_to_exactly_one_thread(rows: np.ndarray) -> None:
    with thread_pool(3) as pool:
        passes = Passes(RowSource.from_array(rows), Solo(), CPU, 3, pool.map)
        shares = passes.each(lambda batches: [batch.first for batch in batches])
    assert len(shares) == 3
    assert sorted(first for share in shares for first in share) == list(range(0, len(rows), BATCH_ROWS))


def test_workers_with_parts_cut_between_batches_add_up_to_the_whole(rows: np.ndarray) -> None:
    def passes(part: np.ndarray) -> Passes:
        return Passes(RowSource.from_array(part), Solo(), CPU)

    cut = 2 * BATCH_ROWS
    parts = passes(rows[:cut]).sum(FIELDS, add_up) + passes(rows[cut:]).sum(FIELDS, add_up)
    assert torch.equal(parts.buffer, passes(rows).sum(FIELDS, add_up).buffer)


@pytest.mark.parametrize("total", [10, 12])
def test_a_pass_that_misses_or_repeats_rows_is_an_error(total: int) -> None:
    source = RowSource([Chunk(0, torch.ones(11, 2), None)], total=total)
    with pytest.raises(EngineError, match=f"saw 11 rows of {total}"):
        Passes(source, Solo(), CPU).sum(FIELDS, add_up)


def test_an_error_in_a_thread_reaches_the_caller(rows: np.ndarray) -> None:
    def fail(batches: Iterator[Batch]) -> None:
        for batch in batches:
            raise ValueError(f"batch at {batch.first}")

    with thread_pool(2) as pool, pytest.raises(ValueError, match="batch at"):
        Passes(RowSource.from_array(rows), Solo(), CPU, 2, pool.map).each(fail)


def test_torch_uses_one_thread_inside_a_pool_and_as_many_as_before_after_it() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with thread_pool(2) as pool:
            assert torch.get_num_threads() == 1
            seen = list(pool.map(lambda _: (get_ident(), torch.get_num_threads(), current_thread().name), range(8)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {threads for _, threads, _ in seen} == {1}
    assert get_ident() not in {ident for ident, _, _ in seen}
