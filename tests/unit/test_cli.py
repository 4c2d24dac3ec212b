from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import raydkm
from raydkm import errors
from raydkm.cli import app, main
from raydkm.config import AssignConfig, FeatureConfig, FitConfig, FitRunConfig, PlanConfig

GOOD = [[float(i), float(i * i % 7)] for i in range(12)]


@pytest.fixture
def run(capsys):
    """Run a command in this process; return (exit code, stdout, stderr)."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where outputs would go: an empty directory beside the inputs."""
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


@pytest.fixture
def data(tmp_path: Path, write) -> Path:
    return write(tmp_path / "inputs" / "good.parquet", x=GOOD, id=list(range(12)), label=[i // 6 for i in range(12)])


def one_line(text: str) -> dict[str, Any]:
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return json.loads(text)


def options_of(command: str) -> set[str]:
    found = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {option for parameter in found for option in parameter.opts if option.startswith("--")}


# Every parameter of the configuration is an option


def test_fit_has_an_option_for_every_parameter() -> None:
    fields = [*FitConfig.model_fields, *FeatureConfig.model_fields, *FitRunConfig.model_fields]
    declared = {f"--{name.replace('_', '-')}" for name in fields}
    assert options_of("fit") == declared | {"--out", "--config", "--overwrite", "--json"}


def test_assign_has_an_option_for_every_parameter_of_a_run() -> None:
    declared = {f"--{name.replace('_', '-')}" for name in AssignConfig.model_fields}
    own = {"--out", "--top", "--keep", "--column", "--reading", "--encoder", "--endpoint", "--overwrite", "--json"}
    assert options_of("assign") == declared | own


def test_the_help_of_assign_tells_of_no_other_command(run) -> None:
    _, text, _ = run("assign", "--help")
    assert "Ray Train" not in text
    assert "ray.data" not in text


def test_plan_has_an_option_for_every_parameter() -> None:
    declared = {f"--{name.replace('_', '-')}" for name in PlanConfig.model_fields}
    assert options_of("plan") == declared | {"--calibrate", "--json"}


@pytest.mark.parametrize("command", ["fit", "assign", "evaluate", "inspect", "demo", "plan"])
def test_every_command_has_json_and_help(run, command: str) -> None:
    assert "--json" in options_of(command)
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "--json" in out


OPTIONS = {
    "clusters": 3,
    "objective": "soft-kmeans",
    "metric": "cosine",
    "temperature": "0.2Tc",
    "balance": 0.5,
    "init": "random",
    "n_init": 2,
    "seed_rows": 11,
    "max_steps": 3,
    "tol": 0.01,
    "seed": 4,
    "precision": "fp32",
    "weight": "w",
}


def test_options_reach_the_model_from_the_command_line_and_from_yaml(run, place: Path, write) -> None:
    path = write(place.parent / "in.parquet", x=(np.array(GOOD) + 1).tolist(), w=[1.0] * 12)
    flags = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    code, _, err = run("fit", path, "--column", "x", *flags, "--out", place / "flags", "--engine", "local")
    assert code == 0, err
    lines = [f"{name.replace('_', '-')}: {json.dumps(value)}" for name, value in OPTIONS.items()]
    (place.parent / "fit.yaml").write_text("\n".join([*lines, "column: x", "threads: 1"]))
    code, _, err = run("fit", path, "--config", place.parent / "fit.yaml", "--out", place / "yaml")
    assert code == 0, err
    one, other = raydkm.load(place / "flags"), raydkm.load(place / "yaml")
    assert one.config == other.config == FitConfig(column="x", **OPTIONS)
    assert one.checksum() == other.checksum()


def test_the_command_line_wins_over_yaml(run, data: Path, place: Path) -> None:
    (place.parent / "fit.yaml").write_text("clusters: 5\ncolumn: x\nseed: 3\n")
    code, _, err = run("fit", data, "--config", place.parent / "fit.yaml", "--clusters", 2, "--out", place / "model")
    assert code == 0, err
    config = raydkm.load(place / "model").config
    assert (config.clusters, config.seed) == (2, 3)


def test_initial_prototypes_come_from_an_npy_file_that_holds_no_pickle(run, data: Path, place: Path) -> None:
    np.save(place.parent / "start.npy", np.array(GOOD[:2]))
    arguments = ("fit", data, "--column", "x", "--clusters", 2, "--out", place / "model", "--init")
    assert run(*arguments, place.parent / "start.npy")[0] == 0
    assert raydkm.load(place / "model").record["seeding"]["init"] == "array"
    np.save(place.parent / "evil.npy", np.array([{}]), allow_pickle=True)
    code, _, err = run(*arguments, place.parent / "evil.npy", "--overwrite")
    assert code == 2
    assert "init" in err


# What is printed


def test_json_is_exactly_one_line_on_stdout_for_the_whole_path(run, data: Path, place: Path) -> None:
    model, out = place / "model", place / "out"
    code, text, _ = run("fit", data, "--column", "x", "--clusters", 2, "--out", model, "--json")
    assert code == 0
    fitted = one_line(text)
    assert (fitted["rows"], fitted["clusters"], fitted["model"]) == (12, 2, str(model))

    code, text, _ = run("assign", model, data, "--out", out, "--keep", "id,label", "--top", 2, "--json")
    assert code == 0
    assert one_line(text)["rows"] == 12
    assert pq.read_schema(out / "good-00000.parquet").names[:3] == ["id", "label", "cluster"]

    code, text, _ = run("evaluate", model, data, "--label", "label", "--json")
    assert code == 0
    assert {"acc", "nmi", "ari", "inertia", "sizes", "mean_entropy"} <= set(one_line(text))

    code, text, _ = run("inspect", model, "--json")
    assert code == 0
    inspected = one_line(text)
    assert len(inspected["history"]) == inspected["steps"]
    assert sum(inspected["counts"]) == 12
    assert inspected["config"]["column"] == "x"


def test_text_is_for_people_and_goes_to_stdout(run, data: Path, place: Path) -> None:
    code, out, _ = run("fit", data, "--column", "x", "--clusters", 2, "--out", place / "model")
    assert code == 0
    assert "inertia" in out
    assert "12" in out
    code, out, _ = run("inspect", place / "model")
    assert code == 0
    assert "History" in out
    assert "sr-kmeans" in out
    for arguments in (("assign", place / "model", data, "--out", place / "out"), ("evaluate", place / "model", data)):
        code, out, _ = run(*arguments, *(["--label", "label"] if arguments[0] == "evaluate" else []))
        assert code == 0
        assert "rows" in out


def test_a_plan_shows_its_arithmetic_and_the_workers_for_a_deadline(run) -> None:
    size = ("plan", "--rows", 10**9, "--dim", 768, "--clusters", 10**5, "--objective", "kmeans", "--device", "h100")
    code, out, _ = run(*size, "--workers", 64, "--memory", 400, "--deadline", 4)
    assert code == 0
    for told in ("15,626,240 rows × 1.54e+08 op", "all-reduce", "bound by arithmetic", "assumed, not measured"):
        assert told in out
    code, out, _ = run(*size, "--workers", 64, "--json")
    assert code == 0
    found = one_line(out)
    assert found["seconds"] == pytest.approx(sum(term["seconds"] for term in found["fit"]))
    assert found["workers_needed"] is None
    assert run("plan", "--dim", 3)[0] == 2


# What is refused: exit code 2, one sentence on stderr, nothing written


def refused(run, place: Path, *arguments: Any, told: str, kind: str) -> str:
    before = sorted(place.parent.rglob("*"))
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("raydkm: ")
    assert err.count("\n") == 1, "one sentence on one line"
    assert "Traceback" not in err
    for part in told.split("|"):
        assert part in err
    code, out, err = run(*arguments, "--json")
    assert code == 2
    assert one_line(out) == {"error": err.removeprefix("raydkm: ").rstrip("\n"), "kind": kind}
    assert sorted(place.parent.rglob("*")) == before
    return err


def fit_arguments(data: Any, place: Path, *more: Any) -> list[Any]:
    data = data if isinstance(data, list) else [data]
    return ["fit", *data, "--column", "x", "--clusters", 2, "--out", place / "model", *more]


BAD_COLUMNS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "a missing column": ({"y": GOOD}, [], "bad.parquet|no column 'x'|y"),
    "ragged vectors": ({"x": [*GOOD[:7], [1.0]]}, [], "bad.parquet|row 7|column 'x'"),
    "NaN": ({"x": [*GOOD[:5], [0.0, float("nan")]]}, [], "bad.parquet|row 5|column 'x'|NaN"),
    "an infinite value": ({"x": [*GOOD[:5], [0.0, float("inf")]]}, [], "bad.parquet|row 5|column 'x'|infinite"),
    "a null vector": ({"x": [*GOOD[:3], None]}, [], "bad.parquet|row 3|column 'x'|null"),
    "a null in a vector": ({"x": [*GOOD[:3], [1.0, None]]}, [], "bad.parquet|row 3|column 'x'|null"),
    "no rows": ({"x": pa.array([], pa.list_(pa.float32()))}, [], "bad.parquet|no rows"),
    "words": ({"x": ["a", "b", "c"]}, [], "bad.parquet|column 'x' is string"),
    "empty vectors": ({"x": pa.array([[], [], []], pa.list_(pa.float32()))}, [], "bad.parquet|row 0|column 'x'"),
    "too large a value": ({"x": [*GOOD[:4], [1e30, 1.0]]}, [], "bad.parquet|row 4|column 'x'"),
    "a zero vector": (
        {"x": [*GOOD[1:5], [0.0, 0.0]]},
        ["--metric", "cosine"],
        "bad.parquet|row 4|column 'x'|zero vector",
    ),
    "a negative weight": (
        {"x": GOOD, "w": [*range(11), -1]},
        ["--weight", "w"],
        "bad.parquet|row 11|column 'w'|-1",
    ),
    "a null weight": ({"x": GOOD, "w": [1, None, *range(10)]}, ["--weight", "w"], "bad.parquet|row 1|column 'w'|null"),
    "a missing weight": ({"x": GOOD}, ["--weight", "w"], "bad.parquet|no column 'w'"),
    "a weight in words": ({"x": GOOD, "w": ["a"] * 12}, ["--weight", "w"], "bad.parquet|'w' is string"),
    "weights of zero": ({"x": GOOD, "w": [0] * 12}, ["--weight", "w"], "all weights are zero"),
}


@pytest.mark.parametrize("kind", BAD_COLUMNS)
def test_bad_columns_are_refused_by_file_row_and_column(run, place: Path, write, kind: str) -> None:
    columns, more, told = BAD_COLUMNS[kind]
    path = write(place.parent / "inputs" / "bad.parquet", **columns)
    refused(run, place, *fit_arguments(path, place, *more), told=told, kind="InputError")


@pytest.mark.parametrize("fixed", [True, False])
def test_two_dimensions_across_files_are_refused(run, place: Path, write, fixed: bool) -> None:
    two, three = np.ones((5, 2)), np.ones((5, 3))
    write(place.parent / "inputs" / "a.parquet", x=two if fixed else two.tolist())
    write(place.parent / "inputs" / "b.parquet", x=three if fixed else three.tolist())
    arguments = fit_arguments(place.parent / "inputs", place)
    refused(run, place, *arguments, told="b.parquet|column 'x'|3|2", kind="InputError")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_refused(run, place: Path, data: Path, share: float) -> None:
    content = data.read_bytes()
    (data.parent / "cut.parquet").write_bytes(content[: int(share * len(content))])
    arguments = fit_arguments([data, data.parent / "cut.parquet"], place)
    refused(run, place, *arguments, told="cut.parquet|not a readable Parquet file", kind="InputError")


def test_a_file_named_twice_is_refused(run, place: Path, data: Path) -> None:
    for again in (data, data.parent, f"{data.parent}/*.parquet"):
        refused(run, place, *fit_arguments([data, again], place), told="good.parquet|named twice", kind="InputError")


def test_data_that_are_not_there_are_refused(run, place: Path) -> None:
    refused(run, place, *fit_arguments(place / "none", place), told="none|no such file", kind="InputError")
    refused(run, place, *fit_arguments(place, place), told="outputs|no Parquet files", kind="InputError")


@pytest.mark.parametrize(
    ("more", "told", "kind"),
    [
        (["--clusters", 13], "13 clusters but only 12 rows", "InputError"),
        (["--clusters", 0], "clusters|got 0", "ConfigError"),
        (["--clusters", -1], "clusters|got -1", "ConfigError"),
        (["--objective", "k-modes"], "objective|kmeans, soft-kmeans, sr-kmeans|k-modes", "ConfigError"),
        (["--temperature", "hot"], "temperature|hot", "ConfigError"),
        (["--temperature", "inf"], "temperature|inf", "ConfigError"),
        (["--lam", 1, "--temperature", 2], "temperature or lam", "ConfigError"),
        (["--balance", 1.5], "balance|1.5", "ConfigError"),
        (["--metric", "manhattan"], "metric|manhattan", "ConfigError"),
        (["--init", "nowhere.npy"], "init|nowhere.npy", "ConfigError"),
        (["--engine", "spark"], "engine|spark", "ConfigError"),
        (["--engine", "local", "--workers", 2], "workers", "ConfigError"),
        (["--device", "cuda:99"], "cuda:99", "ConfigError"),
        (["--config", "nowhere.yaml"], "nowhere.yaml", "ConfigError"),
    ],
)
def test_impossible_options_are_refused(run, place: Path, data: Path, more, told: str, kind: str) -> None:
    refused(run, place, *fit_arguments(data, place, *more), told=told, kind=kind)


def test_an_unknown_configuration_key_is_refused(run, place: Path, data: Path) -> None:
    (place.parent / "fit.yaml").write_text("clusterz: 3\n")
    arguments = fit_arguments(data, place, "--config", place.parent / "fit.yaml")
    refused(run, place, *arguments, told="unknown configuration key 'clusterz'|'clusters'", kind="ConfigError")


@pytest.mark.parametrize("key", ["out: m", "data: x.parquet", "overwrite: true", "json: true", "sample-weight: [1.0]"])
def test_what_is_no_configuration_is_refused_in_yaml(run, place: Path, data: Path, key: str) -> None:
    (place.parent / "fit.yaml").write_text(f"seed: 3\n{key}\n")
    arguments = fit_arguments(data, place, "--config", place.parent / "fit.yaml")
    name = key.partition(":")[0].replace("-", "_")
    refused(run, place, *arguments, told=f"fit.yaml: {name}: no configuration key", kind="ConfigError")


def test_a_uri_as_the_output_of_a_fit_is_refused(run, place: Path, data: Path, monkeypatch) -> None:
    monkeypatch.chdir(place.parent)
    arguments = [*fit_arguments(data, place)[:-1], "s3://bucket/m1"]
    refused(run, place, *arguments, told="s3://bucket/m1: this output is a directory", kind="OutputError")


def test_no_column_is_refused_with_the_names_there_are(run, place: Path, data: Path) -> None:
    arguments = ("fit", data, "--clusters", 2, "--out", place / "model")
    refused(run, place, *arguments, told="--column|x, id, label", kind="InputError")


def test_nothing_is_left_where_the_parents_of_the_output_are_not_there_yet(run, place: Path, write, data) -> None:
    bad = write(data.parent / "bad.parquet", x=[*GOOD[:5], [0.0, float("nan")]])
    arguments = ("fit", bad, "--column", "x", "--clusters", 2, "--out", place / "a" / "b" / "model")
    refused(run, place, *arguments, told="bad.parquet|row 5", kind="InputError")


def test_an_assignment_that_ends_before_its_end_is_no_output_and_says_how_to_go_on(
    run, place: Path, write, data
) -> None:
    assert run(*fit_arguments(data, place))[0] == 0
    bad = write(data.parent / "bad.parquet", x=[*GOOD[:5], [0.0, float("nan")]])
    arguments = ("assign", place / "model", data, bad, "--out", place / "a" / "out")
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    for part in ("bad.parquet", "row 5", "what is done stays", "--overwrite"):
        assert part in err
    assert not (place / "a" / "out" / "_SUCCESS").exists()


def test_an_existing_output_is_refused_and_overwrite_replaces_it(run, place: Path, data: Path) -> None:
    assert run(*fit_arguments(data, place))[0] == 0
    again = fit_arguments(data, place, "--clusters", 3)
    refused(run, place, *again, told="model exists already|--overwrite", kind="OutputError")
    assert run(*again, "--overwrite")[0] == 0
    assert raydkm.load(place / "model").clusters == 3
    assign = ("assign", place / "model", data, "--out", place / "out")
    assert run(*assign)[0] == 0
    refused(run, place, *assign, "--top", 2, told="out exists already|--overwrite", kind="OutputError")
    assert run(*assign, "--top", 2, "--overwrite")[0] == 0
    assert "top_clusters" in pq.read_schema(place / "out" / "good-00000.parquet").names
    assert sorted(path.name for path in place.iterdir()) == ["model", "out"]
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("mine")
    own = ("fit", data, "--column", "x", "--clusters", 2, "--out", place / "mine", "--overwrite")
    refused(run, place, *own, told="mine was not written by raydkm", kind="OutputError")


def test_an_output_is_checked_before_any_row_is_read(run, place: Path, write) -> None:
    bad = write(place.parent / "bad.parquet", x=[[float("nan")]] * 5)
    (place / "model").mkdir()
    refused(run, place, *fit_arguments(bad, place), told="model exists already", kind="OutputError")


def test_the_other_commands_refuse_as_fit_does(run, place: Path, data: Path, write) -> None:
    assert run(*fit_arguments(data, place))[0] == 0
    model, out = place / "model", place / "out"
    wide = write(data.parent / "wide.parquet", x=np.ones((3, 5)), label=[1, 2, 3])
    nan = write(data.parent / "nan.parquet", x=[*GOOD[:2], [float("nan"), 1.0]], label=[1, 2, 3])
    for path, told in ((wide, "wide.parquet|5|2"), (nan, "nan.parquet|row 2|column 'x'|NaN")):
        refused(run, place, "evaluate", model, path, "--label", "label", told=told, kind="InputError")
    refused(run, place, "assign", model, wide, "--out", out, told="wide.parquet|5|2", kind="InputError")
    refused(run, place, "assign", model, data, "--out", out, "--top", 3, told="top 3|2 clusters", kind="ConfigError")
    refused(run, place, "assign", model, data, "--out", out, "--keep", "z", told="good|'z'", kind="InputError")
    refused(run, place, "evaluate", model, data, "--label", "z", told="good.parquet|'z'", kind="InputError")
    for command in (["assign", place / "none", data, "--out", out], ["inspect", place / "none"]):
        refused(run, place, *command, told="none|model.json", kind="ModelError")
    (model / "prototypes.safetensors").write_bytes(b"")
    refused(run, place, "inspect", model, told="prototypes.safetensors|checksum", kind="ModelError")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit"],
        ["fit", "data.parquet"],
        ["fit", "data.parquet", "--out", "model", "--colour", "red"],
        ["fit", "data.parquet", "--out", "model", "--clusters", "many"],
        ["assign", "model"],
        ["evaluate", "model", "data.parquet"],
        ["cluster"],
        ["demo", "--workers", "0"],
    ],
)
def test_a_wrong_usage_ends_with_exit_code_2(run, arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


# Ctrl-C


@pytest.mark.parametrize("run_dir", [None, "before", "after"])
def test_an_interrupt_ends_a_fit_at_once_and_says_how_to_resume(place: Path, data: Path, run_dir: str | None) -> None:
    """Also while threads are at work that does not end: here one seeding, or step, of ten minutes."""
    held = "raydkm.objectives.distance.DistanceObjective.begin" if run_dir != "after" else "raydkm.engine.fit.adm"
    code = f"""
import os, sys, time
from unittest import mock
def hold(*_, **__):
    os.write(1, b"held\\n")
    time.sleep(600)
import raydkm.engine.fit
from raydkm.cli import main
with mock.patch({held!r}, hold):
    main(sys.argv[1:])
"""
    more = [] if run_dir is None else ["--run-dir", place.parent / "run"]
    arguments = [str(each) for each in fit_arguments(data, place, *more, "--threads", 2)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    told = {
        None: "nothing was saved; with --run-dir DIR",
        "before": "nothing was saved in",
        "after": "the same command resumes after the last checkpoint in",
    }[run_dir]
    assert f"raydkm: interrupted; {told}" in err.decode()
    assert not (place / "model").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("one"), 2),
        (errors.InputError("one"), 2),
        (errors.ModelError("one"), 2),
        (errors.UnreadableError("one"), 3),
        (errors.EngineError("one"), 3),
        (errors.WorkerLostError("one"), 3),
    ],
)
def test_the_exit_code_tells_bad_input_from_machines_that_fail(
    run, monkeypatch: pytest.MonkeyPatch, error: errors.RaydkmError, code: int
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("raydkm.api.fit.fit", fails)
    assert run("fit", "data", "--out", "m") == (code, "", "raydkm: one\n")
