"""`raydkm submit`: a command of raydkm as a job of a Ray cluster, followed to its end."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from raydkm.api.given import is_place
from raydkm.config import AssignConfig, FeatureConfig, FitConfig, FitRunConfig, build, configure
from raydkm.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from raydkm.engine.ray_submit import JobServer

logger = logging.getLogger("raydkm")

#: The exit code of a program that Ctrl-C ends, by convention.
INTERRUPTED = 130


def check(command: str, given: dict[str, Any]) -> None:
    """Refuse what the job itself would refuse as soon as it began, of the options `given` to ``raydkm COMMAND``.

    Files that they name are those of the nodes; of a fit with a YAML file (`config`), which may complete the others, no
    option is judged.

    Raises
    ------
    ConfigError
    """
    fields = (
        AssignConfig.model_fields
        if command == "assign"
        else FitConfig.model_fields | FeatureConfig.model_fields | FitRunConfig.model_fields
    )
    options = {name: value for name, value in given.items() if name in fields and value is not None}
    if command == "assign":
        build(AssignConfig, options)
    elif given.get("config") is None:
        options.pop("marginal", None)
        configure(options | ({"init": "array"} if is_place(options.get("init", "")) else {}))


def submit(
    command: str,
    arguments: Sequence[str],
    *,
    address: str,
    name: str | None = None,
    working_dir: str | os.PathLike | None = None,
    write: Callable[[str], object],
) -> int:
    """Run ``raydkm COMMAND ARGUMENTS`` on a Ray cluster, pass on its log, and return its exit code.

    A name stands for one command. Given again while its job runs, it follows that job; when it has succeeded, it does
    nothing; when it failed or was stopped, it runs again. Ctrl-C ends the following, not the job.

    Parameters
    ----------
    command : {"fit", "assign"}
    arguments : sequence of str
        Of the command; paths in them are those of the cluster's nodes.
    address : str
        Of the cluster's dashboard, such as ``http://127.0.0.1:8265``.
    name : str, optional
    working_dir : path, optional
        A directory to upload, in which the job runs; what .gitignore names there stays.
    write : callable
        Is given the job's log, piece by piece.

    Raises
    ------
    ConfigError
        If the name is in use for another command, or is none.
    EngineError
        If the cluster does not answer, or refuses.
    """
    from raydkm.engine.ray_submit import JobServer

    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"name {name!r}: letters, digits, dots, hyphens and underscores, please")
    server = JobServer(address)
    line = shlex.join(["python3", "-m", "raydkm", command, *arguments])
    name, finished = _begun(server, name, line, working_dir)
    if finished:
        return 0
    try:
        job = server.follow(name, write)
    except KeyboardInterrupt:
        logger.info(
            "job %s goes on; the same command with --name %s follows it again, `ray job stop --address %s %s` ends it",
            *(name, name, server.address, name),
        )
        return INTERRUPTED
    logger.info("job %s: %s", name, job.status.lower())
    if job.succeeded:
        return 0
    if not job.exit_code:  # it never ran, or was stopped
        raise EngineError(f"job {name} {job.status.lower()}: {job.message}")
    return job.exit_code


def _begun(server: JobServer, name: str | None, line: str, working_dir: str | os.PathLike | None) -> tuple[str, bool]:
    """The name of a job that runs `line`, started if need be, and whether it has succeeded already."""
    job = server.find(name) if name is not None else None
    if name is not None and job is not None:
        if job.command != line:
            raise ConfigError(f"job {name} is of another command ({job.command}); choose another name")
        if job.succeeded:
            logger.info("job %s has succeeded already; nothing to do", name)
            return name, True
        if not job.over:
            logger.info("job %s runs already; following it", name)
            return name, False
        logger.info("job %s has %s; running it again", name, job.status.lower())
        server.forget(name)
    environment: dict[str, Any] = {"env_vars": {"COLUMNS": str(shutil.get_terminal_size().columns)}}
    if working_dir is not None:
        environment["working_dir"] = os.fspath(working_dir)
    name = server.start(name, line, environment)
    logger.info("job %s submitted to %s", name, server.address)
    return name, False
