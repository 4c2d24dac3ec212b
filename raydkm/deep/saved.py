"""Checkpoints of training: all that it needs to go on, and nothing that depends on its workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raydkm.config import FeatureConfig, FitConfig
from raydkm.engine.checkpoint import TensorFile, check_same
from raydkm.errors import ConfigError

_NAME = "training.safetensors"


def training_fingerprint(rows: str, start: str | None) -> str:
    """Of rows with a fingerprint, and of initial prototypes with a digest (None where they are drawn)."""
    return f"{rows} {start}"


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


class SavedFile:
    """The newest checkpoint of a training, in a run's directory.

    Parameters
    ----------
    run_dir : str
    every : float
        Seconds between checkpoints.
    config, made
        What is fitted; another one is not gone on with.
    fingerprint : str
        Of the rows, and of initial prototypes.
    """

    def __init__(self, run_dir: str, every: float, config: FitConfig, made: FeatureConfig, fingerprint: str):
        self._file = TensorFile(run_dir, _NAME, every)
        self._config, self._made, self._fingerprint = config, made, fingerprint

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
            "config": self._config.model_dump(mode="json"),
            "made": self._made.model_dump(mode="json"),
            "fingerprint": self._fingerprint,
        }
        self._file.write(tensors, described, f"stage {saved.stage + 1}, step {saved.step} of the training")

    def load(self) -> Saved | None:
        """The last checkpoint, or None if there is none yet.

        Raises
        ------
        ConfigError
            If it is of other parameters or rows.
        ModelError, EngineError
            If it is damaged, or cannot be read.
        """
        found = self._file.read()
        if found is None:
            return None
        tensors, described = found
        parts: dict[str, dict[str, torch.Tensor]] = {"stage": {}, "teacher": {}, "start": {}}
        try:
            for name, tensor in tensors.items():
                kind, _, rest = name.partition(".")
                parts[kind][rest] = tensor
            check_same(described["config"], self._config)
            check_same(described["made"], self._made)
            if described["fingerprint"] != self._fingerprint:
                raise ConfigError("this run was started on other rows, or from other prototypes; name another run")
            starts = [parts["start"].get(str(head)) for head in range(described["heads"])]
            return Saved(
                described["stage"],
                described["step"],
                parts["stage"],
                parts["teacher"],
                starts,
                described["best"],
                described["history"],
            )
        except (KeyError, TypeError) as error:
            raise self._file.damaged(error) from None
