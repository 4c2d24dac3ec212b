"""Parquet files of clustered vectors, for the other scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_A_GROUP = 32_768


def write(directory: Path, rows: int, dim: int, files: int, seed: int = 0) -> Path:
    """Write `rows` float16 vectors around 64 centres as `files` files, uncompressed as embeddings are best kept."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((64, dim), dtype=np.float32)
    schema = pa.schema([("z", pa.list_(pa.float16(), dim))])
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        with pq.ParquetWriter(directory / f"{number:04d}.parquet", schema, compression="none") as writer:
            for start in range(0, len(part), ROWS_A_GROUP):
                count = min(ROWS_A_GROUP, len(part) - start)
                noise = rng.standard_normal((count, dim), dtype=np.float32)
                values = (centres[rng.integers(64, size=count)] + noise).astype(np.float16)
                column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
                writer.write_table(pa.table([column], schema=schema))
    return directory
