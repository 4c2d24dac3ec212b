"""Callbacks that report a fit to an experiment tracker.

They are made in the driver and called in the first worker, perhaps on another machine, so what they open they open at
an event. They raise what the tracker raises: the caller goes on without them.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
import uuid
from typing import Any

from raydkm.engine.progress import Event
from raydkm.errors import ConfigError

#: Seconds between two sendings of what has been gathered; the end of a fit sends the rest.
SEND_S = 5.0

#: Metrics in one request. MLflow takes 1000, which may keep a small server busy for many seconds.
BATCH = 500

#: The tag of an MLflow run with the identity of the callback that made it.
KEY = "raydkm.callback"


class TensorBoard:
    """Writes metrics, the seconds of the phases and the configuration to an event file for TensorBoard.

    A fit that goes on after a checkpoint goes on in the same curves; of the steps that it repeats, those written
    before are hidden.

    Parameters
    ----------
    directory : str or path
        One for each fit: a path, on Ray one that the viewer reaches too, or a URI that tensorboardX writes to
        (``s3://`` with boto3, ``gs://`` with google-cloud-storage).

    Raises
    ------
    ConfigError
        Where tensorboardX is missing, or for another URI.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        _require("tensorboardX", extra="tensorboard")
        name = os.fspath(directory)
        if "://" in name and not name.startswith(("s3://", "gs://")):
            raise ConfigError(f"{name}: TensorBoard files go to a path, s3:// or gs://")
        self.directory = name if "://" in name else os.path.abspath(name)
        self._step = 0
        self._file: Any = None
        self._sent = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __call__(self, event: Event) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import text

        kind = event["event"]
        if kind == "run":
            self._step = event["resumed_step"]
            self._write(self._step + 1, session_log=SessionLog(status=SessionLog.START))
            self._write(self._step, summary=text("run", _table(event)))
        elif kind in ("failed", "lost"):
            self._write(self._step, summary=text("error", event["error"]))
        self._step = event.get("step", self._step)
        values = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in _metrics(event).items()]
        if values:
            self._write(self._step, summary=Summary(value=values))
        if kind in ("end", "failed"):
            self._file.flush()
            self._file.close()
            self._file, self._step = None, 0
        elif self._file is not None and (kind == "lost" or time.monotonic() - self._sent >= SEND_S):
            self._file.flush()
            self._sent = time.monotonic()

    def _write(self, step: int, **content: Any) -> None:
        """Append an event. Not by `SummaryWriter`: its thread hides errors, and once dead blocks who writes."""
        from tensorboardX.proto.event_pb2 import Event as Record
        from tensorboardX.record_writer import RecordWriter, directory_check

        now = time.time()
        if self._file is None:
            directory_check(self.directory)
            name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"  # TensorBoard reads them in this order
            self._file = RecordWriter(f"{self.directory}/{name}")
            self._file.write(Record(wall_time=now, file_version="brain.Event:2").SerializeToString())
        self._file.write(Record(wall_time=now, step=step, **content).SerializeToString())


class MLflow:
    """Logs configuration, metrics, seconds of the phases and the outcome as a run of an MLflow server.

    A fit whose worker was lost goes on in its run; so does one that is started again after a checkpoint, in the latest
    run of its `run_name` if it has one. The server's credentials come from the first worker's environment.

    Parameters
    ----------
    tracking_uri : str, optional
        By default that of MLFLOW_TRACKING_URI in the environment of the driver.
    experiment : str, optional
        Its name; made where it is missing. By default MLFLOW_EXPERIMENT_NAME, else MLflow's "Default".
    run_name : str, optional
        By default one that MLflow makes up.

    Raises
    ------
    ConfigError
        Where mlflow is missing, or no server is given.
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None, run_name: str | None = None):
        _require("mlflow", extra="mlflow")
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not self.tracking_uri:
            raise ConfigError("MLflow: give tracking_uri, or set MLFLOW_TRACKING_URI")
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        self.run_name = run_name
        self._key = uuid.uuid4().hex
        self._run: str | None = None
        self._step = 0
        self._gathered: list[tuple[str, float, int, int]] = []  # name, value, ms since 1970, step
        self._sent = 0.0

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "run":
            self._begin(event)
        self._step = event.get("step", self._step)
        now = int(time.time() * 1000)
        self._gathered += [(name, value, now, self._step) for name, value in _metrics(event).items()]
        if kind in ("end", "failed"):
            self._end(event)
        elif self._run and time.monotonic() - self._sent >= SEND_S:
            self._send(self._run)

    def _begin(self, event: Event) -> None:
        from mlflow.entities import Param, RunTag

        client = self._client()
        if self._run:  # another fit with this object, which was interrupted
            client.set_terminated(self._run, "KILLED")
            self._key = uuid.uuid4().hex
        self._step = event["resumed_step"]
        self._run = self._find(client, self._step)
        params = {}
        if self._run:
            client.update_run(self._run, status="RUNNING")
        else:
            found = client.get_experiment_by_name(self.experiment)
            experiment = found.experiment_id if found else client.create_experiment(self.experiment)
            self._run = client.create_run(experiment, run_name=self.run_name, tags={KEY: self._key}).info.run_id
            params = {**event["config"], "rows": event["rows"], "dim": event["dim"]}
        where = {name: event[name] for name in ("workers", "threads", "device")}  # may change; params may not
        client.log_batch(
            self._run,
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag(f"raydkm.{name}", str(value)) for name, value in where.items()],
        )

    def _send(self, run: str) -> None:
        from mlflow.entities import Metric

        client = self._client()
        for first in range(0, len(self._gathered), BATCH):
            client.log_batch(run, metrics=[Metric(*metric) for metric in self._gathered[first : first + BATCH]])
        self._gathered, self._sent = [], time.monotonic()

    def _end(self, event: Event) -> None:
        client = self._client()
        run = self._run or self._find(client, 0)  # of a lost worker, the driver may tell
        if run:
            self._send(run)
            if event["event"] == "failed":
                client.set_tag(run, "raydkm.last_error", event["error"][:5000])
            client.set_terminated(run, "FAILED" if event["event"] == "failed" else "FINISHED")
        self._run, self._step, self._gathered = None, 0, []

    def _find(self, client: Any, resumed_step: int) -> str | None:
        """The run to go on in: one that this callback began in a process now gone, or that of a fit now resumed."""
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        filters = [f"tags.`{KEY}` = '{self._key}' and attributes.status = 'RUNNING'"]
        if resumed_step and self.run_name:
            quote = '"' if "'" in self.run_name else "'"
            filters.append(f"attributes.run_name = {quote}{self.run_name}{quote}")
        for wanted in filters:
            for run in client.search_runs([experiment.experiment_id], wanted, max_results=1):  # the latest first
                return str(run.info.run_id)
        return None

    def _client(self) -> Any:
        # by default MLflow tries for many minutes, but other workers wait no longer than `timeout` for this one,
        # and prints addresses on stdout, which is the command line's
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri)


def _require(package: str, *, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{package} is not installed; pip install 'raydkm[{extra}]'")


def _metrics(event: Event) -> dict[str, float]:
    """The numbers that an event tells, by name."""
    if event["event"] == "phase":
        return {f"seconds_{event['phase']}": float(event["seconds"])}
    if event["event"] in ("step", "end"):
        return {name: float(x) for name, x in event.items() if name != "step" and isinstance(x, int | float)}
    return {}


def _table(event: Event) -> str:
    """The facts of a ``run`` as a table in Markdown."""
    facts = {**event["config"], **{name: value for name, value in event.items() if name not in ("event", "config")}}
    lines = ["| {} | {} |".format(name, str(value).replace("|", "\\|")) for name, value in facts.items()]
    return "\n".join(["| | |", "|-|-|", *lines])
