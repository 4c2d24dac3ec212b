from __future__ import annotations

import importlib.util
import os
import pickle
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raydkm.callbacks
from raydkm.callbacks import MLflow, TensorBoard
from raydkm.config import FitConfig
from raydkm.engine.progress import Event
from raydkm.errors import ConfigError


def fit_events(first: int = 1, last: int = 3, failed: bool = False) -> Iterator[Event]:
    """What a fit tells of itself, from step `first` to `last`."""
    yield {"event": "phase", "phase": "ingest", "seconds": 0.5}
    yield {"event": "phase", "phase": "survey", "seconds": 0.25}
    config = FitConfig(clusters=3).model_dump()
    facts = {"rows": 100, "dim": 4, "workers": 1, "threads": 2, "device": "cpu"}
    yield {"event": "run", "config": config, **facts, "resumed_step": first - 1}
    yield {"event": "phase", "phase": "seeding", "seconds": 0.125}
    for step in range(first, last + 1):
        yield {"event": "step", "step": step, **step_terms(step), "settled": step == last, "seconds_left": None}
    if failed:
        yield {"event": "failed", "error": "the third row is bad"}
    else:
        yield {"event": "phase", "phase": "steps", "seconds": 4.0}
        yield {"event": "end", "steps": last, "settled": True, "inertia": 12.5}


def step_terms(step: int) -> dict[str, Any]:
    return {"objective": 1 / step, "shift": 0.5**step, "relocated": 0, "seconds": 0.01, "rows_per_second": 1e4}


def tell(callback: Callable[[Event], None], events: Iterator[Event]) -> None:
    for event in events:
        callback(event)


def records(directory: Path) -> list[Any]:
    """Every event in the files of a directory, in the order in which TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event as Record

    found = []
    for path in sorted(directory.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            found.append(Record.FromString(content[at + 12 : at + 12 + size]))
            at += size + 16  # size, its checksum, the record, its checksum
    return found


def curve(directory: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values of a tag, less those that a restart hides."""
    points: list[tuple[int, float]] = []
    for record in records(directory):
        if record.session_log.status == 1:  # START
            points = [(step, value) for step, value in points if step < record.step]
        points += [(record.step, value.simple_value) for value in record.summary.value if value.tag == tag]
    return points


def texts(directory: Path, tag: str) -> list[str]:
    values = [value for record in records(directory) for value in record.summary.value]
    return [value.tensor.string_val[0].decode() for value in values if value.tag == f"{tag}/text_summary"]


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def needs_tensorboardx(self) -> None:
        pytest.importorskip("tensorboardX")

    def test_the_files_hold_metrics_phases_and_configuration(self, tmp_path: Path) -> None:
        tell(TensorBoard(tmp_path / "runs"), fit_events())
        directory = tmp_path / "runs"
        assert curve(directory, "step/objective") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
        assert curve(directory, "step/settled") == [(1, 0), (2, 0), (3, 1)]
        assert curve(directory, "step/seconds_left") == []
        assert curve(directory, "phase/seconds_survey") == [(0, 0.25)]
        assert curve(directory, "phase/seconds_steps") == [(3, 4.0)]
        assert curve(directory, "end/inertia") == [(3, 12.5)]
        [table] = texts(directory, "run")
        assert "| clusters | 3 |" in table and "| rows | 100 |" in table and r"| init | k-means\|\| |" in table
        assert all(record.wall_time > 1e9 for record in records(directory))

    def test_a_resumed_fit_goes_on_at_its_step_and_hides_what_it_repeats(self, tmp_path: Path) -> None:
        interrupted = TensorBoard(tmp_path)
        for event in fit_events(1, 5):
            interrupted(event)
            if event.get("step") == 4:
                break
        interrupted._file.flush()
        tell(TensorBoard(tmp_path), fit_events(3, 5))
        assert len(list(tmp_path.iterdir())) == 2
        assert [step for step, _ in curve(tmp_path, "step/objective")] == [1, 2, 3, 4, 5]
        raw = [
            record.step for record in records(tmp_path) if any(v.tag == "step/objective" for v in record.summary.value)
        ]
        assert raw == [1, 2, 3, 4, 3, 4, 5]

    def test_it_pickles_before_use_and_amid_it(self, tmp_path: Path) -> None:
        callback = pickle.loads(pickle.dumps(TensorBoard(tmp_path)))
        for event in fit_events():
            callback(event)
            callback._file and callback._file.flush()
            callback = pickle.loads(pickle.dumps(callback))
        assert [step for step, _ in curve(tmp_path, "step/objective")] == [1, 2, 3]

    def test_a_failed_fit_says_why_and_one_object_serves_two_fits(self, tmp_path: Path) -> None:
        callback = TensorBoard(tmp_path)
        tell(callback, fit_events(failed=True))
        assert texts(tmp_path, "error") == ["the third row is bad"]
        tell(callback, fit_events())
        assert [step for step, _ in curve(tmp_path, "step/objective")] == [1, 2, 3]

    def test_nothing_is_opened_before_the_first_event_and_events_appear_soon(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(raydkm.callbacks, "SEND_S", 0.0)
        callback = TensorBoard(tmp_path / "runs")
        assert not (tmp_path / "runs").exists()
        told = fit_events()
        callback(next(told))
        assert curve(tmp_path / "runs", "phase/seconds_ingest") == [(0, 0.5)]

    def test_a_relative_directory_is_the_drivers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert TensorBoard("runs").directory == str(tmp_path / "runs")
        assert TensorBoard("s3://bucket/runs").directory == "s3://bucket/runs"
        with pytest.raises(ConfigError, match="a path, s3:// or gs://"):
            TensorBoard("hdfs://host/runs")

    def test_a_directory_that_cannot_be_written_raises(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError):
            tell(TensorBoard(tmp_path / "file" / "runs"), fit_events())


class TestMLflow:
    @pytest.fixture(autouse=True)
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no other without a server
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
        return os.environ["MLFLOW_TRACKING_URI"]

    @pytest.fixture
    def client(self, store: str) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(store)

    def runs(self, client: Any, experiment: str = "Default") -> list[Any]:
        found = client.get_experiment_by_name(experiment)
        return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])) if found else []

    def steps(self, client: Any, run: Any) -> list[tuple[int, float]]:
        history = client.get_metric_history(run.info.run_id, "objective")
        return [(metric.step, metric.value) for metric in history]

    def test_a_run_holds_params_metrics_and_status(self, client: Any, store: str) -> None:
        tell(MLflow(store, experiment="digits", run_name="it's 3"), fit_events())
        [run] = self.runs(client, "digits")
        assert run.info.status == "FINISHED"
        assert run.info.run_name == "it's 3"
        assert run.data.params["clusters"] == "3" and run.data.params["rows"] == "100"
        assert run.data.params.keys() == {*FitConfig.model_fields, "rows", "dim"}
        assert run.data.tags["raydkm.threads"] == "2"
        assert self.steps(client, run) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        assert run.data.metrics["inertia"] == 12.5 and run.data.metrics["steps"] == 3
        assert run.data.metrics["seconds_ingest"] == 0.5 and run.data.metrics["seconds_steps"] == 4
        assert run.data.metrics["settled"] == 1 and "seconds_left" not in run.data.metrics
        [metric] = client.get_metric_history(run.info.run_id, "inertia")
        assert metric.step == 3 and abs(metric.timestamp / 1000 - time.time()) < 600

    def test_metrics_go_in_batches(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[int] = []
        log_batch = type(client).log_batch

        def counted(self: Any, *args: Any, metrics: Any = (), **rest: Any) -> None:
            sent.append(len(metrics))
            log_batch(self, *args, metrics=metrics, **rest)

        monkeypatch.setattr(type(client), "log_batch", counted)
        tell(MLflow(), fit_events(last=400))
        assert len(sent) < 20 and 0 < max(sent) <= 1000
        [run] = self.runs(client)
        assert [step for step, _ in self.steps(client, run)] == list(range(1, 401))

    def test_a_failed_fit_is_failed_and_one_refused_before_its_run_has_none(self, client: Any) -> None:
        callback = MLflow()
        callback({"event": "failed", "error": "no such file"})
        assert self.runs(client) == []
        tell(callback, fit_events(failed=True))
        [run] = self.runs(client)
        assert run.info.status == "FAILED"
        assert run.data.tags["raydkm.last_error"] == "the third row is bad"
        assert [step for step, _ in self.steps(client, run)] == [1, 2, 3]

    def test_one_object_serves_two_fits(self, client: Any) -> None:
        callback = MLflow()
        tell(callback, fit_events())
        tell(callback, fit_events(last=2))
        assert len(self.runs(client)) == 2

    def test_it_pickles_before_use_and_amid_it(self, client: Any) -> None:
        callback = pickle.loads(pickle.dumps(MLflow()))
        for event in fit_events():
            callback(event)
            callback = pickle.loads(pickle.dumps(callback))
        [run] = self.runs(client)
        assert run.info.status == "FINISHED"
        assert [step for step, _ in self.steps(client, run)] == [1, 2, 3]

    def test_a_fit_whose_worker_was_lost_goes_on_in_its_run(self, client: Any) -> None:
        made = pickle.dumps(MLflow())
        lost = pickle.loads(made)
        for event in fit_events(1, 5):
            lost(event)
            if event.get("step") == 2:
                break
        lost._send(lost._run)
        tell(pickle.loads(made), fit_events(3, 5))
        [run] = self.runs(client)
        assert run.info.status == "FINISHED"
        assert [step for step, _ in self.steps(client, run)] == [1, 2, 3, 4, 5]

    def test_the_driver_can_tell_that_a_lost_fit_failed(self, client: Any) -> None:
        in_driver = MLflow()
        in_worker = pickle.loads(pickle.dumps(in_driver))
        for event in fit_events():
            if event["event"] == "end":
                break
            in_worker(event)
        [run] = self.runs(client)
        assert run.info.status == "RUNNING"
        in_driver({"event": "failed", "error": "workers lost"})
        [run] = self.runs(client)
        assert run.info.status == "FAILED"

    def test_a_resumed_fit_goes_on_in_the_run_of_its_name(self, client: Any) -> None:
        tell(MLflow(run_name="it's"), fit_events(1, 2, failed=True))
        tell(MLflow(run_name="it's"), fit_events(3, 4))
        [run] = self.runs(client)
        assert run.info.status == "FINISHED"
        assert [step for step, _ in self.steps(client, run)] == [1, 2, 3, 4]
        tell(MLflow(run_name="it's"), fit_events(1, 2))  # not resumed
        tell(MLflow(), fit_events(3, 4))  # nameless
        assert len(self.runs(client)) == 3

    def test_an_interrupted_fit_is_killed_by_the_next_with_its_object(self, client: Any) -> None:
        callback = MLflow()
        for event in fit_events():
            if event["event"] == "end":
                break
            callback(event)
        tell(callback, fit_events())
        assert [run.info.status for run in self.runs(client)] == ["KILLED", "FINISHED"]

    def test_a_server_that_is_down_raises(self) -> None:
        from mlflow.exceptions import MlflowException

        with pytest.raises(MlflowException, match="failed with exception"):
            tell(MLflow("http://127.0.0.1:9"), fit_events())

    def test_a_server_must_be_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
            MLflow()


@pytest.mark.parametrize(("callback", "extra"), [(TensorBoard, "tensorboard"), (MLflow, "mlflow")])
def test_a_missing_package_is_refused_at_once(
    callback: Callable[[str], Any], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'raydkm\[{extra}\]'"):
        callback("place")
