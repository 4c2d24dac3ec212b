"""The command line: parse, call one function, print.

Results go to stdout, progress and errors to stderr. Options that configure a fit derive from `raydkm.config`.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from raydkm.config import AssignConfig, FeatureConfig, FitConfig, FitRunConfig, PlanConfig, build, read_yaml
from raydkm.errors import ConfigError, RaydkmError
from raydkm.serve.settings import ServeAddress, ServeConfig

app = typer.Typer(
    name="raydkm",
    help="Soft, regularised, balanced k-means for billions of vectors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[list[str], typer.Argument(help="Parquet files, directories or globs.", show_default=False)]
ModelPath = Annotated[Path, typer.Argument(help="Model directory.", show_default=False)]
Reading = Annotated[
    str | None, typer.Option(help="Assign by q (targets) or p (posterior of the discriminative model).")
]
Encoder = Annotated[
    str | None,
    typer.Option(help="Your own encoder (package.module:build), of a model fitted with it.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


def with_options_of(*models: type[BaseModel]) -> Callable:
    """Give a command one option for each field of `models`; those that are set arrive as ``options``."""

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        derived = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _type_on_the_command_line(field.annotation) | None,
                    typer.Option(f"--{name.replace('_', '-')}", help=_help(field), show_default=False),
                ],
            )
            for name, field in fields.items()
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            options = {name: values.pop(name) for name in fields}
            command(**values, options={name: value for name, value in options.items() if value is not None})

        run.__signature__ = inspect.Signature([*own, *derived])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *derived]}
        return run

    return decorate


def _type_on_the_command_line(annotation: Any) -> Any:
    """int or float for such a field (also an optional one); all else is text for the configuration to judge."""
    kinds = set(get_args(annotation)) - {type(None)} or {annotation}
    return kinds.pop() if kinds in ({int}, {float}) else str


def _help(field: Any) -> str:
    has_default = field.default is not None and not field.is_required()
    return f"{field.description} (default: {field.default})" if has_default else field.description


@contextmanager
def _interruptible(told: Callable[[], str]) -> Iterator[None]:
    """At Ctrl-C say how to resume, and end at once, whatever threads are at; Ray and others are ended as at an exit."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"raydkm: interrupted; {told()}\n")
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)


def _saved_by(run_dir: str | None) -> str:
    """What an interrupted fit has saved."""
    from raydkm.api.finished import can_resume

    if run_dir is None:
        return "nothing was saved; with --run-dir DIR a fit can be resumed"
    if can_resume(run_dir):
        return f"the same command resumes after the last checkpoint in {run_dir}"
    return f"nothing was saved in {run_dir} yet; the same command starts again"


@app.command(no_args_is_help=True)
@with_options_of(FitConfig, FeatureConfig, FitRunConfig)
def fit(
    *,
    data: Data,
    out: Annotated[str, typer.Option("--out", help="Directory for the model.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of options; those on the command line win.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    options: dict[str, Any],
) -> None:
    """Fit a model to the rows of Parquet files."""
    options = {**(read_yaml(config) if config is not None else {}), **options}
    with _interruptible(lambda: _saved_by(options.get("run_dir"))):
        from raydkm.api.fit import fit as fit_

        model = fit_(data, out=out, overwrite=overwrite, **options)
    summary = {"model": out, **_summary(model)}
    _print(summary, as_json, title=f"Fitted {out}")


@app.command(no_args_is_help=True)
@with_options_of(AssignConfig)
def assign(
    *,
    model: Annotated[str, typer.Argument(help="Model directory; not with --endpoint.", show_default=False)],
    data: Annotated[
        list[str] | None, typer.Argument(help="Parquet files, directories or globs.", show_default=False)
    ] = None,
    out: Annotated[str, typer.Option("--out", help="Directory (path or URI) for the assignments.", show_default=False)],
    top: Annotated[int | None, typer.Option(help="Also write the M best clusters and posteriors.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Input column to copy; may be repeated, or a,b,c.")] = None,
    column: Annotated[str | None, typer.Option(help="Feature column, if not called as in the fit.")] = None,
    reading: Reading = None,
    encoder: Encoder = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL of a service to ask, instead of a model; its token is RAYDKM_TOKEN.", show_default=False
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    options: dict[str, Any],
) -> None:
    """Write cluster, distance, posterior and entropy of every row."""
    kept = [name for item in keep or [] for name in item.split(",")]
    if endpoint is not None:
        from raydkm.serve.endpoint import assign_at

        own = {"reading": reading, "encoder": encoder}
        if refused := [*options, *(name for name, value in own.items() if value is not None)]:
            names = ", ".join(sorted(refused))
            raise ConfigError(f"{names}: with endpoint the service chooses; drop it")
        given = [model, *(data or [])]
        found = assign_at(endpoint, given, out=out, top=top, keep=kept, column=column, overwrite=overwrite)
        _print(found, as_json, title=f"Assigned to {out}")
        return
    from raydkm.api.assign import assign as assign_

    if not data:
        raise ConfigError("no data: name Parquet files after the model, or a service with --endpoint")
    with _interruptible(lambda: "what is done stays, and the same command does the rest"):
        summary = assign_(
            model,
            data,
            out=out,
            top=top,
            keep=kept,
            column=column,
            reading=reading,
            encoder=encoder,
            overwrite=overwrite,
            **options,
        )
    if len(summary["counts"]) > 100:  # they are in _summary.parquet
        del summary["counts"]
    _print(summary, as_json, title=f"Assigned to {out}")


@app.command(no_args_is_help=True)
def evaluate(
    model: ModelPath,
    data: Data,
    label: Annotated[str, typer.Option(help="Column of true labels.", show_default=False)],
    column: Annotated[str | None, typer.Option(help="Feature column, if not called as in the fit.")] = None,
    weight: Annotated[str | None, typer.Option(help="Weight column, if not called as in the fit.")] = None,
    unweighted: Annotated[
        bool, typer.Option("--unweighted", help="Rows weigh 1, though the fit had a weight column.")
    ] = False,
    reading: Reading = None,
    encoder: Encoder = None,
    as_json: Json = False,
) -> None:
    """Compare clusters with labels: ACC, NMI, ARI; inertia, sizes, entropy."""
    from raydkm.api.evaluate import evaluate as evaluate_

    found = evaluate_(
        model,
        data,
        label=label,
        column=column,
        weight=weight,
        unweighted=unweighted,
        reading=reading,
        encoder=encoder,
    )
    _print(found, as_json, title=f"{model} against '{label}'")


@app.command("inspect", no_args_is_help=True)
def inspect_(model: ModelPath, encoder: Encoder = None, as_json: Json = False) -> None:
    """Show what a model is, how it was made, its clusters and its history."""
    from raydkm.model import load

    loaded = load(model, encoder=encoder)
    summary = {
        "model": str(model),
        **_summary(loaded),
        "config": loaded.config.model_dump(),
        "record": loaded.record,
        "counts": loaded.counts.tolist(),
        "history": loaded.history,
    }
    if as_json:
        _print(summary, as_json, title="")
        return
    _print(_summary(loaded) | loaded.record, False, title=str(model))
    columns = ("step", "objective", "distortion", "posterior_entropy", "shift", "smallest", "largest")
    table = Table(*(name.replace("_", "\n") for name in columns), title="History", box=box.SIMPLE_HEAD)
    shown = loaded.history if len(loaded.history) <= 12 else [*loaded.history[:6], None, *loaded.history[-5:]]
    for entry in shown:
        table.add_row(*("…" if entry is None else _text(entry[name], digits=4) for name in columns))
    Console().print(table)


@app.command(no_args_is_help=True)
@with_options_of(ServeConfig, ServeAddress)
def serve(
    *,
    model: ModelPath,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without tokens (RAYDKM_TOKENS).")
    ] = False,
    options: dict[str, Any],
) -> None:
    """Answer HTTP requests by a model, until SIGINT, SIGTERM or SIGHUP."""
    from raydkm.serve.port import reserved

    names = ServeAddress.model_fields
    address = build(ServeAddress, {name: value for name, value in options.items() if name in names})
    config = build(ServeConfig, {name: value for name, value in options.items() if name not in names})
    with reserved(address):  # before Ray is imported, which takes seconds
        from raydkm.serve.ray_serve import serve_until_signalled

        serve_until_signalled(str(model), config, address, insecure=insecure)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where to work; replaced if it exists.")] = Path("demo"),
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers.")] = 2,
    as_json: Json = False,
) -> None:
    """Run the whole path on real digits: Parquet shards, a fit on local Ray, evaluation, assignment."""
    from raydkm.api.demo import demo as demo_

    _print(demo_(directory, workers=workers), as_json, title="SR-K-means on scikit-learn's digits, on local Ray")


@app.command(no_args_is_help=True)
@with_options_of(PlanConfig)
def plan(
    *,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this CPU with the real kernels, for this d and K.")
    ] = False,
    as_json: Json = False,
    options: dict[str, Any],
) -> None:
    """Estimate what a fit takes: memory, seconds a step and in all, workers for a deadline."""
    from raydkm.api.plan import plan as plan_

    found = plan_(calibrate=calibrate, **options)
    if as_json:
        _print(found, as_json, title="")
        return
    for title, terms in (("A step", found["step"]), ("The fit", found["fit"])):
        table = Table("", "seconds", "how", title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for term in terms:
            table.add_row(term["name"], _text(term["seconds"], digits=3), term["how"])
        Console().print(table)
    held = {f"rows, {tier}": _gib(size) for tier, size in found["tiers"].items() if size}
    beside = {name: _gib(size) for name, size in found["memory"].items()}
    totals = {"step": f"{found['step_seconds']:.3g} s, bound by {found['binds']}", "fit": _hours(found["seconds"])}
    needed = found["workers_needed"] or "no number keeps it"
    deadline = {"workers for the deadline": needed} if found["config"]["deadline"] else {}
    refused = {"would be refused": found["refused"]} if found["refused"] else {}
    rates = {"rates": found["rates"]["source"]}
    _print(totals | deadline | refused | held | beside | rates, False, title="Each worker")


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _hours(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 3600:.3g} h"


@app.command(no_args_is_help=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    command: Annotated[
        Literal["fit", "assign"], typer.Argument(help="What to run; its own arguments follow.", show_default=False)
    ],
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard: http://HOST:8265.", show_default=False
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the job: given again, it follows that job and starts no other.")
    ] = None,
    working_dir: Annotated[
        Path | None, typer.Option(help="Directory to upload and run in, such as this checkout.")
    ] = None,
) -> None:
    """Run fit or assign as a job of a Ray cluster, show its log, and end with its exit code.

    With RAY_AUTH_MODE=token the token of RAY_AUTH_TOKEN or ~/.ray/auth_token is sent. Ctrl-C leaves the job running.
    """
    from raydkm.api.submit import check
    from raydkm.api.submit import submit as submit_

    wanted = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    check(command, wanted.make_context(f"raydkm submit {command}", list(context.args)).params)  # before any upload

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    raise SystemExit(submit_(command, context.args, address=address, name=name, working_dir=working_dir, write=write))


def _summary(model: Any) -> dict[str, Any]:
    record = model.record
    return {
        "objective": model.config.objective,
        "rows": record["rows"],
        "dim": model.dim,
        "clusters": model.clusters,
        "temperature": model.temperature,
        "collapse_temperature": record["collapse_temperature"],
        "steps": record["steps"],
        "stopped": record["stopped"],
        "loss": model.history[-1]["objective"],
        "inertia": record["inertia"],
        "smallest": float(model.counts.min()),
        "largest": float(model.counts.max()),
        "seconds": record["seconds"],
    }


def _print(values: dict[str, Any], as_json: bool, *, title: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(values, allow_nan=False) + "\n")
        return
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), _text(value))
    Console().print(table)


def _text(value: Any, digits: int = 6) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        shown = [_text(item) for item in value[:20]]
        return ", ".join(shown) + (f", … ({len(value)})" if len(value) > 20 else "")
    return str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the CLI; raydkm's own errors end it with one sentence and their exit code."""
    handler = RichHandler(console=Console(stderr=True), show_level=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("raydkm").setLevel(logging.INFO)
    try:
        app(list(arguments) if arguments is not None else None)
    except RaydkmError as error:
        sys.stderr.write(f"raydkm: {error}\n")
        if "--json" in (arguments if arguments is not None else sys.argv):
            sys.stdout.write(json.dumps({"error": str(error), "kind": type(error).__name__}) + "\n")
        raise SystemExit(error.exit_code) from None
