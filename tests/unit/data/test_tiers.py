from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raydkm
from raydkm.data.tiers import Tiers, file_on_disk, matrix
from raydkm.errors import ConfigError, EngineError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64])
def test_rows_on_disk_are_a_matrix_in_their_own_dtype_in_a_file_without_a_name(temporary: Path, dtype) -> None:
    rows, file = matrix("disk", 1000, 3, np.dtype(dtype))
    rows[:] = np.arange(1000)[:, None] % 100
    assert rows.dtype == dtype
    assert (rows[:, 1] == np.arange(1000) % 100).all()
    assert bytes(file)[: rows.nbytes] == rows.tobytes()
    assert list(temporary.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_read(temporary: Path) -> None:
    with pytest.raises(EngineError, match="set TMPDIR to a larger disk"):
        file_on_disk(4 * shutil.disk_usage(temporary).free)


def test_auto_takes_the_fastest_tier_that_has_room() -> None:
    room = Tiers("auto", 100, torch.device("cuda"), device_memory=50)
    everything = shutil.disk_usage(tempfile.gettempdir()).total
    assert [room.place(size) for size in (30, 30, 20, 60, 10, 1, everything)] == [
        "device",
        "host",
        "device",
        "host",
        "host",
        "disk",
        "stream",
    ]
    assert str(room).endswith("memory budget 9.31e-08 GiB")


def test_the_device_alone_is_refused_when_it_is_full_or_there_is_none() -> None:
    with pytest.raises(EngineError, match="of free device memory"):
        Tiers("device", 0, torch.device("cuda"), device_memory=100).place(101)
    with pytest.raises(ConfigError, match="runs on the CPU"):
        raydkm.fit(np.ones((10, 2)), clusters=2, cache="device", device="cpu")


def test_every_tier_gives_the_same_bits(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((9000, 5)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 5)
    pq.write_table(pa.table({"z": column}), tmp_path / "rows.parquet")
    options = {"column": "z", "clusters": 7, "objective": "kmeans"}
    ways = [{"cache": "host"}, {"cache": "disk"}, {"cache": "stream"}, {"memory_budget": 1e-6}]
    assert len({raydkm.fit(tmp_path, **options, **way).checksum() for way in ways}) == 1


def test_rows_that_are_in_memory_already_have_no_other_place() -> None:
    with pytest.raises(ConfigError, match="Parquet files"):
        raydkm.fit(np.ones((10, 2)), clusters=2, cache="disk")
