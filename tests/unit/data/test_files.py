from __future__ import annotations

from pathlib import Path

import pytest

from raydkm.data.files import find_files, relative_names
from raydkm.data.storage import check_apart, locate
from raydkm.errors import InputError, OutputError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b/2.parquet", "b/1.parquet", "a/3.parquet", "a/note.txt", "_meta/4.parquet", ".x/5.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "_6.parquet").touch()
    return tmp_path


def names(files: list[str], root: Path) -> list[str]:
    return [str(Path(file).relative_to(root)) for file in files]


def test_a_directory_means_its_visible_parquet_files_sorted(tree: Path) -> None:
    assert names(find_files(tree), tree) == ["a/3.parquet", "b/1.parquet", "b/2.parquet"]


def test_files_directories_and_globs_mix_and_their_order_does_not_matter(tree: Path) -> None:
    items = [tree / "a", f"{tree}/b/*.parquet"]
    assert find_files(items) == find_files(items[::-1]) == find_files(tree)
    assert find_files(f"{tree}/[ab]/**/[0-9].parquet") == find_files(tree)
    assert names(find_files(tree / "b" / "1.parquet"), tree) == ["b/1.parquet"]


def test_a_hidden_directory_may_be_named_itself(tree: Path) -> None:
    assert names(find_files(tree / "_meta"), tree) == ["_meta/4.parquet"]


@pytest.mark.parametrize("again", ["a/3.parquet", "a", "a/../a/3.parquet", "*/3.parquet", "link.parquet"])
def test_a_file_named_twice_is_refused(tree: Path, again: str) -> None:
    (tree / "link.parquet").symlink_to(tree / "a" / "3.parquet")
    with pytest.raises(InputError, match=r"3\.parquet.* named twice|named twice .*3\.parquet"):
        find_files([tree / "a" / "3.parquet", f"{tree}/{again}"])


@pytest.mark.parametrize(
    ("item", "told"),
    [("none.parquet", "no such file or directory$"), ("b/9*.parquet", "and no match"), (".", "no .* files in this")],
)
def test_what_matches_nothing_is_refused_by_name(tmp_path: Path, item: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as refusal:
        find_files(tmp_path / item)
    assert str(tmp_path) in str(refusal.value)


def test_no_data_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no input"):
        find_files([])


def test_odd_names_and_both_ways_to_name_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "ts=10%3A00 a?b#c" / "x.parquet"
    odd.parent.mkdir()
    odd.touch()
    [name] = find_files(f"file://{tmp_path}")
    assert locate(name)[1] == str(odd)
    assert relative_names([name]) == ["x.parquet"]
    with pytest.raises(InputError, match="named twice"):
        find_files([odd, name])


def test_files_of_several_storages_have_names_below_one_root() -> None:
    assert relative_names(["/data/a.parquet", "s3://bucket/b.parquet?scheme=http&endpoint_override=x"]) == [
        "data/a.parquet",
        "bucket/b.parquet",
    ]


def test_a_number_sign_is_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "run#1").mkdir()
    (tmp_path / "run#1" / "a.parquet").touch()
    [found] = find_files(f"file://{tmp_path}/run#1")
    assert locate(found)[1] == str(tmp_path / "run#1" / "a.parquet")
    assert locate(f"file://{tmp_path}/run#1/checkpoint")[1] == f"{tmp_path}/run#1/checkpoint"


def test_an_output_that_holds_an_input_is_refused(tmp_path: Path) -> None:
    name = str(tmp_path / "deep" / "data.parquet")
    for given in (name, f"file://{name}"):
        for out in (tmp_path, name):
            with pytest.raises(OutputError, match="holds the input"):
                check_apart(out, [given])
    with pytest.raises(OutputError, match="holds the input"):
        check_apart("/", [name])
    check_apart(tmp_path / "out", [name, str(tmp_path / "out.parquet")])
