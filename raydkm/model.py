"""The model artefact: one directory from fit to batch assignment to service.

    model.json             what it is and how it was made, with checksums of the other files
    prototypes.safetensors prototypes, shift, log_s, counts
    history.jsonl          one line an ADM step

It is written atomically and verified when loaded; nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from raydkm.atomic import new_directory
from raydkm.config import FitConfig
from raydkm.errors import ModelError, RaydkmError
from raydkm.objectives import OBJECTIVES
from raydkm.ops.frame import Frame
from raydkm.ops.scores import Scores

SCHEMA_VERSION = 1

_JSON, _TENSORS, _HISTORY = "model.json", "prototypes.safetensors", "history.jsonl"


@dataclass(frozen=True)
class Model:
    """A fitted model.

    Parameters
    ----------
    config : FitConfig
        Every parameter of the fit.
    temperature : float
        T in units of squared distance; 0 for plain k-means.
    prototypes : Tensor (K, d) of float32
        In the coordinates of the frame; `cluster_centers` gives those of the data.
    shift : Tensor (d,) of float64
        Origin of the frame.
    log_s : Tensor (K,) of float64
        Logarithms of the balance scalings.
    counts : Tensor (K,) of float64
        Weight of the training rows assigned to each cluster.
    record : dict
        How the model was made: rows, inertia, fingerprint, versions, seconds; plain JSON values.
    history : list of dict
        One entry an ADM step.
    """

    config: FitConfig
    temperature: float
    prototypes: Tensor
    shift: Tensor
    log_s: Tensor
    counts: Tensor
    record: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def clusters(self) -> int:
        return len(self.prototypes)

    @property
    def dim(self) -> int:
        return self.prototypes.shape[1]

    @property
    def hard(self) -> bool:
        """Whether posteriors are zero or one."""
        return OBJECTIVES[self.config.objective].hard

    @property
    def cluster_centers(self) -> NDArray[np.float64]:
        """Prototypes (K, d) in the coordinates of the data (for cosine, of the unit-length rows)."""
        return (self.prototypes.double() + self.shift).numpy()

    def frame(self) -> Frame:
        return Frame(self.config.metric, self.shift)

    def scores(self, device: torch.device | None = None) -> Scores:
        device = device or torch.device("cpu")
        return Scores.of(self.prototypes, self.log_s, self.temperature, torch.float32, device)

    def checksum(self) -> str:
        """SHA-256 of the tensors: the identity of what the model computes."""
        return hashlib.sha256(self._tensors()).hexdigest()

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write the artefact; raise `OutputError` if `path` exists and may not be overwritten."""
        files = {
            _TENSORS: self._tensors(),
            _HISTORY: "".join(json.dumps(entry) + "\n" for entry in self.history).encode(),
        }
        described: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "objective": self.config.objective,
            "clusters": self.clusters,
            "dim": self.dim,
            "metric": self.config.metric,
            "temperature": self.temperature,
            "config": self.config.model_dump(),
            "record": self.record,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        described["sha256"][_JSON] = _own_checksum(described)
        with new_directory(path, overwrite=overwrite) as staging:
            for name, content in files.items():
                (staging / name).write_bytes(content)
            (staging / _JSON).write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")

    def _tensors(self) -> bytes:
        return save_tensors(
            {"prototypes": self.prototypes, "shift": self.shift, "log_s": self.log_s, "counts": self.counts}
        )


def load(path: str | os.PathLike) -> Model:
    """Read and verify a model artefact.

    Raises
    ------
    ModelError
        If a file is missing or damaged, the schema is of another version, or a value is impossible.
    """
    place = Path(path)
    try:
        described = json.loads((place / _JSON).read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{place}: no {_JSON} here; is it a model directory?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{place / _JSON}: not readable ({error})") from None
    if not isinstance(described, dict) or described.get("schema_version") != SCHEMA_VERSION:
        found = described.get("schema_version") if isinstance(described, dict) else None
        raise ModelError(f"{place}: schema version {found}, this raydkm reads version {SCHEMA_VERSION}")
    try:
        if described["sha256"].pop(_JSON) != _own_checksum(described):
            raise ModelError(f"{place / _JSON}: its checksum differs from its content; the file was changed")
        content = {name: _verified(place / name, described["sha256"][name]) for name in (_TENSORS, _HISTORY)}
        tensors = load_tensors(content[_TENSORS])
        model = Model(
            config=FitConfig(**described["config"]),
            temperature=float(described["temperature"]),
            **tensors,
            record=dict(described["record"]),
            history=[json.loads(line) for line in content[_HISTORY].splitlines()],
        )
        _check_shapes(model, place)
    except RaydkmError:
        raise
    except (LookupError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{place}: damaged ({type(error).__name__}: {str(error).splitlines()[0]})") from None
    return model


def _own_checksum(described: dict[str, Any]) -> str:
    """SHA-256 of the description as canonical JSON, without this checksum."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _verified(path: Path, expected: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise ModelError(f"{path}: its checksum differs from the one in {_JSON}; the file was changed or truncated")
    return content


def _check_shapes(model: Model, place: Path) -> None:
    clusters, dim = model.config.clusters, model.dim
    shapes = {"prototypes": (clusters, dim), "shift": (dim,), "log_s": (clusters,), "counts": (clusters,)}
    for name, shape in shapes.items():
        tensor = getattr(model, name)
        if tuple(tensor.shape) != shape or not bool(tensor.isfinite().all()):
            raise ModelError(f"{place}: {name} of shape {tuple(tensor.shape)}; expected {shape}, all finite")
    if not 0 <= model.temperature < math.inf or (model.temperature == 0 and not model.hard):
        raise ModelError(f"{place}: temperature {model.temperature}")
