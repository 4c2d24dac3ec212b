from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raydkm
from raydkm.data.tiers import allocator, on_disk
from raydkm.errors import ConfigError, EngineError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64])
def test_rows_on_disk_are_a_matrix_in_their_own_dtype_in_a_file_without_a_name(temporary: Path, dtype) -> None:
    matrix = on_disk((1000, 3), dtype)
    matrix[:] = np.arange(1000)[:, None] % 100
    assert isinstance(matrix, np.memmap)
    assert matrix.dtype == dtype
    assert (matrix[:, 1] == np.arange(1000) % 100).all()
    assert list(temporary.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_read(temporary: Path) -> None:
    free = os.statvfs(temporary).f_bavail * os.statvfs(temporary).f_frsize
    with pytest.raises(EngineError, match="set TMPDIR to a larger disk"):
        on_disk((4 * free, 16), np.float64)


def test_auto_holds_in_memory_what_fits_the_budget() -> None:
    auto = allocator("auto", 100)
    assert not isinstance(auto((10, 10), np.uint8), np.memmap)
    assert isinstance(auto((10, 11), np.uint8), np.memmap)


def test_every_tier_gives_the_same_bits(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((9000, 5)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 5)
    pq.write_table(pa.table({"z": column}), tmp_path / "rows.parquet")
    options = {"column": "z", "clusters": 7, "objective": "kmeans"}
    ways = [{"cache": "host"}, {"cache": "disk"}, {"memory_budget": 1e-6}]
    assert len({raydkm.fit(tmp_path, **options, **way).checksum() for way in ways}) == 1


def test_rows_that_are_in_memory_already_have_no_other_place() -> None:
    with pytest.raises(ConfigError, match="Parquet files"):
        raydkm.fit(np.ones((10, 2)), clusters=2, cache="disk")
