"""A fit that is started again when it has finished."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydkm
from raydkm.errors import ConfigError, OutputError

OPTIONS: dict[str, Any] = {"column": "x", "clusters": 3, "engine": "local", "seed": 1}


@pytest.fixture
def data(tmp_path: Path, write: Callable[..., Path]) -> Path:
    return write(tmp_path / "in" / "x.parquet", x=np.random.default_rng(0).standard_normal((500, 4)).tolist())


@pytest.fixture
def fit(tmp_path: Path, data: Path) -> Callable[..., raydkm.Model]:
    def call(**more: Any) -> raydkm.Model:
        where = {"out": tmp_path / "model", "run_dir": str(tmp_path / "run")}
        return raydkm.fit(data, **{**where, **OPTIONS, **more})

    return call


def contents(place: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in place.rglob("*") if p.is_file()}


def test_a_finished_run_does_nothing_and_says_so(fit, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, before = fit(), contents(tmp_path)
    with caplog.at_level(logging.INFO, "raydkm"):
        again = fit()
    assert again.checksum() == first.checksum()
    assert contents(tmp_path) == before
    assert "nothing to do" in caplog.text


def test_a_finished_run_of_other_parameters_or_files_is_refused(fit, data: Path, tmp_path: Path) -> None:
    fit()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="clusters 3, not 4"):
        fit(clusters=4)
    with pytest.raises(ConfigError, match=r"init 'k-means\|\|', not 'array'"):
        fit(init=np.eye(3, 4))
    assert contents(tmp_path) == before
    os.utime(data, ns=(0, 0))
    with pytest.raises(ConfigError, match="files that have changed"):
        fit()
    assert fit(overwrite=True).checksum() == fit().checksum()


def test_a_model_of_another_run_is_not_taken_for_this_one(fit, tmp_path: Path) -> None:
    fit(seed=2)
    with pytest.raises(OutputError, match="exists already"):
        fit(run_dir=str(tmp_path / "other"))
    with pytest.raises(OutputError, match="exists already"):
        fit(run_dir=None)


def test_a_run_that_max_steps_ended_goes_on_only_into_a_free_place(fit, tmp_path: Path) -> None:
    fit(max_steps=1, tol=0)
    with pytest.raises(OutputError, match="exists already"):
        fit(max_steps=2, tol=0)
    assert fit(max_steps=2, tol=0, overwrite=True).record["steps"] == 2
