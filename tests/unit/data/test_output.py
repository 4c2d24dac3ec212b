"""Outputs that are removed, taken over, or written to storage that fails for a while."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from raydkm.atomic import MARKER
from raydkm.data import output as output_module
from raydkm.data import storage
from raydkm.data.output import Output
from raydkm.errors import OutputError
from tests.unit.data.dying import Dying, Stopped


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(str(tmp_path / "out"))
    made.begin()
    for name in ("_SUCCESS", "_first.json", "a.parquet", "cluster=1/deep/b.parquet"):
        made.commit(name, b"content")
    return made


@pytest.mark.parametrize("removed", range(4))
def test_what_a_removal_that_dies_leaves_has_its_marker_and_no_success(
    output: Output, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    files = Dying()
    files.left = removed
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_LOCAL", files)
        with pytest.raises(Stopped):
            output.remove("_SUCCESS", "_first.json")
    there = output.sizes().keys()
    assert MARKER in there
    assert ("_SUCCESS" in there) == (removed == 0)
    assert "_first.json" in there  # the last but the marker
    output.remove("_SUCCESS", "_first.json")
    assert not Path(output.name).exists()


def test_the_marker_is_the_last_thing_in_a_directory(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Stopped

    monkeypatch.setattr(output_module.shutil, "rmtree", die)
    monkeypatch.setattr(Output, "end", lambda self: None)
    with pytest.raises(Stopped):
        output.remove("_SUCCESS", "_first.json")
    assert (Path(output.name) / MARKER).exists()


def test_what_cannot_be_removed_is_told_after_some_tries(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Path] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: tries.append(path))
    monkeypatch.setattr(output_module.time, "sleep", lambda _: None)
    with pytest.raises(OutputError, match="cannot remove"):
        output.end()
    assert 1 < len(tries) < 100
    with pytest.raises(OutputError, match="another run has taken it over"):  # the place was renamed first
        output.commit("late", b"")


class Flaky:
    """An object store whose next writes fail."""

    def __init__(self, failures: int):
        self.failures, self.files = failures, fs.LocalFileSystem()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def open_output_stream(self, path: str) -> Any:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("503 Slow Down")
        return self.files.open_output_stream(path)


def test_writes_to_an_object_store_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, files = Output(str(tmp_path)), Flaky(2)
    monkeypatch.setattr(output_module, "locate", lambda name: (files, name))
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.0)
    output.commit("a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    files.failures = 99
    with pytest.raises(OutputError, match=r"a: cannot be written, after 4 attempts \(503 Slow Down\)"):
        output.commit("a", b"other")
