"""Parquet files of vectors, clustered ones or given ones, for the other scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROWS_A_GROUP = 32_768


def write(directory: Path, rows: int, dim: int, files: int, seed: int = 0) -> Path:
    """Write `rows` float16 vectors around 64 centres as `files` files, uncompressed as embeddings are best kept."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((64, dim), dtype=np.float32)

    def made(_first: int, count: int) -> NDArray[np.float16]:
        noise = rng.standard_normal((count, dim), dtype=np.float32)
        return (centres[rng.integers(64, size=count)] + noise).astype(np.float16)

    return _write(directory, rows, dim, files, pa.float16(), made)


def store(directory: Path, x: NDArray[np.float32], files: int) -> Path:
    """Write the rows x (n, d) as float32 to `files` files, uncompressed."""
    rows, dim = x.shape
    return _write(directory, rows, dim, files, pa.float32(), lambda first, count: x[first : first + count])


def _write(
    directory: Path, rows: int, dim: int, files: int, kind: pa.DataType, made: Callable[[int, int], NDArray]
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("z", pa.list_(kind, dim))])
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        with pq.ParquetWriter(directory / f"{number:04d}.parquet", schema, compression="none") as writer:
            for start in range(0, len(part), ROWS_A_GROUP):
                values = made(int(part[start]), min(ROWS_A_GROUP, len(part) - start))
                column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
                writer.write_table(pa.table([column], schema=schema))
    return directory
