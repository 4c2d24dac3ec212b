from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raydkm
from raydkm.data.columns import Block
from raydkm.data.tiers import Room, Tiers, file_on_disk
from raydkm.errors import ConfigError, EngineError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64])
def test_rows_on_disk_are_a_matrix_in_their_own_dtype_in_a_file_without_a_name(temporary: Path, dtype) -> None:
    room = Room("disk", 1000, 3, np.dtype(dtype), weighted=False)
    assert room.add(Block(np.tile(np.arange(1200)[:, None] % 100, 3).astype(dtype), None), 200) == 1000
    rows = room.filled()[0].numpy()
    assert room.full
    assert rows.dtype == dtype
    assert (rows[:, 1] == np.arange(200, 1200) % 100).all()
    assert room.file is not None
    assert room.file[: rows.nbytes] == rows.tobytes()
    assert list(temporary.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_read(temporary: Path) -> None:
    with pytest.raises(EngineError, match="set TMPDIR to a larger disk"):
        file_on_disk(4 * shutil.disk_usage(temporary).free)


def tiers_taken(tiers: Tiers, sizes: list[int]) -> list[str]:
    rooms = [tiers.room(size, 1, np.dtype(np.uint8), weighted=False, again=True) for size in sizes]
    return ["stream" if room is None else room.tier for room in rooms]


def test_auto_takes_the_fastest_tier_that_has_room() -> None:
    room = Tiers("auto", 100, torch.device("cuda"), device_memory=50)
    sizes = [30, 30, 20, 60, 10, 1, shutil.disk_usage(tempfile.gettempdir()).total]
    assert tiers_taken(room, sizes) == ["device", "host", "device", "host", "host", "disk", "stream"]
    assert str(room).endswith("for want of room on local disk; memory budget 9.31e-08 GiB")


def test_a_disk_that_fills_up_meanwhile_is_read_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert tiers_taken(Tiers("auto", 0, torch.device("cpu")), [10]) == ["stream"]
    with pytest.raises(EngineError, match=r"no room for .* \(full\)"):
        tiers_taken(Tiers("disk", 0, torch.device("cpu")), [10])


def test_the_device_alone_is_refused_when_it_is_full_or_there_is_none() -> None:
    with pytest.raises(EngineError, match=r"no room for .*; cache device\); use cache auto"):
        tiers_taken(Tiers("device", 0, torch.device("cuda"), device_memory=100), [101])
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
