"""An encoder trained by workers on Ray: the losses of one process, also after a rank was killed."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from PIL import Image
from sklearn.datasets import load_digits

import raydkm
from raydkm.errors import InputError

pytestmark = pytest.mark.timeout(240)

WORKER = "ray::RayTrainWorker"

OPTIONS = {
    "column": "pixels",
    "clusters": 10,
    "objective": "kmeans",
    "metric": "cosine",
    "shape": "1x8x8",
    "encoder": "conv",
    "encoder_args": "channels=16-32,kernel=3,dim=32,norm=batch,bounded=false",
    "pretrain": "contrastive",
    "pretrain_epochs": 4,
    "rounds": 1,
    "epochs": 1,
    "feature_map": "neighbours:2",
    "batch": 512,
    "threads": 1,
    "amp": "fp32",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits enough for two workers, no two of them the same."""
    x = np.tile(load_digits().data * 15, (3, 1)) + np.random.default_rng(0).integers(20, size=(3 * 1797, 64))
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.minimum(x, 255).astype(np.uint8).reshape(-1)), 64)
    place = tmp_path_factory.mktemp("digits") / "digits.parquet"
    pq.write_table(pa.table({"pixels": column}), place)
    return place


def epochs(model: raydkm.Model, stage: str) -> list[float]:
    return [entry["loss"] for entry in model.record["training"] if entry["stage"] == stage and "loss" in entry]


def test_a_rank_killed_while_it_trains_costs_no_epoch(
    data: Path, tmp_path: Path, in_background: Callable, processes: Callable
) -> None:
    alone = raydkm.fit(data, engine="local", **OPTIONS)
    fit = in_background(data, tmp_path, workers=2, engine="ray", checkpoint_every=0, **OPTIONS)
    events = tmp_path / "events.jsonl"
    while fit.alive() and not (events.exists() and '"epoch": 2' in events.read_text()):
        time.sleep(0.02)
    os.kill(processes(WORKER)[-1], signal.SIGKILL)
    model = fit.model()
    assert epochs(model, "contrastive") == pytest.approx(epochs(alone, "contrastive"), rel=2e-3)
    assert len(epochs(model, "round 1")) == 1  # its seeds may fall on other rows: features differ in their last bits
    told = [json.loads(line) for line in events.read_text().splitlines()]
    ended = [event["epoch"] for event in told if event["event"] == "training" and event["stage"] == "contrastive"]
    assert ended == [1, 2, 3, 4]  # none was done again
    assert raydkm.assign(model, data, out=tmp_path / "out", engine="local")["counts"] == model.counts.tolist()


def pngs(rows: np.ndarray) -> list[bytes]:
    files = [io.BytesIO() for _ in rows]
    for row, file in zip(rows, files, strict=True):
        Image.fromarray(row.reshape(8, 8)).save(file, "PNG")
    return [file.getvalue() for file in files]


def test_encoded_images_of_a_data_set_are_decoded_by_its_tasks() -> None:
    rows = (load_digits().data[:600] * 15).astype(np.uint8)
    options = {"column": "image", "clusters": 5, "shape": "1x8x8", "workers": 1}
    model = raydkm.fit(ray.data.from_arrow(pa.table({"image": pngs(rows)})), **options)
    pixels = raydkm.fit(rows, clusters=5)
    assert model.checksum() == pixels.checksum()


def test_a_damaged_image_of_a_data_set_is_refused_by_row() -> None:
    images = pngs((load_digits().data[:50] * 15).astype(np.uint8))
    images[7] = images[7][:20]
    with pytest.raises(InputError, match=r"row 7, column 'image'"):
        raydkm.fit(
            ray.data.from_arrow(pa.table({"image": images})), column="image", clusters=5, shape="1x8x8", workers=1
        )
