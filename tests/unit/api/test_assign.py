from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import raydkm
import raydkm.api.assign as assign_module
from raydkm.errors import ConfigError, InputError, OutputError
from raydkm.estimator import DKMeans
from raydkm.model import Model
from raydkm.objectives import OBJECTIVES


@pytest.fixture(scope="module")
def model(digits: Path) -> Model:
    return raydkm.fit(digits, column="pixels", clusters=10, temperature="0.1Tc", max_steps=10)


def written(directory: Path) -> list[str]:
    """Files but those that tell of a run, of which outputs (their ending is -00000.parquet) by their inputs' names."""
    names = (str(path.relative_to(directory)) for path in directory.rglob("*.*"))
    return sorted(name.replace("-00000.", ".") for name in names if not Path(name).name.startswith(("_", ".")))


def output_of(name: str) -> str:
    return name.replace(".parquet", "-00000.parquet")


def pixels_of(digits: Path) -> np.ndarray:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(digits.iterdir()))
    return table["pixels"].combine_chunks().flatten().to_numpy().reshape(-1, 64)


def test_one_file_is_written_for_each_input_file_with_the_columns_promised(model, digits: Path, tmp_path: Path) -> None:
    report = raydkm.assign(model, digits, out=tmp_path / "out", top=3, keep=["id", "label"])
    assert written(tmp_path / "out") == written(digits)
    assert written(tmp_path) == [f"out/{name}" for name in written(digits)]
    for path in sorted(digits.iterdir()):
        source, found = pq.read_table(path), pq.read_table(tmp_path / "out" / output_of(path.name))
        assert found.schema.remove_metadata() == pa.schema(
            [
                ("id", pa.int64()),
                ("label", pa.int16()),
                pa.field("cluster", pa.int32(), nullable=False),
                pa.field("distance", pa.float32(), nullable=False),
                pa.field("posterior", pa.float32(), nullable=False),
                pa.field("entropy", pa.float32(), nullable=False),
                ("top_clusters", pa.list_(pa.int32(), 3)),
                ("top_posteriors", pa.list_(pa.float32(), 3)),
            ]
        )
        assert found["id"].equals(source["id"])
        assert found["label"].equals(source["label"])
    assert report["rows"] == 1797
    assert report["files"] == 3
    clusters = pq.read_table(tmp_path / "out")["cluster"].to_numpy()
    assert report["counts"] == np.bincount(clusters, minlength=10).tolist()


def test_without_options_only_the_four_columns_are_written(model, digits: Path, tmp_path: Path) -> None:
    raydkm.assign(model, digits, out=tmp_path / "out")
    schema = pq.read_schema(next((tmp_path / "out").glob("*-00000.parquet")))
    assert schema.names == ["cluster", "distance", "posterior", "entropy"]
    assert schema.metadata[b"raydkm.model"].decode() == model.checksum()


@pytest.mark.parametrize(
    ("objective", "balance"),
    [*((name, 0.0) for name in OBJECTIVES), ("kmeans", 0.8), ("soft-kmeans", 0.8), ("sr-kmeans", 0.8)],
)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_assignments_agree_with_the_estimator(digits, tmp_path: Path, objective, balance, metric) -> None:
    estimator = DKMeans(
        10, objective=objective, balance=balance, metric=metric, column="pixels", random_state=0, max_steps=5
    ).fit(digits)
    raydkm.assign(estimator.model_, digits, out=tmp_path / "out", top=4, threads=2)
    found = pa.concat_tables(
        pq.read_table(tmp_path / "out" / output_of(path.name)) for path in sorted(digits.iterdir())
    )
    x = pixels_of(digits)
    labels, proba, distances = estimator.predict(x), estimator.predict_proba(x), estimator.transform(x)
    cluster = found["cluster"].to_numpy()
    rows = np.arange(len(x))
    np.testing.assert_array_equal(cluster, labels)
    np.testing.assert_array_equal(cluster, estimator.labels_)
    np.testing.assert_allclose(found["distance"], distances[rows, labels], rtol=1e-3)
    np.testing.assert_allclose(found["posterior"], proba[rows, labels], atol=1e-5)
    entropy = -(proba * np.log(np.where(proba > 0, proba, 1))).sum(1)
    np.testing.assert_allclose(found["entropy"], entropy, atol=1e-3)
    assert found["entropy"].to_numpy().min() >= 0

    top = found["top_clusters"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
    posteriors = found["top_posteriors"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
    np.testing.assert_array_equal(top[:, 0], cluster)
    np.testing.assert_allclose(posteriors, np.take_along_axis(proba, top.astype(np.int64), 1), atol=1e-5)
    if objective == "kmeans":
        assert (entropy == 0).all()
        if balance == 0:
            np.testing.assert_array_equal(top, np.argsort(distances, axis=1, kind="stable")[:, :4])
    else:
        np.testing.assert_allclose(posteriors, -np.sort(-proba, axis=1)[:, :4], atol=1e-5)


def test_rows_keep_their_order_over_row_groups(tmp_path: Path, write, rng: np.random.Generator) -> None:
    x = rng.standard_normal((40_000, 2)).astype(np.float32)
    write(tmp_path / "x.parquet", x=x, id=np.arange(len(x)), row_group_size=9_999)
    model = raydkm.fit(x[:1000], clusters=5, objective="kmeans", max_steps=3)
    raydkm.assign(model, tmp_path / "x.parquet", out=tmp_path / "out", keep=["id"], column="x")
    found = pq.read_table(tmp_path / "out")
    np.testing.assert_array_equal(found["id"], np.arange(len(x)))
    nearest = np.square(x[:, None].astype(np.float64) - model.cluster_centers).sum(2)
    chosen = nearest[np.arange(len(x)), found["cluster"].to_numpy()]
    np.testing.assert_allclose(chosen, nearest.min(1), atol=1e-5)


def test_files_of_one_name_in_two_directories_stay_apart(tmp_path: Path, write, blobs) -> None:
    x, _ = blobs(rows=30)
    first = write(tmp_path / "in" / "day=1" / "part.parquet", x=x[:10], id=np.arange(10))
    second = write(tmp_path / "in" / "day=2" / "part.parquet", x=x[10:], id=np.arange(10, 30))
    model = raydkm.fit(tmp_path / "in", column="x", clusters=2)
    for number, data in enumerate((tmp_path / "in", [second, first], f"{tmp_path}/in/*/part.parquet")):
        out = tmp_path / f"out{number}"
        raydkm.assign(model, data, out=out, keep=["id"])
        assert written(out) == ["day=1/part.parquet", "day=2/part.parquet"]
        ids = pq.ParquetFile(out / "day=2" / "part-00000.parquet").read()["id"]
        np.testing.assert_array_equal(ids, np.arange(10, 30))


def test_an_empty_file_among_others_gives_an_empty_output(tmp_path: Path, write, blobs) -> None:
    x, _ = blobs(rows=30)
    write(tmp_path / "in" / "a.parquet", x=x)
    write(tmp_path / "in" / "b.parquet", x=x[:0])
    model = raydkm.fit(tmp_path / "in", column="x", clusters=2)
    raydkm.assign(model, tmp_path / "in", out=tmp_path / "out", top=2)
    assert written(tmp_path / "out") == ["a.parquet", "b.parquet"]
    empty, full = (
        pq.read_table(tmp_path / "out" / "b-00000.parquet"),
        pq.read_table(tmp_path / "out" / "a-00000.parquet"),
    )
    assert empty.num_rows == 0
    assert empty.schema == full.schema
    parted = raydkm.assign(model, tmp_path / "in", out=tmp_path / "parted", partition_by="cluster", nearest=1)
    assert parted["rows"] == 30


def test_an_empty_file_of_pandas_goes_with_the_others(tmp_path: Path, write, blobs) -> None:
    pandas = pytest.importorskip("pandas")
    x, labels = blobs(rows=30)
    for name in ("a", "c"):
        write(tmp_path / "in" / f"{name}.parquet", x=x.tolist(), label=labels, id=[f"{name}{i}" for i in range(30)])
    pandas.DataFrame({"x": [], "label": [], "id": []}, dtype=object).to_parquet(tmp_path / "in" / "b.parquet")
    assert pq.read_schema(tmp_path / "in" / "b.parquet").field("x").type == pa.null()
    model = raydkm.fit(tmp_path / "in", column="x", clusters=2)
    assert model.record["rows"] == 60
    assert raydkm.evaluate(model, tmp_path / "in", label="label")["rows"] == 60
    for name, options in (("out", {}), ("parted", {"partition_by": "cluster"})):
        raydkm.assign(model, tmp_path / "in", out=tmp_path / name, keep=["id", "label"], nearest=2, **options)
        found = ds.dataset(tmp_path / name, partitioning="hive").to_table()
        assert sorted(found["id"].to_pylist()) == sorted(f"{name}{i}" for i in range(30) for name in "ac")
    with pytest.raises(InputError, match="column 'x' is null"):
        raydkm.fit(tmp_path / "in" / "b.parquet", column="x", clusters=2)


def test_a_saved_model_assigns_as_the_one_in_memory(model, digits: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    one = raydkm.assign(model, digits, out=tmp_path / "one", top=2)
    other = raydkm.assign(tmp_path / "model", digits, out=tmp_path / "other", top=2)
    assert one["counts"] == other["counts"]
    assert pq.read_table(tmp_path / "one").equals(pq.read_table(tmp_path / "other"))


def test_integers_and_floats_of_the_same_values_are_assigned_alike(model, digits: Path, tmp_path: Path, write) -> None:
    x = pixels_of(digits)
    write(tmp_path / "float.parquet", pixels=x.astype(np.float32))
    write(tmp_path / "half.parquet", pixels=x.astype(np.float16))
    write(tmp_path / "list.parquet", pixels=x.tolist())
    pq.write_table(
        pq.read_table(tmp_path / "list.parquet").cast(pa.schema({"pixels": pa.large_list(pa.float64())})),
        tmp_path / "list.parquet",
    )
    counts = []
    for name in ("float", "half", "list"):
        counts.append(raydkm.assign(model, tmp_path / f"{name}.parquet", out=tmp_path / name)["counts"])
    assert counts == [raydkm.assign(model, digits, out=tmp_path / "digits")["counts"]] * 3


BAD_ROWS = {
    "nan": ([[1.0, 2.0], [np.nan, 1.0]], r"b\.parquet: row 1, column 'x': NaN"),
    "null": ([[1.0, 2.0], None], r"b\.parquet: row 1, column 'x': null"),
    "ragged": ([[1.0, 2.0], [1.0]], r"b\.parquet: row 1, column 'x': 1 numbers"),
    "another dimension": ([[1.0, 2.0, 3.0]] * 2, r"b\.parquet: .* 3 .*2"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_after_a_refused_row_what_is_done_stays_and_is_no_whole_output(tmp_path: Path, write, blobs, kind: str) -> None:
    rows, told = BAD_ROWS[kind]
    out = tmp_path / "new" / "out"
    x, _ = blobs(rows=30, dim=2)
    write(tmp_path / "in" / "a.parquet", x=x.tolist())
    write(tmp_path / "in" / "b.parquet", x=rows)
    model = raydkm.fit(x, clusters=2)
    with pytest.raises(InputError, match=told):
        raydkm.assign(model, tmp_path / "in", out=out, column="x")
    assert [path.name for path in out.glob("*.parquet")] == ["a-00000.parquet"]
    assert not (out / "_SUCCESS").exists()
    write(tmp_path / "in" / "b.parquet", x=x[:5].tolist())
    with pytest.raises(OutputError, match=r"a changed input b\.parquet.*--overwrite"):
        raydkm.assign(model, tmp_path / "in", out=out, column="x")
    assert raydkm.assign(model, tmp_path / "in", out=out, column="x", overwrite=True)["rows"] == 35


def test_a_file_that_is_out_of_reach_for_a_while_costs_nothing_that_was_done(
    model, digits: Path, tmp_path: Path, monkeypatch
) -> None:
    out, files = tmp_path / "out", sorted(digits.iterdir())
    whole = assign_module.assign_range

    def unmounted(assigner, task, each, *rest) -> None:
        if each.number == 2:
            raise InputError(f"{each.source}: No such file or directory")
        whole(assigner, task, each, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(assign_module, "assign_range", unmounted)
        with pytest.raises(InputError, match=r"No such file.*what is done stays.*--overwrite"):
            raydkm.assign(model, files, out=out)
    assert raydkm.assign(model, files, out=out)["resumed"] == 2


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"keep": ["nowhere"]}, InputError, r"digits-00.*: no column 'nowhere' to keep; there are: id, pixels"),
        ({"keep": ["cluster"]}, InputError, "keep 'cluster'"),
        ({"top": 0}, ConfigError, "top 0: the model has 10 clusters"),
        ({"top": 11}, ConfigError, "top 11: the model has 10 clusters"),
        ({"column": "image"}, InputError, "no column 'image'"),
        ({"colour": 1}, ConfigError, "unknown configuration key 'colour'"),
        ({"workers": 2, "engine": "local"}, ConfigError, "workers"),
    ],
)
def test_impossible_options_are_refused_and_nothing_is_written(model, digits, tmp_path, options, kind, told) -> None:
    with pytest.raises(kind, match=told):
        raydkm.assign(model, digits, out=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_overwriting_is_asked_for(model, digits: Path, tmp_path: Path) -> None:
    first = sorted(digits.iterdir())[0]
    raydkm.assign(model, first, out=tmp_path / "out", top=2)
    before = (tmp_path / "out" / output_of(first.name)).read_bytes()
    with pytest.raises(OutputError, match="out exists already"):
        raydkm.assign(model, digits, out=tmp_path / "out")
    assert written(tmp_path) == [f"out/{first.name}"]
    assert (tmp_path / "out" / output_of(first.name)).read_bytes() == before
    raydkm.assign(model, digits, out=tmp_path / "out", overwrite=True)
    assert written(tmp_path / "out") == written(digits)
    assert "top_clusters" not in pq.read_schema(tmp_path / "out" / output_of(first.name)).names


# The index


def test_the_index_that_was_chosen_is_told_and_recorded(digits: Path, tmp_path: Path, caplog) -> None:
    hard = raydkm.fit(digits, column="pixels", clusters=300, objective="kmeans", n_init=1, max_steps=3)
    flat = raydkm.assign(hard, digits, out=tmp_path / "flat")
    assert flat["index"] == {"index": "flat", "effort": 0, "recall": 1.0, "cost": 1.0}
    found = raydkm.assign(hard, digits, out=tmp_path / "ivf", index="ivf", recall=0.95, top=2)
    assert found["index"]["index"] == "ivf"
    assert found["index"]["recall"] >= 0.95
    metadata = pq.read_schema(next((tmp_path / "ivf").glob("*-00000.parquet"))).metadata
    assert json.loads(metadata[b"raydkm.index"]) == found["index"]
    one, other = (pq.read_table(tmp_path / name)["cluster"].to_numpy() for name in ("flat", "ivf"))
    assert np.mean(one == other) > 0.9


def test_an_index_that_cannot_be_asked_for_is_refused(model, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="index ivf: a soft model compares all prototypes"):
        raydkm.assign(model, digits, out=tmp_path / "out", index="ivf")
    with pytest.raises(ConfigError, match="recall"):
        raydkm.assign(model, digits, out=tmp_path / "out", recall=2)
    assert not (tmp_path / "out").exists()
