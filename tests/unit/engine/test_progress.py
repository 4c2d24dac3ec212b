from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

import raydkm
from raydkm.engine import progress
from raydkm.engine.progress import EventFile, Log, Reporter, seconds_left
from raydkm.errors import InputError

STEP = {
    "event": "step",
    "step": 7,
    "objective": 2.5,
    "shift": 0.5,
    "smallest": 3.0,
    "largest": 9.0,
    "rows_per_second": 1e6,
    "seconds": 0.2,
    "compute": 0.1,
    "wait": 0.06,
    "reduce": 0.04,
    "seconds_left": 130.0,
    "settled": False,
}


def test_a_fit_tells_its_whole_course_in_order(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    x = np.random.default_rng(0).standard_normal((500, 3))
    model = raydkm.fit(x, clusters=4, callbacks=[seen.append], run_dir=str(tmp_path))
    kinds = [event["event"] for event in seen]
    steps = [event for event in seen if event["event"] == "step"]
    assert [event["phase"] for event in seen if event["event"] == "phase"] == [
        "ingest",
        "survey",
        "seeding",
        "steps",
        "assignment",
    ]
    assert kinds[2] == "run"
    assert seen[2]["rows"] == 500
    assert kinds[-1] == "end"
    assert [event["step"] for event in steps] == list(range(1, model.record["steps"] + 1))
    for event in steps:
        assert event["seconds"] >= event["compute"] + event["wait"] + event["reduce"] > 0
        assert event["rows_per_second"] == pytest.approx(500 / event["seconds"])
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in event.items() if k != "time"} for event in written] == seen


def test_a_refused_fit_says_so_to_its_callbacks() -> None:
    seen: list[dict[str, Any]] = []
    with pytest.raises(InputError):
        raydkm.fit(np.ones((3, 2)), clusters=4, callbacks=[seen.append])
    assert seen[-1]["event"] == "failed"
    assert "4 clusters but only 3 rows" in seen[-1]["error"]


def test_a_callback_that_fails_is_dropped_and_the_fit_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    calls, others = [], []

    def broken(event: dict[str, Any]) -> None:
        calls.append(event)
        raise ConnectionError("tracker down")

    raydkm.fit(np.random.default_rng(0).standard_normal((50, 2)), clusters=3, callbacks=[broken, others.append])
    assert len(calls) == 1
    assert len(others) > 5
    assert "going on without the callback" in caplog.text
    assert "tracker down" in caplog.text


def test_steps_are_logged_once_a_second_and_when_settled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raydkm")
    log = Log()
    log(STEP)
    log(STEP)
    log(STEP | {"step": 8, "objective": 2.25, "settled": True})
    first, last = caplog.messages
    assert first == (
        "step 7: objective 2.5, shift 0.5, clusters 3 to 9 rows, 1e+06 rows/s, 0.2 s (compute 0.1, wait 0.06, "
        "reduce 0.04), about 2 min left"
    )
    assert last.startswith("step 8: objective 2.25 (-0.25), ")
    assert last.endswith(", settled")


def history(shifts: list[float]) -> list[dict[str, Any]]:
    return [{"step": number + 1, "shift": shift, "seconds": 2.0} for number, shift in enumerate(shifts)]


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ([4.0, 2.0], None),  # too early to tell
        ([8.0, 4.0, 2.0], 4.0),  # two more halvings to 0.5
        ([1.0, 1.0, 1.0], 2.0 * 97),  # not falling: as many as max_steps allows
        ([8.0, 7.9, 7.8], 2.0 * 97),
        ([0.8, 0.6, 0.4], 2.0),  # below the target in the next step, as far as one can tell
    ],
)
def test_the_end_is_estimated_from_the_fall_of_the_shift(shifts: list[float], expected: float | None) -> None:
    assert seconds_left(history(shifts), target=0.5, max_steps=100) == expected


def test_events_of_a_run_are_appended(tmp_path: Path) -> None:
    for start in range(2):
        Reporter([EventFile(str(tmp_path / "new"))])("run", start=start)
    lines = (tmp_path / "new" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["start"] for line in lines] == [0, 1]


def test_events_that_an_object_store_does_not_take_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())  # cannot be told from one that does not append
    monkeypatch.setattr(progress, "locate", lambda name: (store, "run/events.jsonl"))
    monkeypatch.setattr(progress, "REWRITE_S", 0.0)
    report = Reporter([EventFile("s3://bucket/run")])
    report("run")  # there is no such directory yet
    (tmp_path / "run").mkdir()
    report("step", step=1)
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["run", "step"]
    assert "not written" in caplog.text
