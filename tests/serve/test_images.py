"""Raw images in, the clusters that the fit found out: encoder and prototypes together, in batch and as a service."""

from __future__ import annotations

import asyncio
import io
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import raydkm
from raydkm.api.fit import fit_model
from raydkm.config import configure
from raydkm.serve.app import create_app
from raydkm.serve.service import Service
from raydkm.serve.settings import ServeConfig
from raydkm.serve.tokens import Tokens
from tests.serve.conftest import over_http

OPTIONS = {
    "clusters": 10,
    "objective": "kmeans",
    "metric": "cosine",
    "shape": "1x8x8",
    "encoder": "conv",
    "encoder_args": "channels=16-32,kernel=3,dim=32,norm=batch,bounded=false",
    "pretrain": "contrastive",
    "pretrain_epochs": 2,
    "epochs": 2,
    "batch": 128,
}


def digits() -> np.ndarray:
    return (load_digits().data * 15).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A model on disk, and the clusters that its fit reported."""
    config, made, run = configure(OPTIONS)
    model, labels = fit_model(digits(), config, made, run)
    place = tmp_path_factory.mktemp("models") / "digits"
    model.save(place)
    assert labels is not None
    assert np.bincount(labels, minlength=10).tolist() == model.counts.tolist()
    return place, labels


@pytest.fixture(scope="module")
def url(fitted: tuple[Path, np.ndarray]) -> Iterator[str]:
    service = Service(ServeConfig())
    asyncio.run(service.configure(str(fitted[0])))
    with over_http(create_app(service, Tokens())) as address:
        yield address


def asked(url: str, body: bytes, kind: str) -> list[int]:
    request = urllib.request.Request(f"{url}/v1/assign", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["cluster"]


def png(row: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(row.reshape(8, 8)).save(file, "PNG")
    return file.getvalue()


def test_pixels_in_json_get_the_clusters_of_the_fit(url: str, fitted: tuple[Path, np.ndarray]) -> None:
    body = json.dumps({"vectors": digits()[:300].tolist()}).encode()
    assert asked(url, body, "application/json") == fitted[1][:300].tolist()


def test_an_image_gets_the_cluster_of_the_fit(url: str, fitted: tuple[Path, np.ndarray]) -> None:
    for number in range(5):
        assert asked(url, png(digits()[number]), "image/png") == [fitted[1][number]]


def test_encoded_images_are_assigned_as_the_fit_did(fitted: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(row), "path": None} for row in digits()])
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    raydkm.assign(fitted[0], tmp_path / "images.parquet", column="image", out=tmp_path / "out", engine="local")
    assert pq.read_table(tmp_path / "out")["cluster"].to_numpy().tolist() == fitted[1].tolist()
