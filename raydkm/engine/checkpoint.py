"""Checkpoints: one file with all that a fit needs to go on, and nothing that depends on its workers."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from raydkm.config import FitConfig
from raydkm.data.storage import inside, locate, retried
from raydkm.errors import ConfigError, EngineError, InputError, ModelError
from raydkm.objectives import State

logger = logging.getLogger("raydkm")

_NAME = "checkpoint.safetensors"


def check_same(before: dict[str, Any], config: BaseModel) -> None:
    """Refuse to go on with other parameters than `before` (but `max_steps` and `max_time`, which only end a fit)."""
    now, defaults = config.model_dump(mode="json"), type(config)().model_dump(mode="json")
    for name, was in (defaults | before).items():  # of options that there were not yet the default
        if name not in ("max_steps", "max_time") and now.get(name) != was:
            raise ConfigError(f"this run was started with {name} {was!r}, not {now.get(name)!r}; name another run")


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit has come to, and what it is a fit of.

    Parameters
    ----------
    state : State
    history : list of dict
        One entry for each step done.
    seeding : dict
        How the fit was seeded.
    config : dict
        The fields of `FitConfig`, as JSON has them.
    fingerprint : str
        Of the data.
    """

    state: State
    history: list[dict[str, Any]]
    seeding: dict[str, Any]
    config: dict[str, Any]
    fingerprint: str

    def check_config(self, config: FitConfig) -> None:
        """Refuse to go on with other parameters (but `max_steps` and `max_time`, which only end a fit)."""
        check_same(self.config, config)

    def check_data(self, fingerprint: str) -> None:
        """Refuse to go on with other data."""
        if self.fingerprint != fingerprint:
            raise ConfigError(
                f"this run was started on other data (rows x dimensions: fingerprint {self.fingerprint}, "
                f"now {fingerprint}); name another run"
            )

    def check_start(self, digest: str | None) -> None:
        """Refuse to go on with other initial prototypes (None where they are drawn)."""
        if self.seeding.get("sha256") != digest:
            raise ConfigError("this run was started from other initial prototypes; name another run")


class TensorFile:
    """Tensors and JSON values in one file of a run's directory, replaced atomically.

    Parameters
    ----------
    run_dir : str
        Absolute path or URI of the run's directory, which all nodes can reach.
    name : str
    every : float
        Seconds between writings.
    """

    def __init__(self, run_dir: str, name: str, every: float):
        try:
            self._name = inside(run_dir, name)
            self._files, self._path = locate(self._name)
        except InputError as error:
            raise ConfigError(f"run_dir {error}") from None
        self._every = every
        self._written = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._written >= self._every

    def write(self, tensors: dict[str, Tensor], described: dict[str, Any], what: str) -> None:
        """Write beside the last file, then put it in its place.

        A fit whose checkpoint cannot be written goes on, with a warning that names `what` was to be saved.
        """
        content = save_tensors(tensors, metadata={"raydkm": json.dumps(described)})
        try:
            self._files.create_dir(self._path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(self._path + ".partial") as stream:
                stream.write(content)
            if isinstance(self._files, fs.LocalFileSystem):  # before it takes the place of one that is on disk
                with open(self._path + ".partial", "rb") as written:
                    os.fsync(written.fileno())
            self._files.move(self._path + ".partial", self._path)
        except (OSError, pa.ArrowException) as error:
            logger.warning("going on without a checkpoint of %s: %s", what, error)
        self._written = time.monotonic()

    def read(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The tensors and values written last, or None if there are none yet.

        Raises
        ------
        ModelError
            If the file is damaged.
        EngineError
            If it cannot be read.
        """
        try:
            content = retried(self._name, self._content)
            if content is None:
                return None
            size = int.from_bytes(content[:8], "little")
            described = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["raydkm"])
            return load_tensors(content), described
        except InputError as error:  # the storage, not what is in it
            raise EngineError(f"the checkpoint of this run: {error}") from None
        except (KeyError, TypeError, ValueError, SafetensorError, pa.ArrowException) as error:
            raise self.damaged(error) from None

    def damaged(self, error: Exception) -> ModelError:
        return ModelError(f"{self._path}: not a readable checkpoint ({error}); remove it to start again")

    def _content(self) -> bytes | None:
        if self._files.get_file_info(self._path).type == fs.FileType.NotFound:
            return None
        with self._files.open_input_stream(self._path) as stream:
            return stream.read()


class CheckpointFile:
    """The newest checkpoint of a run, in its directory `run_dir`, with `every` seconds between checkpoints."""

    def __init__(self, run_dir: str, every: float):
        self._file = TensorFile(run_dir, _NAME, every)

    def due(self) -> bool:
        return self._file.due()

    def save(self, checkpoint: Checkpoint) -> None:
        """Take the place of the last checkpoint."""
        described = {
            "step": checkpoint.state.step,
            "objective": checkpoint.state.objective,
            "effort": checkpoint.state.effort,
            "history": checkpoint.history,
            "seeding": checkpoint.seeding,
            "config": checkpoint.config,
            "fingerprint": checkpoint.fingerprint,
        }
        state = checkpoint.state
        tensors = {name: getattr(state, name) for name in ("prototypes", "bias", "log_s", "shares")}
        self._file.write(tensors, described, f"step {state.step}")

    def load(self) -> Checkpoint | None:
        """The last checkpoint, or None if there is none yet.

        Raises
        ------
        ModelError
            If it is damaged.
        EngineError
            If it cannot be read.
        """
        found = self._file.read()
        if found is None:
            return None
        tensors, described = found
        try:
            return Checkpoint(
                state=State(**{name: described[name] for name in ("step", "objective", "effort")}, **tensors),
                history=described["history"],
                seeding=described["seeding"],
                config=described["config"],
                fingerprint=described["fingerprint"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._file.damaged(error) from None
