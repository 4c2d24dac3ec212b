from __future__ import annotations

from pathlib import Path

import pytest

from raydkm import atomic
from raydkm.atomic import MARKER, check_free, new_directory
from raydkm.errors import OutputError


def make(directory: Path, **files: str) -> None:
    """A directory that raydkm wrote, as far as its marker tells."""
    directory.mkdir()
    for name, text in {MARKER: "", **files}.items():
        (directory / name).write_text(text)


def tree(root: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


def test_a_directory_appears_when_its_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_directory(out, overwrite=False) as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "file").write_text("whole")
        assert not out.exists()
        assert staging.parent == out.parent  # on the same file system, for the rename
    assert tree(tmp_path) == {"out": None, f"out/{MARKER}": "", "out/deep": None, "out/deep/file": "whole"}


@pytest.mark.parametrize("place", ["out", "new/deeper/out"])
@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, place: str, exception: type[BaseException]) -> None:
    with pytest.raises(exception), new_directory(tmp_path / place, overwrite=False) as staging:
        (staging / "file").write_text("half")
        raise exception
    assert tree(tmp_path) == {}


def test_parents_that_were_there_stay_after_an_exception(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no"), new_directory(tmp_path / "empty" / "new" / "out", overwrite=False):
        raise ValueError("no")
    assert tree(tmp_path) == {"empty": None}


def test_an_exception_leaves_what_was_to_be_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "out", old="old")
    with pytest.raises(ValueError, match="no"), new_directory(tmp_path / "out", overwrite=True) as staging:
        (staging / "new").write_text("new")
        raise ValueError("no")
    assert tree(tmp_path) == {"out": None, f"out/{MARKER}": "", "out/old": "old"}


def test_overwriting_replaces_the_whole_directory(tmp_path: Path) -> None:
    make(tmp_path / "out", old="old")
    with new_directory(tmp_path / "out", overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert tree(tmp_path) == {"out": None, f"out/{MARKER}": "", "out/new": "new"}


def test_an_empty_directory_may_be_overwritten_and_one_that_raydkm_did_not_write_may_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty", overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert (tmp_path / "empty" / "new").read_text() == "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("mine")
    with (
        pytest.raises(OutputError, match="mine was not written by raydkm"),
        new_directory(tmp_path / "mine", overwrite=True),
    ):
        pytest.fail("the block ran")
    assert tree(tmp_path / "mine") == {"thesis": "mine"}


def test_the_working_directory_itself_may_be_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_directory(".", overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert tree(tmp_path) == {"here": None, f"here/{MARKER}": "", "here/new": "new"}


@pytest.mark.parametrize("kind", ["directory", "file", "link", "dangling link"])
def test_an_existing_place_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"out exists already.*--overwrite"):
        check_free(out, overwrite=False)
    with pytest.raises(OutputError, match="exists already"), new_directory(out, overwrite=False):
        pytest.fail("the block ran")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_never_overwritten_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out is a file"), new_directory(tmp_path / "out", overwrite=True):
        pytest.fail("the block ran")
    assert tree(tmp_path) == {"out": "mine"}


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_is_never_overwritten_nor_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / target)
    with pytest.raises(OutputError, match="out is a link"), new_directory(tmp_path / "out", overwrite=True):
        pytest.fail("the block ran")
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]


def test_a_place_taken_while_the_block_ran_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="exists already"), new_directory(out, overwrite=False) as staging:
        (staging / "new").write_text("new")
        out.mkdir()
        (out / "theirs").write_text("theirs")
    assert tree(tmp_path) == {"out": None, "out/theirs": "theirs"}


def test_a_parent_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"cannot write to .*file"),
        new_directory(tmp_path / "file" / "out", overwrite=False),
    ):
        pytest.fail("the block ran")
    assert tree(tmp_path) == {"file": "mine"}


def test_a_directory_of_somebody_elses_is_not_overwritten(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="was not written by raydkm"):
        check_free(home, overwrite=True)
    with pytest.raises(OutputError, match="was not written by raydkm"), new_directory(home, overwrite=True):
        pass
    assert (home / "thesis.txt").read_text() == "years of work"


def test_the_disk_holds_the_names_of_all_new_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(atomic, "flush", flushed.append)
    atomic.make_directory(tmp_path / "a" / "b" / "c")
    assert set(flushed) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}


def test_where_the_swap_fails_the_old_directory_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with new_directory(out, overwrite=False) as staging:
        (staging / "old").touch()
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("no luck")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no luck"), new_directory(out, overwrite=True):
        pass
    assert (out / "old").exists()
    assert list(tmp_path.iterdir()) == [out]
