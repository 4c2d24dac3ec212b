from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import raydkm
from raydkm.errors import ConfigError, InputError
from raydkm.model import Model
from raydkm.ops.metrics import clustering_accuracy


@pytest.fixture(scope="module")
def model(digits: Path) -> Model:
    return raydkm.fit(digits, column="pixels", clusters=10)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), labels=st.integers(1, 4), clusters=st.integers(1, 5))
def test_accuracy_is_that_of_the_best_matching(seed: int, labels: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(labels, size=30), rng.integers(clusters, size=30)
    most = max(labels, clusters)
    best = max(float(np.mean(truth == np.array(order)[found])) for order in permutations(range(most)))
    assert clustering_accuracy(truth, found) == pytest.approx(best)


def test_figures_are_those_of_the_assignments(model: Model, digits: Path, tmp_path: Path) -> None:
    scores = raydkm.evaluate(model, digits, label="label")
    raydkm.assign(model, digits, out=tmp_path / "out", keep=["label"])
    found = pq.read_table(tmp_path / "out").to_pandas()
    assert scores["rows"] == 1797
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(found["label"], found["cluster"]))
    assert scores["ari"] == pytest.approx(adjusted_rand_score(found["label"], found["cluster"]))
    assert scores["inertia"] == pytest.approx((found["distance"].astype(float) ** 2).sum())
    assert scores["mean_entropy"] == pytest.approx(found["entropy"].astype(float).mean(), rel=1e-5)
    assert scores["sizes"] == np.bincount(found["cluster"], minlength=10).tolist()
    assert scores["acc"] > 0.6
    assert scores["inertia"] == pytest.approx(model.record["inertia"], rel=1e-4)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.bool_()])
def test_labels_of_any_type_serve(tmp_path: Path, kind: pa.DataType) -> None:
    x = np.repeat(np.array([[0.0, 0.0], [9.0, 9.0]], dtype=np.float32), 20, axis=0)
    column = pa.array(["0"] * 20 + ["1"] * 20).cast(kind) if kind != pa.bool_() else pa.array([False, True] * 20).sort()
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 2), "label": column})
    pq.write_table(table, tmp_path / "x.parquet")
    model = raydkm.fit(tmp_path / "x.parquet", column="x", clusters=2)
    scores = raydkm.evaluate(model, tmp_path / "x.parquet", label="label")
    assert (scores["acc"], scores["nmi"], scores["ari"]) == pytest.approx((1, 1, 1))


def test_a_missing_label_column_is_refused_by_file(model: Model, digits: Path) -> None:
    with pytest.raises(InputError, match=r"digits-00.*: no label column 'class'; there are: id, pixels, label"):
        raydkm.evaluate(model, digits, label="class")


def test_labels_with_nulls_are_refused_by_file_and_column(tmp_path: Path, write, blobs) -> None:
    x, _ = blobs(rows=4)
    path = write(tmp_path / "x.parquet", x=x, label=[1, 0, None, 1])
    model = raydkm.fit(path, column="x", clusters=2)
    with pytest.raises(InputError, match=r"x\.parquet: row 2, column 'label': null"):
        raydkm.evaluate(model, path, label="label")


@pytest.fixture
def weighed(tmp_path: Path, write, blobs) -> tuple[Path, Model, np.ndarray]:
    x, labels = blobs(rows=400, dim=3, clusters=3, apart=1.0)
    weight = np.random.default_rng(0).integers(0, 9, size=400).astype(float)
    path = write(tmp_path / "x.parquet", x=x, label=labels, w=weight, other=10 * weight)
    return path, raydkm.fit(path, column="x", weight="w", clusters=3), x


@pytest.mark.parametrize("objective", ["kmeans", "sr-kmeans"])
def test_rows_weigh_as_in_the_fit(weighed, objective: str) -> None:
    path, *_ = weighed
    model = raydkm.fit(path, column="x", weight="w", clusters=3, objective=objective)
    found = raydkm.evaluate(model, path, label="label")
    assert found["inertia"] == pytest.approx(model.record["inertia"], rel=1e-4)
    assert found["weights"] == pytest.approx(model.counts.tolist())
    assert (found["weight"], sum(found["sizes"])) == ("w", 400)
    plain = raydkm.evaluate(model, path, label="label", unweighted=True)
    assert (plain["weight"], plain["weights"]) == (None, plain["sizes"])
    assert plain["inertia"] < 0.5 * found["inertia"]
    other = raydkm.evaluate(model, path, label="label", weight="other")
    assert other["inertia"] == pytest.approx(10 * found["inertia"])
    assert other["mean_entropy"] == pytest.approx(found["mean_entropy"])
    for figure in ("acc", "nmi", "ari"):
        assert plain[figure] == found[figure] == other[figure]


def test_a_weight_column_that_files_lack_is_told(
    weighed, tmp_path: Path, write, caplog: pytest.LogCaptureFixture
) -> None:
    path, model, x = weighed
    raydkm.evaluate(model, path, label="label")
    assert "weigh" not in caplog.text
    bare = write(tmp_path / "bare.parquet", x=x, label=[0] * 400)
    assert raydkm.evaluate(model, [path, bare], label="label")["weight"] is None
    assert "bare.parquet: no column 'w', by which the fit weighed rows" in caplog.text


def test_weights_that_are_none_are_refused(weighed, tmp_path: Path, write) -> None:
    path, model, x = weighed
    with pytest.raises(InputError, match=r"x\.parquet: no column 'v'"):
        raydkm.evaluate(model, path, label="label", weight="v")
    with pytest.raises(ConfigError, match="weight or unweighted"):
        raydkm.evaluate(model, path, label="label", weight="w", unweighted=True)
    bad = write(tmp_path / "bad.parquet", x=x, label=[0] * 400, w=["a"] * 400)
    with pytest.raises(InputError, match="weight column 'w' is string, not numeric"):
        raydkm.evaluate(model, bad, label="label")
    zero = write(tmp_path / "zero.parquet", x=x, label=[0] * 400, w=[0.0] * 400)
    with pytest.raises(InputError, match="all weights are zero in column 'w'"):
        raydkm.evaluate(model, zero, label="label")


LARGE = 2**53


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([LARGE, LARGE + 1], pa.int64()), pa.array([LARGE, LARGE + 1], pa.uint64())),
        (pa.array([1, 2], pa.int8()), pa.array([1.0, 2.0], pa.float64())),
        (pa.array([0, 1]), pa.array([False, True])),
        (pa.array([1.0, 2.0], pa.float16()), pa.array([1, 2], pa.uint8())),
        (pa.array(["a", "b"]), pa.array(["a", "b"]).dictionary_encode()),
        (pa.array(["a", "b"], pa.large_string()), pa.array(["a", "b"], pa.string_view())),
    ],
)
def test_equal_labels_of_several_files_are_one_class_and_others_are_not(
    tmp_path, first: pa.Array, second: pa.Array
) -> None:
    x = np.repeat(np.array([[0.0, 0.0], [9.0, 9.0]], dtype=np.float32), 20, axis=0)
    for name, labels in (("a", first), ("b", second)):
        column = pa.concat_arrays([labels.slice(number, 1) for number in np.repeat([0, 1], 20)])
        pq.write_table(pa.table({"x": x.tolist(), "label": column}), tmp_path / f"{name}.parquet")
    model = raydkm.fit(tmp_path, column="x", clusters=2)
    scores = raydkm.evaluate(model, tmp_path, label="label")
    assert (scores["acc"], scores["nmi"], scores["ari"]) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (pa.array([1, 2]), pa.array(["1", "2"]), r"b\.parquet: labels in 'label' are texts, in .*a\.parquet numbers"),
        (pa.array([[1], [2]]), pa.array([[1], [2]]), r"a\.parquet: column 'label' is list<element: int64>; labels are"),
        (pa.array([{"a": 1}] * 2), pa.array([{"a": 1}] * 2), r"a\.parquet: column 'label' is struct<a: int64>; labels"),
        (pa.array([1.0, 2.0]), pa.array([1.0, np.nan]), r"b\.parquet: row 1, column 'label': NaN"),
        (pa.array([1.0, 2.0], pa.float16()), pa.array([np.nan, 1.0], pa.float16()), r"b\.parquet: row 0, .*: NaN"),
        (pa.array(["a", "b"]), pa.array(["a", None]), r"b\.parquet: row 1, column 'label': null"),
    ],
)
def test_labels_that_cannot_be_compared_are_refused_with_their_place(tmp_path, first, second, told: str) -> None:
    for name, labels in (("a", first), ("b", second)):
        pq.write_table(pa.table({"x": [[0.0, 1.0], [9.0, 8.0]], "label": labels}), tmp_path / f"{name}.parquet")
    model = raydkm.fit(tmp_path, column="x", clusters=2)
    with pytest.raises(InputError, match=told):
        raydkm.evaluate(model, tmp_path, label="label")
