"""Progress: a fit tells of itself in events, and callbacks do with them what they like.

An event is a dict whose "event" is one of

- ``run``: the fit begins. `config`, `rows`, `dim`, `workers`, `threads`, `device`, `resumed_step`
- ``phase``: a phase has ended. `phase` (ingest, survey, seeding, steps, assignment), `seconds`
- ``training``: of an encoder, an epoch has ended (`stage`, `epoch`, `loss`, `seconds`, `rows_per_second`; of several
  heads also their losses `heads`), features were clustered (`stage`, `head`, `clusters`, and the fields of
  `raydkm.deep.clusters.Clustering.summary`), or it is known of how many rows the neighbours agree (`learned`)
- ``step``: the fields of a history entry, `rows_per_second` and `seconds_left` (None if unknown)
- ``end``: the fit has ended. `steps`, `stopped` (by which rule), `inertia`
- ``failed``: it was refused, or given up. `error`
- ``lost``: a worker did not answer, and all are started again. `error`; from the worker that noticed: where that is
  not the first, only to the log and the run's directory

Events come from the first worker, in order; of a run that goes on after a failure, again from ``phase`` ingest.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raydkm.data.storage import inside, locate

logger = logging.getLogger("raydkm")

Event = dict[str, Any]
Callback = Callable[[Event], None]

#: Seconds between two writings of the events of a run in an object store, which cannot append to a file.
REWRITE_S = 10.0


class Reporter:
    """Hands events to callbacks; one that fails is dropped with a warning, for a fit does not end for its tracker."""

    def __init__(self, callbacks: Iterable[Callback]):
        self._callbacks = list(callbacks)

    def __call__(self, event: str, **facts: Any) -> None:
        for callback in list(self._callbacks):
            try:
                callback({"event": event, **facts})
            except Exception as error:  # noqa: BLE001 - whatever somebody's callback raises
                self._callbacks.remove(callback)
                logger.warning("going on without the callback %r, which failed: %s", callback, error)


def reporter(run_dir: str | None, callbacks: Iterable[Callback]) -> Reporter:
    """Who is told of a run: the log, the run's directory if there is one, and the user's callbacks."""
    return Reporter([Log(), *([EventFile(run_dir)] if run_dir else []), *callbacks])


def seconds_left(history: Sequence[dict[str, Any]], target: float, max_steps: int) -> float | None:
    """Estimated seconds until the shift of the prototypes, which falls geometrically, is at its `target`.

    None before there are steps to judge from; never more than `max_steps` take.
    """
    recent = history[-6:]
    if len(recent) < 3:
        return None
    each = sum(entry["seconds"] for entry in recent) / len(recent)
    steps = float(max_steps - recent[-1]["step"])
    first, last = recent[0]["shift"], recent[-1]["shift"]
    if 0 < last < first and target > 0:
        fall = math.log(first / last) / (len(recent) - 1)
        steps = min(steps, max(1.0, math.ceil(math.log(last / target) / fall)) if last > target else 1.0)
    return steps * each


class Log:
    """Logs what a person wants to see of a run: a line a phase, and of steps at most one a second."""

    def __init__(self) -> None:
        self._last_time = 0.0
        self._last_objective: float | None = None

    def __call__(self, event: Event) -> None:
        if event["event"] == "run":
            after = f", going on after step {event['resumed_step']}" if event["resumed_step"] else ""
            logger.info(
                "fitting %s rows of %d dimensions: %d worker%s of %d thread%s, %s%s",
                f"{event['rows']:,}",
                event["dim"],
                event["workers"],
                "s" * (event["workers"] > 1),
                event["threads"],
                "s" * (event["threads"] > 1),
                event["device"],
                after,
            )
        elif event["event"] == "phase" and event["phase"] != "steps":
            logger.info("%s: %.3g s", event["phase"], event["seconds"])
        elif event["event"] == "training":
            logger.info("%s", _training(event))
        elif event["event"] == "lost":
            logger.warning("%s", event["error"])
        elif event["event"] == "step":
            now = time.monotonic()
            if event["settled"] or now - self._last_time >= 1.0:
                logger.info("%s", self._line(event))
                self._last_time, self._last_objective = now, event["objective"]

    def _line(self, event: Event) -> str:
        change = "" if self._last_objective is None else f" ({event['objective'] - self._last_objective:+.3g})"
        left = event["seconds_left"]
        end = ", settled" if event["settled"] else "" if left is None else f", about {_duration(left)} left"
        return (
            f"step {event['step']}: objective {event['objective']:.6g}{change}, shift {event['shift']:.3g}, "
            f"clusters {event['smallest']:.6g} to {event['largest']:.6g} rows, {event['rows_per_second']:.3g} rows/s, "
            f"{event['seconds']:.3g} s (compute {event['compute']:.3g}, wait {event['wait']:.3g}, "
            f"reduce {event['reduce']:.3g}){end}"
        )


def _training(event: Event) -> str:
    if "learned" in event:
        return f"learning from {event['learned']:.2%} of the rows, whose neighbours agree"
    if "epoch" in event:
        return (
            f"{event['stage']}, epoch {event['epoch']}: loss {event['loss']:.4g}, "
            f"{event['rows_per_second']:.3g} rows/s, {event['seconds']:.3g} s"
        )
    return (
        f"{event['stage']}: {event['clusters']} clusters of {event['smallest']:.6g} to {event['largest']:.6g} rows, "
        f"marginal entropy {event['marginal_entropy']:.3g} nats, objective {event['objective']:.6g} "
        f"after {event['steps']} steps"
    )


class RowsProgress:
    """Logs, at most once a second, how many of the `total` rows of an assignment are done, and how fast."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._began = self._last_time = time.monotonic()

    def __call__(self, rows: int) -> None:
        self._done += rows
        now = time.monotonic()
        if now - self._last_time < 1.0:
            return
        self._last_time = now
        rate = self._done / (now - self._began)
        left = f", about {_duration((self._total - self._done) / rate)} left" if rate else ""
        logger.info("%s of %s rows, %.3g rows/s%s", f"{self._done:,}", f"{self._total:,}", rate, left)


class EventFile:
    """Writes events as JSON lines, each with its `time` (seconds since 1970), to ``events.jsonl`` in a run directory.

    Parameters
    ----------
    run_dir : str
        Absolute path or URI. Where files cannot be appended to, those of an earlier start are read first.
    """

    def __init__(self, run_dir: str):
        self._name = inside(run_dir, "events.jsonl")
        self._lines = b""
        self._earlier: bytes | None = None
        self._written = 0.0

    def __call__(self, event: Event) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}).encode() + b"\n"
        files, path = locate(self._name)
        if isinstance(files, fs.LocalFileSystem):
            files.create_dir(path.rpartition("/")[0], recursive=True)
            with files.open_append_stream(path) as stream:
                stream.write(line)
            return
        self._lines += line
        last = event["event"] in ("end", "failed", "lost")
        if last or time.monotonic() - self._written >= REWRITE_S:
            self._written = time.monotonic()
            try:
                if self._earlier is None:
                    self._earlier = _content(files, path)
                with files.open_output_stream(path) as stream:
                    stream.write(self._earlier + self._lines)
            except (OSError, pa.ArrowException) as error:
                if last:
                    raise
                logger.warning("%s: not written (%s); trying again in %g s", self._name, error, REWRITE_S)


def _content(files: fs.FileSystem, path: str) -> bytes:
    if files.get_file_info(path).type == fs.FileType.NotFound:
        return b""
    with files.open_input_stream(path) as stream:
        return stream.read()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
