"""A fit's output is refused before the fit where that can be known, and a model that was fitted is never lost."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydkm
import raydkm.api.fit as module
from raydkm.errors import OutputError

OPTIONS: dict[str, Any] = {"clusters": 3, "objective": "kmeans", "max_steps": 3}


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((200, 4))


@pytest.fixture
def no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the fit began")

    monkeypatch.setattr(module, "fit_model", fail)


def fill_disk(monkeypatch: pytest.MonkeyPatch, *full: Path) -> None:
    """Have every write below these directories fail as on a full disk."""
    write = Path.write_bytes

    def writing(self: Path, content: bytes) -> int:
        if any(place in self.parents for place in full):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", writing)


def test_a_model_that_finds_a_full_disk_is_kept_elsewhere(x, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    fill_disk(monkeypatch, tmp_path / "full")
    with pytest.raises(
        OutputError, match=r"full/model: No space left on device; the fitted model is kept in (\S+)"
    ) as told:
        raydkm.fit(x, out=tmp_path / "full" / "model", **OPTIONS)
    kept = str(told.value).rpartition(" ")[2]
    assert kept.startswith(f"{tmp_path}/tmp/raydkm-model-")
    assert raydkm.load(kept).checksum() == raydkm.fit(x, **OPTIONS).checksum()
    assert not (tmp_path / "full").exists()


def test_the_next_place_is_tried_where_the_first_is_full_too(x, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fill_disk(monkeypatch, tmp_path / "full")
    with pytest.raises(OutputError, match=f"kept in {tmp_path}/home/raydkm-model-"):
        raydkm.fit(x, out=tmp_path / "full" / "model", **OPTIONS)


def test_a_place_that_another_fit_has_taken_meanwhile_costs_no_model(x, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    out, fit_model = tmp_path / "model", module.fit_model

    def slower(*arguments: Any, **options: Any) -> Any:
        fitted = fit_model(*arguments, **options)
        monkeypatch.setattr(module, "fit_model", fit_model)
        raydkm.fit(x, out=out, seed=1, **OPTIONS)
        return fitted

    monkeypatch.setattr(module, "fit_model", slower)
    with pytest.raises(OutputError, match=r"model exists already.*the fitted model is kept in") as told:
        raydkm.fit(x, out=out, seed=2, **OPTIONS)
    assert raydkm.load(out).config.seed == 1
    assert raydkm.load(str(told.value).rpartition(" ")[2]).config.seed == 2


@pytest.mark.parametrize("run_dir", ["model", "model/run", "link", "model/../model/run"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_run_dir_in_the_output_is_refused_at_once(x, tmp_path: Path, no_fit, run_dir: str, exists: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "model")
    if exists:
        (tmp_path / "model").mkdir()
    with pytest.raises(OutputError, match="is or holds run_dir"):
        raydkm.fit(x, out=tmp_path / "model", run_dir=str(tmp_path / run_dir), overwrite=exists, **OPTIONS)


@pytest.mark.parametrize("out", ["s3://bucket/m1", "gs://bucket/m1", "file:///tmp/m1", Path("s3://bucket/m1")])
def test_a_uri_is_no_place_for_a_model(x, tmp_path: Path, monkeypatch, out) -> None:
    monkeypatch.chdir(tmp_path)
    model = raydkm.fit(x, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit_model", None)
        with pytest.raises(OutputError, match="give a path, and copy it afterwards"):
            raydkm.fit(x, out=out, run_dir=str(tmp_path / "run"), **OPTIONS)
    with pytest.raises(OutputError, match="give a path, and copy it afterwards"):
        model.save(out)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_before_the_fit(x, tmp_path: Path, no_fit, monkeypatch) -> None:
    (tmp_path / "file").touch()
    for out, told in (
        (tmp_path / "file" / "model", "file is a file"),
        ("/proc/model", "cannot write to /proc"),
        (tmp_path / ("x" * 250), "File name too long"),
    ):
        with pytest.raises(OutputError, match=told):
            raydkm.fit(x, out=out, **OPTIONS)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 500_000, 500_000))
    with pytest.raises(OutputError, match=r"500000 bytes are free there, and the output takes \d+"):
        raydkm.fit(x, out=tmp_path / "new" / "model", **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
