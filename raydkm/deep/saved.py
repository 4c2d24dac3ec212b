"""Checkpoints of training: all that it needs to go on, and nothing that depends on its workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from raydkm.config import FeatureConfig, FitConfig
from raydkm.engine.checkpoint import TensorFile, check_same
from raydkm.errors import ConfigError

_NAME = "training.safetensors"


@dataclass(frozen=True)
class Saved:
    """How far training has come.

    Parameters
    ----------
    stage, step : int
        Number of the stage, and steps of it that are done.
    tensors : dict of Tensor
        Weights of the stage's networks, and the optimiser's.
    teacher : dict of Tensor
        Weights of the encoder when the stage began, from which its targets follow.
    starts : list of Tensor (K, d) or None
        Where the clusterings of each head began.
    best : int
        The head of least loss.
    history : list of dict
    """

    stage: int
    step: int
    tensors: dict[str, Tensor]
    teacher: dict[str, Tensor]
    starts: list[Tensor | None]
    best: int
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Origin:
    """What a training is of.

    Parameters
    ----------
    config : FitConfig
    made : FeatureConfig
    fingerprint : str
        Of the rows.
    start : str or None
        Digest of the initial prototypes that were given.
    """

    config: FitConfig
    made: FeatureConfig
    fingerprint: str
    start: str | None

    def check(self, before: Origin) -> None:
        """Refuse to go on after a checkpoint of another one."""
        check_same(before.config.model_dump(mode="json"), self.config)
        check_same(before.made.model_dump(mode="json"), self.made)
        if before.start != self.start:
            raise ConfigError("this run was started from other initial prototypes; name another run")
        if before.fingerprint != self.fingerprint:
            raise ConfigError("this run was started on other rows; name another run")


class SavedFile:
    """The newest checkpoint of a training, in a run's directory.

    Parameters
    ----------
    run_dir : str
    every : float
        Seconds between checkpoints.
    origin : Origin
        What is trained; a checkpoint of another one is not gone on with.
    """

    def __init__(self, run_dir: str, every: float, origin: Origin):
        self._file, self._origin = TensorFile(run_dir, _NAME, every), origin

    def due(self) -> bool:
        return self._file.due()

    def save(self, saved: Saved) -> None:
        tensors = {f"stage.{name}": tensor for name, tensor in saved.tensors.items()}
        tensors |= {f"teacher.{name}": tensor for name, tensor in saved.teacher.items()}
        tensors |= {f"start.{head}": start for head, start in enumerate(saved.starts) if start is not None}
        described = {
            "stage": saved.stage,
            "step": saved.step,
            "heads": len(saved.starts),
            "best": saved.best,
            "history": saved.history,
            "config": self._origin.config.model_dump(mode="json"),
            "made": self._origin.made.model_dump(mode="json"),
            "fingerprint": self._origin.fingerprint,
            "start": self._origin.start,
        }
        self._file.write(tensors, described, f"stage {saved.stage + 1}, step {saved.step} of the training")

    def load(self) -> Saved | None:
        """The last checkpoint, or None if there is none yet.

        Raises
        ------
        ConfigError
            If it is of other parameters, initial prototypes or rows.
        ModelError, EngineError
            If it is damaged, or cannot be read.
        """
        found = _read(self._file)
        if found is None:
            return None
        saved, before = found
        self._origin.check(before)
        return saved


def saved_in(run_dir: str) -> tuple[Saved, Origin] | None:
    """The last checkpoint of a run, whatever it is of; errors are those of `SavedFile.load`."""
    return _read(TensorFile(run_dir, _NAME, every=0))


def _read(file: TensorFile) -> tuple[Saved, Origin] | None:
    found = file.read()
    if found is None:
        return None
    tensors, described = found
    parts: dict[str, dict[str, torch.Tensor]] = {"stage": {}, "teacher": {}, "start": {}}
    try:
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = tensor
        starts = [parts["start"].get(str(head)) for head in range(described["heads"])]
        saved = Saved(
            described["stage"],
            described["step"],
            parts["stage"],
            parts["teacher"],
            starts,
            described["best"],
            described["history"],
        )
        config, made = FitConfig(**described["config"]), FeatureConfig(**described["made"])
        return saved, Origin(config, made, described["fingerprint"], described["start"])
    except (KeyError, TypeError, ValidationError) as error:
        raise file.damaged(error) from None
