"""What the Ray wiring relies on, or avoids, in Ray itself: when one of these changes, so may the wiring."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
import ray.train

from raydkm.engine.ray_train import EveryRow

pytestmark = pytest.mark.timeout(120)

ROWS = 1003


def test_an_even_split_drops_rows_and_ours_does_not() -> None:
    def rows(equal: bool) -> int:
        data = ray.data.range(ROWS, override_num_blocks=8)
        if equal:
            parts = data.streaming_split(4, equal=True)
        else:
            configured = EveryRow().configure({"rows": data}, 4, None, None)
            parts = [part["rows"] for part in configured]
        with ThreadPoolExecutor(4) as pool:
            return sum(
                pool.map(lambda part: sum(batch.num_rows for batch in part.iter_batches(batch_format="pyarrow")), parts)
            )

    assert rows(equal=True) == ROWS - ROWS % 4
    assert rows(equal=False) == ROWS


def test_vectors_arrive_as_objects_in_numpy_batches_and_whole_in_arrow_ones() -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float16)), 3)
    data = ray.data.from_arrow(pa.table({"z": column}))
    [batch] = data.iter_batches(batch_format="numpy", batch_size=None)
    assert batch["z"].dtype == object
    [table] = data.iter_batches(batch_format="pyarrow", batch_size=None)
    assert table["z"].combine_chunks().flatten().to_numpy().tolist() == list(range(12))


def test_a_pipeline_runs_to_be_counted_and_is_not_asked_for_its_schema(tmp_path: Path) -> None:
    def step(batch: dict) -> dict:
        (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
        return batch

    data = ray.data.range(10, override_num_blocks=1).map_batches(step)
    assert data.schema(fetch_if_missing=False) is None
    assert not list(tmp_path.iterdir())
    assert data.count() == 10
    assert list(tmp_path.iterdir())


def test_train_takes_a_range_of_workers() -> None:
    scaling = ray.train.ScalingConfig(num_workers=(1, 3))
    assert scaling.elasticity_enabled
    assert (scaling.min_workers, scaling.max_workers) == (1, 3)
