"""`raydkm assign --endpoint` writes what a batch assignment would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import raydkm
from raydkm.cli import main
from raydkm.errors import InputError
from raydkm.serve.client import Client, ServiceError
from raydkm.serve.endpoint import assign_at
from tests.serve.conftest import ADMIN, DIM, TOKEN, Running


@pytest.fixture
def files(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """5,000 rows and 7, in two files, one of another assignment; the service takes 2,000 a request."""
    rng = np.random.default_rng(3)
    for name, rows in (("many", 5000), ("cluster=9", 7)):
        place = tmp_path / "data" / name
        place.mkdir(parents=True)
        write(place / "x.parquet", id=np.arange(rows), x=rng.standard_normal((rows, DIM)).astype(np.float32))
    return tmp_path / "data"


@pytest.mark.parametrize("top", [None, 3])
def test_the_columns_are_those_of_a_batch_assignment(
    service: Running,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    top: int | None,
) -> None:
    monkeypatch.setenv("RAYDKM_TOKEN", TOKEN)
    more = [] if top is None else ["--top", str(top)]
    out = tmp_path / "served"
    arguments = [str(files), "--endpoint", service.url, "--out", str(out), "--column", "x", "--keep", "id", *more]
    with pytest.raises(SystemExit) as ended:
        main(["assign", *arguments, "--json"])
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["files"]) == (5007, 2)
    model = raydkm.load(service.models / "first")
    raydkm.assign(model, files, column="x", keep=["id"], top=top, out=tmp_path / "local", engine="local", threads=1)
    for name in ("many/x-00000.parquet", "cluster%3D9/x-00000.parquet"):
        found, expected = pq.read_table(out / name), pq.read_table(tmp_path / "local" / name)
        assert found.schema.equals(expected.schema)
        assert found.equals(expected)
        assert found.schema.metadata[b"raydkm.model"].decode() == model.checksum()


def test_a_refused_job_leaves_nothing(service: Running, files: Path, tmp_path: Path) -> None:
    given = {"data": [str(files)], "out": str(tmp_path / "out"), "column": "x"}
    with pytest.raises(ServiceError, match="401"):
        assign_at(service.url, **given)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAYDKM_TOKEN", TOKEN)
        with pytest.raises(InputError, match="'cluster'"):
            assign_at(service.url, **given, keep=["cluster"])
        with pytest.raises(ServiceError, match="top 99"):
            assign_at(service.url, **given, top=99)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_model_that_changes_meanwhile_ends_the_job(
    service: Running, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDKM_TOKEN", TOKEN)
    with service.client(ADMIN) as admin:
        told = admin.describe() | {"model": "another"}
        monkeypatch.setattr(Client, "describe", lambda _: told)
        with pytest.raises(ServiceError, match="another model"):
            assign_at(service.url, [str(files)], out=str(tmp_path / "out"), column="x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["m", "--out", "o"], "no data"),
        (["d", "--out", "o", "--endpoint", "http://h", "--workers", "2"], "workers: with endpoint"),
        (["d", "--out", "o", "--endpoint", "http://h:x"], "http://host:port"),
        (["d", "--out", "s3://o", "--endpoint", "http://h"], "local directory"),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], reason: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["assign", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
