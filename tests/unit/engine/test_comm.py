"""Three processes: they add up, refuse alike, name the one that does not come, and fit what one process fits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydkm.config import configure
from raydkm.data.parquet import ParquetTable
from raydkm.data.source import RowSource
from raydkm.data.tiers import Tiers
from raydkm.engine.comm import Comm, ProcessGroup, Solo, gathered
from raydkm.engine.fit import fit_rows
from raydkm.errors import InputError, WorkerLostError
from raydkm.ops.batch import BATCH_ROWS
from tests.unit.engine.processes import answers_of

WORLD = 3
CPU = torch.device("cpu")


def sum_and_refuse(comm: ProcessGroup, _: Any) -> tuple[list[int], str]:
    buffer = torch.tensor([2**60 + comm.rank, -comm.rank])
    comm.all_reduce(buffer)
    with pytest.raises(InputError) as refusal:
        gathered(comm, lambda: refuse(comm.rank))
    return buffer.tolist(), str(refusal.value)


def refuse(rank: int) -> int:
    if rank == 1:
        raise InputError("row 7 is bad")
    return rank


def test_sums_are_exact_integers_and_what_one_refuses_all_raise() -> None:
    answers = answers_of(WORLD, sum_and_refuse)
    assert answers == {rank: ([3 * 2**60 + 3, -3], "row 7 is bad") for rank in range(WORLD)}


def do_not_come(comm: ProcessGroup, who_and_how: tuple[int, signal.Signals]) -> float:
    who, how = who_and_how
    if comm.rank == who:
        os.kill(os.getpid(), how)
    began = time.monotonic()
    with pytest.raises(WorkerLostError) as lost:
        comm.wait()
    return str(lost.value), time.monotonic() - began


@pytest.mark.parametrize("how", [pytest.param(signal.SIGSTOP, marks=pytest.mark.long), signal.SIGKILL])
def test_a_worker_that_does_not_come_is_named_by_the_first(how: signal.Signals) -> None:
    told, seconds = answers_of(WORLD, do_not_come, (1, how), timeout=2, silent=1)[0]
    assert told.startswith("worker 1 (node n1) died, or did not answer for 2 s")
    assert seconds < 10


def do_not_add(comm: ProcessGroup, _: Any) -> str:
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    with pytest.raises(WorkerLostError) as lost:
        comm.all_reduce(torch.zeros(1000, dtype=torch.int64))
    return str(lost.value)


def test_a_worker_that_hangs_while_adding_up_is_named_by_the_first() -> None:
    told = answers_of(WORLD, do_not_add, timeout=2, silent=1)[0]
    assert told.startswith("worker 1 (node n1) died, or did not answer for 2 s")


@pytest.mark.long
def test_a_first_worker_that_hangs_is_named_by_the_others() -> None:
    told, _ = answers_of(WORLD, do_not_come, (0, signal.SIGSTOP), timeout=2, silent=0)[2]
    assert told == "worker 0 (node n0) did not answer for 8 s"


def test_one_process_needs_nobody() -> None:
    comm = Solo()
    comm.wait()
    buffer = torch.tensor([5])
    comm.all_reduce(buffer)
    assert (buffer.tolist(), gathered(comm, lambda: 3)) == ([5], [3])
    with pytest.raises(InputError, match="row 7"):
        gathered(comm, lambda: refuse(1))


def fit_part(
    comm: Comm, table: ParquetTable, cuts: list[int], cache: str, start: np.ndarray | None = None, **options: Any
) -> torch.Tensor:
    """The prototypes of a fit in which this worker has the rows between its two cuts."""
    config, *_ = configure({"column": "x", "tol": 0, "seed_rows": 2 * BATCH_ROWS, **options})
    source = RowSource.of_table(table, Tiers(cache, 0, CPU), *cuts[comm.rank : comm.rank + 2])
    return fit_rows(source, comm, config, threads=1, device=CPU, start=start).state.prototypes


APPROXIMATE = {"clusters": 60, "max_steps": 5, "objective": "kmeans", "assignment": "approximate", "max_miss": 0}
LOGISTIC = {"clusters": 4, "max_steps": 5, "objective": "mi"}
FAR = {"init": "array", "start": np.outer(10.0 ** np.arange(6), [1, 1]), "clusters": 6, "max_steps": 3}
EMPTY: list[dict[str, Any]] = [  # clusters that rows of all workers are sought for
    FAR | {"objective": "kmeans", "empty": "split"},
    FAR | {"objective": "soft-kmeans", "empty": "farthest", "temperature": 1.0},
]


def fit_three_ways(comm: ProcessGroup, place: Path) -> list[Any]:
    """Rare clusters seeded on all rows; a worker without rows; a sample of all rows; a bad row, found in a pass."""
    good, bad = (ParquetTable.open(place / name, "x") for name in ("good.parquet", "bad.parquet"))
    rows = good.rows
    rare = {"clusters": 3, "objective": "kmeans", "max_steps": 3}
    found: list[Any] = [
        fit_part(comm, good, [0, BATCH_ROWS, 3 * BATCH_ROWS, rows], "host", seed_rows="all", init=init, **rare)
        for init in ("k-means||", "k-means++")
    ]
    found.append(fit_part(comm, good, [0, 2 * BATCH_ROWS, rows, rows], "disk", clusters=4, max_steps=3))
    found.append(fit_part(comm, good, [0, rows, rows, rows], "host", clusters=4, max_steps=3, seed_rows=rows))
    found.append(fit_part(comm, good, [0, BATCH_ROWS, 3 * BATCH_ROWS, rows], "host", **LOGISTIC))
    found.append(fit_part(comm, good, [0, BATCH_ROWS, 3 * BATCH_ROWS, rows], "host", **APPROXIMATE))
    found += [fit_part(comm, good, [0, BATCH_ROWS, 3 * BATCH_ROWS, rows], "host", **options) for options in EMPTY]
    with pytest.raises(InputError) as refusal:
        fit_part(comm, bad, [0, BATCH_ROWS, 2 * BATCH_ROWS, rows], "stream", clusters=4)
    return [*found, str(refusal.value)]


def test_three_processes_fit_what_one_fits_and_refuse_what_one_refuses(tmp_path: Path, write) -> None:
    x = np.random.default_rng(0).standard_normal((4 * BATCH_ROWS + 5, 2)).astype(np.float32)
    x[[3, 2 * BATCH_ROWS, len(x) - 1]] += 1000
    write(tmp_path / "good.parquet", x=x)
    x[BATCH_ROWS + 9, 1] = np.nan
    write(tmp_path / "bad.parquet", x=x)
    answers = answers_of(WORLD, fit_three_ways, tmp_path)
    table = ParquetTable.open(tmp_path / "good.parquet", "x")
    rare = {"clusters": 3, "objective": "kmeans", "max_steps": 3, "seed_rows": "all"}
    alone = [
        fit_part(Solo(), table, [0, table.rows], "host", init="k-means||", **rare),
        fit_part(Solo(), table, [0, table.rows], "host", init="k-means++", **rare),
        fit_part(Solo(), table, [0, table.rows], "host", clusters=4, max_steps=3),
        fit_part(Solo(), table, [0, table.rows], "host", clusters=4, max_steps=3, seed_rows=table.rows),
        fit_part(Solo(), table, [0, table.rows], "host", **LOGISTIC),
        fit_part(Solo(), table, [0, table.rows], "host", **APPROXIMATE),
        *(fit_part(Solo(), table, [0, table.rows], "host", **options) for options in EMPTY),
    ]
    for rank in range(WORLD):
        *prototypes, refusal = answers[rank]
        assert all(torch.equal(one, other) for one, other in zip(prototypes, alone, strict=True))
        assert refusal.endswith(f"bad.parquet: row {BATCH_ROWS + 9}, column 'x': NaN; remove or impute such rows first")
