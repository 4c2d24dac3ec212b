"""What a worker takes of memory beside its rows: the same for `raydkm plan` and before a fit."""

from __future__ import annotations

from raydkm.config import FitConfig
from raydkm.data.tiers import gib
from raydkm.engine.loop import has_room
from raydkm.engine.passes import copies_of_sums
from raydkm.engine.seed_all import BYTES_A_ROW
from raydkm.engine.start import seed_rows
from raydkm.objectives import OBJECTIVES
from raydkm.ops.last import ROWS_BYTES
from raydkm.ops.sample import Smallest

#: Of the prototypes, in float64: before and after a step, means, temporaries of the update, and those of the products.
COPIES_OF_PROTOTYPES = 6

#: A label, and what is kept of leading coordinates beside these: of each row, from a hard step on the CPU to the next.
LABEL_BYTES, BESIDE_COORDINATES = 4, 9


def sums_bytes(clusters: int, dim: int) -> int:
    """Bytes that a step adds up over all workers: counts and sums of rows in int64."""
    return 8 * clusters * (dim + 1)


def needs(
    config: FitConfig, *, total: int, rows: int, dim: int, itemsize: int, threads: int, gpu: bool
) -> dict[str, int]:
    """Bytes, by what takes them, of a worker with `rows` of all `total` rows of `dim` values of `itemsize` bytes."""
    sums, sample = sums_bytes(config.clusters, dim), seed_rows(config, total)
    copies = copies_of_sums(sums, threads) + COPIES_OF_PROTOTYPES
    remembers = OBJECTIVES[config.objective].hard and not gpu and has_room(rows, sums)
    kept = LABEL_BYTES * rows + min(ROWS_BYTES, (dim // 2 + BESIDE_COORDINATES) * rows)
    found = {
        f"the sums of {config.clusters} clusters take": sums * copies + remembers * (sums + kept),
        f"the seeding sample of {sample} rows takes": Smallest.nbytes(min(sample, rows), dim * itemsize)
        + 4 * dim * sample,
    }
    return found | ({"seeding on all rows takes": BYTES_A_ROW * rows} if config.seed_rows == "all" else {})


def lacking(needs: dict[str, int], held: float, memory: float) -> str | None:
    """Which of `needs`, each at its time, does not fit `memory` bytes beside `held` ones of rows; None if all do."""
    beside = f" beside {gib(held)} of rows" if held else ""
    return next(
        (
            f"{what} {gib(size)}{beside}, of {gib(memory)} of memory left"
            for what, size in needs.items()
            if size + held > memory
        ),
        None,
    )
