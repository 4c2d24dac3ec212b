"""Fits of features that are made of the rows, from data to assignment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

import raydkm
from raydkm.config import FitRunConfig, configure
from raydkm.data.source import RowSource
from raydkm.deep.fit import fit_features
from raydkm.deep.losses import CrossEntropy
from raydkm.deep.train import Stage
from raydkm.engine.comm import Solo
from raydkm.engine.fit import Fitted
from raydkm.errors import ConfigError, EngineError, ModelError, OutputError
from raydkm.features.features import features_of
from raydkm.ops.batch import BATCH_ROWS
from raydkm.ops.metrics import clustering_accuracy
from tests.unit.engine.processes import answers_of

#: A tiny deep fit of images.
TINY = {
    "clusters": 10,
    "objective": "kmeans",
    "metric": "cosine",
    "shape": "1x8x8",
    "feature_map": "center,pca:24,unit,neighbours:2",
    "neighbours": 7,
    "encoder": "conv",
    "encoder_args": "channels=16-32,kernel=3,dim=32,norm=batch,bounded=false",
    "pretrain": "contrastive",
    "pretrain_epochs": 3,
    "rounds": 2,
    "epochs": 2,
    "batch": 128,
}


def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x * 15).astype(np.uint8), y


def enough() -> np.ndarray:
    """Digits enough for two workers, no two of them the same."""
    x, _ = digits()
    noise = np.random.default_rng(0).integers(20, size=(3, *x.shape))
    return np.minimum(np.tile(x, (3, 1, 1)) + noise, 255).astype(np.uint8).reshape(-1, 64)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("digits") / "digits.parquet"
    x, y = digits()
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 64)
    pq.write_table(pa.table({"pixels": column, "label": y}), place)
    return place


@pytest.fixture(scope="module")
def model(files: Path, tmp_path_factory: pytest.TempPathFactory) -> raydkm.Model:
    out = tmp_path_factory.mktemp("model") / "model"
    raydkm.fit(files, column="pixels", engine="local", out=out, **TINY)
    return raydkm.load(out)


def test_the_artefact_assigns_raw_rows_as_the_fit_did(model: raydkm.Model, files: Path, tmp_path: Path) -> None:
    report = raydkm.assign(model, files, out=tmp_path / "out")
    assert report["counts"] == model.counts.tolist()
    assert (model.input_dim, model.dim, model.shape) == (64, 32, (1, 8, 8))


def test_the_record_tells_of_every_epoch_and_clustering(model: raydkm.Model) -> None:
    entries = model.record["training"]
    epochs = [(entry["stage"], entry["epoch"]) for entry in entries if "epoch" in entry]
    rounds = [(f"round {number}", epoch) for number in (1, 2) for epoch in (1, 2)]
    assert epochs == [("contrastive", epoch) for epoch in (1, 2, 3)] + rounds
    assert [entry["stage"] for entry in entries if "epoch" not in entry] == ["round 1", "round 2"]
    contrastive = [entry["loss"] for entry in entries if entry["stage"] == "contrastive"]
    assert contrastive[2] < contrastive[0]


def test_clusters_keep_their_numbers_from_round_to_round(model: raydkm.Model) -> None:
    """A head goes on with what it has learned: its loss is lower at the beginning of the second round than it was."""
    losses = [
        entry["loss"] for entry in model.record["training"] if entry["stage"].startswith("round") and "loss" in entry
    ]
    assert losses[2] < losses[0]


def test_a_damaged_encoder_is_refused(model: raydkm.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    weights = tmp_path / "model" / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"encoder\.safetensors: its checksum differs"):
        raydkm.load(tmp_path / "model")
    weights.unlink()
    with pytest.raises(ModelError, match=r"encoder\.safetensors: No such file"):
        raydkm.load(tmp_path / "model")


def fit_here(rows: np.ndarray, comm: Any = None, **options: Any) -> Fitted:
    """A fit in this process, of this worker's half of the canonical batches."""
    comm = comm or Solo()
    config, made, run = configure(options)
    batches = -(-len(rows) // BATCH_ROWS)
    cuts = [batches * rank // comm.world_size * BATCH_ROWS for rank in (comm.rank, comm.rank + 1)]
    mine = torch.from_numpy(rows[cuts[0] : cuts[1]].copy())
    source = RowSource.of(mine)
    source = RowSource(source._chunks, cuts[0], len(rows))
    return fit_features(source, comm, config, made=made, run=run, threads=1, device=torch.device("cpu"))


def of_worker(comm: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    return fit_here(enough(), comm, **options).facts["training"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"positives": 3, "positive_epochs": 1, "heads": 2, "overclustering": 2, "agreement": 0.5},
            marks=pytest.mark.long,
        ),
        {
            "pretrain": "autoencoder",
            "loss": "sr-kmeans",
            "objective": "sr-kmeans",
            "metric": "euclidean",
            "feature_map": None,
            "neighbours": 15,
            "encoder_args": "channels=16-32,kernel=3,dim=16",
        },
    ],
    ids=["contrastive", "heads", "autoencoder"],
)
def test_two_workers_learn_what_one_does(changes: dict[str, Any]) -> None:
    """At equal global batch, losses agree to 0.1 % before there are clusters, and to 5 % after.

    Sums of gradients are rounded in another order, and Adam makes steps of the same size of it. A seeding of what it
    has come to may fall on other rows; of two clusters, the best of many seedings is the same.
    """
    options = {**TINY, "clusters": 2, "n_init": 16, "pretrain_epochs": 1, "rounds": 1, "epochs": 1, "batch": 512}
    options |= changes
    alone = fit_here(enough(), **options).facts["training"]
    parts = answers_of(2, of_worker, options)
    for one, two in zip(alone, parts[0], strict=True):
        assert one["stage"] == two["stage"]
        if "loss" in one:
            assert two["loss"] == pytest.approx(one["loss"], rel=5e-2 if one["stage"].startswith("round") else 1e-3)


class StopError(Exception):
    pass


def test_a_training_that_was_interrupted_goes_on_to_the_same_end(tmp_path: Path) -> None:
    x, _ = digits()
    options = {**TINY, "run_dir": str(tmp_path), "checkpoint_every": 0}
    whole = fit_here(x, **TINY)
    for wanted in ("contrastive", "round 1", "round 2"):
        _interrupt(x, options, wanted)
    resumed = fit_here(x, **options)
    told = ["loss", "epoch", "stage", "objective", "inertia"]
    assert [{k: e[k] for k in told if k in e} for e in resumed.facts["training"]] == [
        {k: e[k] for k in told if k in e} for e in whole.facts["training"]
    ]
    assert torch.equal(resumed.state.prototypes, whole.state.prototypes)


def _interrupt(x: np.ndarray, options: dict[str, Any], stage: str) -> None:
    """A fit that ends in the second epoch of a stage."""

    def rate(self: Stage) -> float:
        if self.name == stage and self.step > self.steps + 2:
            raise StopError
        return rate_of(self)

    rate_of = Stage.rate
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(Stage, "rate", rate)
        fit_here(x, **options)


def test_a_finished_training_is_not_done_again(files: Path, tmp_path: Path) -> None:
    options = {**TINY, "column": "pixels", "engine": "local", "run_dir": str(tmp_path / "run")}
    first = raydkm.fit(files, out=tmp_path / "model", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "rate", _fails)
        again = raydkm.fit(files, out=tmp_path / "model", **options)
        with pytest.raises(ConfigError, match="started with batch 128, not 64"):
            raydkm.fit(files, out=tmp_path / "model", **{**options, "batch": 64})
    assert again.checksum() == first.checksum()


def test_a_model_of_another_training_is_not_taken_for_this_one(files: Path, tmp_path: Path) -> None:
    options = {**TINY, "column": "pixels", "engine": "local", "pretrain_epochs": 1, "rounds": 1, "epochs": 1}
    first, second, out = (str(tmp_path / name) for name in ("first", "second", "model"))
    raydkm.fit(files, out=out, run_dir=first, **options)
    other = {**options, "seed": 1}
    with pytest.raises(OutputError, match="exists already"):  # the run has done nothing yet
        raydkm.fit(files, out=out, run_dir=second, **other)
    raydkm.fit(files, run_dir=second, **other)
    with pytest.raises(OutputError, match="exists already"):  # the run has done something else
        raydkm.fit(files, out=out, run_dir=second, **other)


def _fails(self: Stage) -> float:
    raise AssertionError("trained again")


def test_another_configuration_is_not_gone_on_with(tmp_path: Path) -> None:
    x, _ = digits()
    options = {**TINY, "run_dir": str(tmp_path), "checkpoint_every": 0}
    _interrupt(x, options, "contrastive")
    with pytest.raises(ConfigError, match="this run was started with batch 128, not 64"):
        fit_here(x, **{**options, "batch": 64})
    with pytest.raises(ConfigError, match="other rows"):
        fit_here(x[:-1], **options)


def test_maps_and_neighbours_alone_are_assigned_as_they_were_fitted(files: Path, tmp_path: Path) -> None:
    model = raydkm.fit(
        files, column="pixels", clusters=10, map="pca:20,neighbours:8", engine="local", out=tmp_path / "model"
    )
    report = raydkm.assign(tmp_path / "model", files, out=tmp_path / "out")
    assert report["counts"] == model.counts.tolist()
    found = raydkm.evaluate(tmp_path / "model", files, label="label")
    plain = raydkm.evaluate(raydkm.fit(files, column="pixels", clusters=10, engine="local"), files, label="label")
    assert found["acc"] > plain["acc"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"encoder": "conv", "shape": "1x8x8", "loss": "sr-kmeans", "objective": "kmeans"}, "loss sr-kmeans goes with"),
        ({"encoder": "nets"}, "must be one of identity, mlp, conv, tcn, or package.module:function"),
        ({"epochs": 3}, "epochs goes with an encoder"),
        ({"neighbours": 3}, "neighbours goes with agreement"),
        ({"encoder": "mlp", "map": "neighbours:2"}, "with an encoder it goes to feature_map"),
        ({"encoder": "mlp", "rounds": 0}, "would not be trained"),
        ({"encoder": "conv"}, "encoder conv is for rows of shape"),
        ({"encoder": "mlp", "encoder_args": "depht=3"}, "no argument 'depht'"),
        ({"shape": "28"}, "must be channels x height x width"),
        ({"agreement": 0.9}, "agreement goes with an encoder"),
        ({"encoder": "mlp", "rounds": 0, "pretrain": "contrastive", "epochs": 3}, "epochs goes with rounds"),
        ({"encoder": "mlp", "loss": "sr-kmeans", "feature_map": "center"}, "feature_map goes with loss cross-entropy"),
        ({"encoder": "mlp", "pretrain": "autoencoder", "rounds": 0, "strength": 2}, "strength goes with pretrain"),
        ({"encoder": "mlp", "denoising": 0.1}, "denoising goes with pretrain autoencoder, or loss sr-kmeans"),
        ({"encoder": "mlp", "max_time": 3}, "max_time ends ADM steps"),
        ({"encoder": "mlp", "view": "image"}, "whose views are (of )?vector"),
        ({"encoder": "nowhere.at.all:build"}, "nowhere.at.all cannot be imported|nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        raydkm.fit(digits()[0], clusters=3, **options)


def test_accuracy_is_that_of_learned_features() -> None:
    """The point of it all, on 1,797 digits: far from chance, and reproducible."""
    x, y = digits()
    labels = torch.empty(len(x), dtype=torch.int64)
    config, made, _ = configure(TINY)
    fit_features(
        RowSource.of(torch.from_numpy(x)),
        Solo(),
        config,
        made=made,
        run=FitRunConfig(),
        threads=1,
        device=torch.device("cpu"),
        labels=labels,
    )
    assert clustering_accuracy(y, labels.numpy()) > 0.6


OWN = """
from torch import nn

def build(shape, width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8))
"""


def test_an_encoder_of_ones_own_is_loaded_only_if_it_is_named(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_for_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = "mine_for_a_test:build"
    options = {"encoder": own, "encoder_args": "width=24", "rounds": 1, "epochs": 1}
    model = raydkm.fit(files, column="pixels", clusters=4, engine="local", out=tmp_path / "model", **options)
    with pytest.raises(ModelError, match="pass its function"):
        raydkm.load(tmp_path / "model")
    again = raydkm.load(tmp_path / "model", encoder=own)
    assert again.checksum() == model.checksum()
    report = raydkm.assign(tmp_path / "model", files, out=tmp_path / "out", encoder=own)
    assert report["counts"] == model.counts.tolist()


def test_a_map_before_an_encoder_is_part_of_the_model(files: Path, tmp_path: Path) -> None:
    options = {"map": "standardize", "encoder": "mlp", "encoder_args": "width=32,dim=8,residual=false", "epochs": 2}
    raydkm.fit(files, column="pixels", clusters=10, engine="local", out=tmp_path / "model", **options)
    report = raydkm.assign(tmp_path / "model", files, out=tmp_path / "out")
    assert report["counts"] == raydkm.load(tmp_path / "model").counts.tolist()


def test_features_that_are_not_finite_end_the_fit_with_advice() -> None:
    options = {"encoder": "mlp", "encoder_args": "norm=none", "learning_rate": 1e12, "rounds": 2, "epochs": 1}
    with pytest.raises(EngineError, match="the training diverged; lower learning_rate"):
        raydkm.fit(digits()[0].astype(np.float32) * 1e6, clusters=3, batch=64, **options)


def test_balanced_targets_are_learned_from_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sinkhorn targets all clusters have equal shares; the posteriors that they come from have not."""
    seen: list[torch.Tensor] = []

    def losses(self: CrossEntropy, part: Any) -> torch.Tensor:
        seen.append(part.targets[0])
        return losses_of(self, part)

    losses_of = CrossEntropy.losses
    monkeypatch.setattr(CrossEntropy, "losses", losses)
    x, _ = digits()
    options = {**TINY, "objective": "sinkhorn", "metric": "euclidean", "pretrain": "none", "rounds": 1, "epochs": 1}
    fit_here(x, **{name: value for name, value in options.items() if name != "pretrain_epochs"})
    shares = torch.cat(seen).double().mean(0)
    torch.testing.assert_close(shares, torch.full_like(shares, 0.1), rtol=0, atol=2e-3)


def test_rows_of_any_dtype_have_neighbours() -> None:
    x, _ = digits()
    labels = [
        raydkm.fit(x.astype(dtype), clusters=10, map="neighbours:2").counts.tolist() for dtype in (np.float64, np.uint8)
    ]
    assert labels[0] == labels[1]


def test_inertia_is_that_of_the_model(model: raydkm.Model, files: Path) -> None:
    found = raydkm.evaluate(model.read_as("q"), files, label="label")
    prototypes, frame = model.prototypes.double(), model.frame()
    assert model.features is not None
    z = frame(model.features(torch.from_numpy(digits()[0]))).double()
    labels = torch.cat([each.argmax(1) for each in model.scores()(z.float()).split(500)])
    inertia = float((z - prototypes[labels]).square().sum())
    assert inertia == pytest.approx(model.record["inertia"], rel=1e-4)
    assert found["inertia"] <= inertia * (1 + 1e-6)  # of the nearest prototypes


def test_prototypes_are_the_means_of_what_the_head_assigns(model: raydkm.Model) -> None:
    assert model.features is not None
    z = model.frame()(model.features(torch.from_numpy(digits()[0]))).double()
    labels = model.scores()(z.float()).argmax(1)
    means = torch.stack([z[labels == cluster].mean(0) for cluster in range(10)])
    torch.testing.assert_close(model.prototypes.double(), means, rtol=0, atol=1e-3)


def test_both_readings_of_a_model_with_a_head(model: raydkm.Model, files: Path) -> None:
    q, p = (raydkm.evaluate(model, files, label="label", reading=reading) for reading in ("q", "p"))
    assert p == raydkm.evaluate(model, files, label="label")
    assert q["mean_entropy"] == 0 < p["mean_entropy"]
    assert abs(q["acc"] - p["acc"]) < 0.1


def test_rows_that_nobody_agrees_with_end_the_fit() -> None:
    noise = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    options = {"encoder": "mlp", "agreement": 1.0, "neighbours": 40, "rounds": 1, "epochs": 1}
    with pytest.raises(EngineError, match="lower agreement"):
        raydkm.fit(noise, clusters=60, batch=64, **options)


def test_an_artefact_that_asks_for_impossible_layers_is_refused(model: raydkm.Model) -> None:
    features = model.features
    assert features is not None
    for name, value in (("dim", 10**12), ("kernel", 10**9), ("channels", [1] * 10**5)):
        described = json.loads(json.dumps(features.described()))
        described["encoder"]["arguments"][name] = value
        with pytest.raises(ModelError, match="sizes that none has"):
            features_of(described, {}, features.encoder_tensors())
    described = json.loads(json.dumps(features.described())) | {"input_dim": 10**12}
    with pytest.raises(ModelError, match="rows of 1000000000000 numbers"):
        features_of(described, {}, features.encoder_tensors())
