"""Maps have the same bits however the work is divided. Apart from other tests, for each process imports this module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raydkm.config import FitConfig
from raydkm.data.source import RowSource
from raydkm.data.tiers import Chunk, Tiers
from raydkm.engine.comm import Comm, ProcessGroup, Solo
from raydkm.engine.maps import fit_maps
from raydkm.engine.passes import Passes, thread_pool
from raydkm.errors import EngineError, InputError
from raydkm.features.maps import Map
from raydkm.features.stages import parse
from raydkm.ops.batch import BATCH_ROWS
from tests.unit.engine.processes import answers_of

CPU = torch.device("cpu")


def tiers() -> Tiers:
    return Tiers("host", 0, CPU)


def fitted(
    text: str,
    source: RowSource,
    comm: Comm | None = None,
    threads: int = 1,
    **options: Any,
) -> tuple[tuple[Map, ...], torch.Tensor]:
    """The maps, and this worker's mapped rows."""
    config = FitConfig(**({"clusters": 3} | options))
    with thread_pool(threads) as pool:
        maps, passes = fit_maps(parse(text), Passes(source, comm or Solo(), CPU, threads, pool.map), config, tiers())
        rows = [batch.rows for batch in passes.source.batches()]
    return maps, torch.cat(rows) if rows else torch.empty(0)


def bits(maps: tuple[Map, ...]) -> list[tuple[str, bytes]]:
    return [(name, tensor.numpy().tobytes()) for map_ in maps for name, tensor in map_.tensors().items()]


CHAINS = ["standardize,unit,pca:4,rff:9,center", "whiten,nystrom:7,lda"]
OPTIONS: dict[str, Any] = {"seed_rows": BATCH_ROWS, "seed": 5, "n_init": 1}


def many() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    rows = 4 * BATCH_ROWS + 5
    centres = 5 * rng.standard_normal((3, 6))
    return (centres[rng.integers(3, size=rows)] + rng.standard_normal((rows, 6))).astype(np.float32)


def part(x: NDArray, comm: Comm, cuts: list[int]) -> RowSource:
    low, high = cuts[comm.rank : comm.rank + 2]
    return RowSource([Chunk(0, torch.from_numpy(x[low:high]), None)] if high > low else [], low, len(x))


#: For each chain, where the rows of three workers begin and end; in the second case one has none.
CUTS = (
    [0, BATCH_ROWS, 2 * BATCH_ROWS, 4 * BATCH_ROWS + 5],
    [0, 3 * BATCH_ROWS, 4 * BATCH_ROWS + 5, 4 * BATCH_ROWS + 5],
)


def fit_parts(comm: ProcessGroup, _: Any) -> tuple[list[Any], str, str]:
    found = []
    for text, cuts in zip(CHAINS, CUTS, strict=True):
        maps, rows = fitted(text, part(many(), comm, cuts), comm, **OPTIONS)
        found.append((bits(maps), rows.numpy().tobytes()))
    with pytest.raises(InputError) as refusal:
        fitted("pca:6", part(many()[:5], comm, [0, 5, 5, 5]), comm)
    with pytest.raises(EngineError) as no_room:
        tiers = Tiers("device" if comm.rank == 1 else "host", 0, torch.device("meta"))
        fit_maps(parse("unit"), Passes(part(many(), comm, CUTS[0]), comm, CPU), FitConfig(**OPTIONS), tiers)
    return found, str(refusal.value), str(no_room.value)


def test_three_processes_fit_what_one_fits_and_refuse_alike() -> None:
    answers = answers_of(3, fit_parts)
    source = RowSource.of(torch.from_numpy(many()))
    for number, text in enumerate(CHAINS):
        maps, rows = fitted(text, source, **OPTIONS)
        assert all(found[number][0] == bits(maps) for found, _, _ in answers.values())
        assert b"".join(answers[rank][0][number][1] for rank in range(3)) == rows.numpy().tobytes()
    for _, refusal, no_room in answers.values():
        assert refusal == "map stage pca:6: needs as many rows, there are 5; ask for fewer"
        assert no_room.startswith("no room for")


@pytest.mark.parametrize("text", CHAINS)
def test_two_threads_and_one_give_the_same_bits_and_so_do_rows_read_again(text: str) -> None:
    x = many()
    alone, rows = fitted(text, RowSource.of(torch.from_numpy(x)), **OPTIONS)
    shared, others = fitted(text, RowSource.of(torch.from_numpy(x)), threads=2, **OPTIONS)
    assert bits(alone) == bits(shared)
    assert torch.equal(rows, others)
    with thread_pool(2) as pool:
        passes = Passes(RowSource.of(torch.from_numpy(x)), Solo(), CPU, 2, pool.map)
        again, passes = fit_maps(parse(text), passes, FitConfig(clusters=3, **OPTIONS), Tiers("stream", 0, CPU))
        parts = passes.each(lambda batches: {batch.first: batch.rows for batch in batches})
    assert bits(again) == bits(alone)
    by_first = {first: batch for part in parts for first, batch in part.items()}
    assert torch.equal(torch.cat([by_first[first] for first in sorted(by_first)]), rows)


@pytest.mark.parametrize("text", CHAINS)
def test_the_order_of_rows_that_are_all_in_the_sample_changes_no_bit(text: str) -> None:
    x = many()[:1000]
    one, other = (fitted(text, RowSource.from_array(rows))[0] for rows in (x, np.ascontiguousarray(x[::-1])))
    assert bits(one) == bits(other)
