"""The model artefact: one directory from fit to batch assignment to service.

    model.json             what it is and how it was made, with checksums of the other files
    prototypes.safetensors prototypes, shift, log_s, counts, shares; of a logistic objective also its weights and bias
    maps.safetensors       of features that are mapped, encoder.safetensors of such that a network makes
    history.jsonl          one line an ADM step

It is written atomically and verified when loaded; nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from raydkm.assigner import Assigner, clustered
from raydkm.atomic import new_directory
from raydkm.config import AS_THEY_ARE, FeatureConfig, FitConfig
from raydkm.data.in_memory import rows_of
from raydkm.errors import ConfigError, ModelError, OutputError, RaydkmError
from raydkm.features.encoders import own_build
from raydkm.features.features import Features, features_of
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.logistic import OF_LOGITS, LogisticObjective
from raydkm.ops.frame import Frame
from raydkm.ops.labeller import Assignment, Labeller
from raydkm.ops.scores import Scores

SCHEMA_VERSION = 2

#: Versions that are read: in the first, prototypes were of float32.
READ_VERSIONS = (1, SCHEMA_VERSION)

_TENSOR_NAMES = ("prototypes", "shift", "log_s", "counts", "shares", "weights", "bias")
_JSON, _TENSORS, _HISTORY = "model.json", "prototypes.safetensors", "history.jsonl"
_MAPS, _ENCODER = "maps.safetensors", "encoder.safetensors"


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted model.

    Parameters
    ----------
    config : FitConfig
        Every parameter of the fit.
    temperature : float
        T in units of squared distance; 0 for plain k-means.
    prototypes : Tensor (K, d) of float64
        In the coordinates of the frame; `cluster_centers` gives those of the data. Of a logistic objective the means
        of the clusters' rows.
    shift : Tensor (d,) of float64
        Origin of the frame.
    log_s : Tensor (K,) of float64
        Logarithms of the balance scalings.
    counts : Tensor (K,) of float64
        Weight of the training rows assigned to each cluster.
    shares : Tensor (K,) of float64
        q_hat of the last step: the same of soft targets, as a part of all.
    record : dict
        How the model was made: rows, inertia, fingerprint, versions, seconds; plain JSON values.
    history : list of dict
        One entry an ADM step.
    weights, bias : Tensor (K, d) and (K,) of float64, or None
        theta and b of a logistic objective, or of the linear head that an encoder was trained with, in the coordinates
        of the frame.
    made : FeatureConfig
        How features were made of rows.
    features : Features, optional
        What makes them; None where rows are clustered as they are.
    reading : {"q", "p"}, optional
        What rows are assigned by (see `scores`); not part of the artefact.
    labels : ndarray (n,) of int64, optional
        Clusters of the rows of a fit in this process; not part of the artefact.

    Examples
    --------
    >>> import numpy as np, raydkm
    >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> model = raydkm.fit(x, clusters=2, objective="kmeans")
    >>> found = model.assign([[0.0, 0], [12, 3]], top=2)
    >>> bool((found.labels == model.predict([[1.0, 2], [10, 2]])).all()), found.clusters.shape
    (True, (2, 2))
    """

    config: FitConfig
    temperature: float
    prototypes: Tensor
    shift: Tensor
    log_s: Tensor
    counts: Tensor
    shares: Tensor
    record: dict[str, Any]
    history: list[dict[str, Any]]
    weights: Tensor | None = None
    bias: Tensor | None = None
    made: FeatureConfig = AS_THEY_ARE
    features: Features | None = None
    reading: str | None = None
    labels: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        temperature = "" if self.temperature == 0 else f", temperature={self.temperature:.4g}"
        return f"Model({self.config.objective}, clusters={self.clusters}, dim={self.dim}{temperature})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_assigner"}  # which has locks

    @property
    def clusters(self) -> int:
        return len(self.prototypes)

    @property
    def dim(self) -> int:
        """Of the features."""
        return self.prototypes.shape[1]

    @property
    def input_dim(self) -> int:
        """Of the rows that features are made of."""
        return self.dim if self.features is None else self.features.input_dim

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of a row, where it is not a vector."""
        return self.made.dims

    @property
    def unit(self) -> bool:
        """Whether rows need a direction, so that a zero vector is refused."""
        return self.config.metric == "cosine" and self.features is None

    @property
    def hard(self) -> bool:
        """Whether posteriors are zero or one."""
        by_head = self.weights is not None and self.reading != "q"
        return OBJECTIVES[self.config.objective].hard and not by_head

    @property
    def cluster_centers(self) -> NDArray[np.float64]:
        """Prototypes (K, d) in the coordinates of the data (for cosine, of the unit-length rows)."""
        return (self.prototypes + self.shift).numpy()

    def predict(self, x: Any) -> NDArray[np.int64]:
        """Cluster (n,) of each row of an array-like, tensor, data frame or Arrow table.

        It is the prototype of the least cost in float64 (`raydkm.ops.cost`), of equal ones the lowest.

        Raises
        ------
        InputError
            If the rows are not of the model's dimension, or not finite.
        """
        return self._assigner.labeller.labels(self._features_of(x)).numpy()

    def predict_proba(self, x: Any) -> NDArray[np.float32]:
        """Posterior (n, K) of each row; of a hard model zeros and ones. Raises as `predict` does."""
        return self._assigner.labeller.posteriors(self._features_of(x)).numpy()

    def transform(self, x: Any) -> NDArray[np.float64]:
        """Euclidean distances (n, K) of the rows' features to the prototypes. Raises as `predict` does."""
        return self._assigner.labeller.all_distances(self._features_of(x)).numpy()

    def assign(self, x: Any, top: int = 1) -> Assignment:
        """Clusters, posteriors, distance and entropy of each row, as batch assignment and the service give them.

        Parameters
        ----------
        x : array-like (n, input_dim), torch.Tensor, pandas.DataFrame or pyarrow.Table
        top : int
            Clusters returned for each row, best first.

        Raises
        ------
        ConfigError
            If `top` is not a number from 1 to the number of clusters.
        InputError
            If the rows are not of the model's dimension, or not finite.
        """
        return self._assigner(self._rows_of(x), top)

    def assigner(self, *, sample: Tensor | None = None, **options: Any) -> Assigner:
        """What assigns rows as they are stored.

        The options are `index` and `recall` of `raydkm.ops.labeller.Labeller`; of the `sample` (n, input_dim) they are
        chosen.
        """
        sample = None if sample is None else clustered(sample, self.features)
        labeller = Labeller(self.scores(), self.prototypes, self.frame(), hard=self.hard, sample=sample, **options)
        return Assigner(labeller, self.clusters, self.features)

    @cached_property
    def _assigner(self) -> Assigner:
        return self.assigner()

    def _rows_of(self, x: Any) -> Tensor:
        return rows_of(x, dim=self.input_dim, unit=self.unit, column=self.config.column, shape=self.shape)

    def _features_of(self, x: Any) -> Tensor:
        return self._assigner.features(self._rows_of(x))

    def frame(self) -> Frame:
        return Frame(self.config.metric, self.shift)

    def read_as(self, reading: str | None) -> Model:
        """The same model, which assigns rows by their targets ("q") or the discriminative posterior ("p").

        Raises
        ------
        ConfigError
            For another word, or p of a hard objective, which has none.
        """
        if reading not in (None, "q", "p"):
            raise ConfigError(f"reading {reading!r}: must be q or p")
        if reading == "p" and self.weights is None and self.hard:
            raise ConfigError(f"{self.config.objective} has no posterior p; use a soft objective")
        return replace(self, reading=reading, labels=self.labels if reading == self.reading else None)

    def scores(self) -> Scores:
        """The linear form whose largest value is a row's cluster, and whose softmax its posterior.

        By default it is that of q in the distance family, of p in the logistic one and where there is a head. In the
        distance family without one p has
        theta_k = theta'_k / T and b_k = log(q_hat_k) / 2 (Jabi et al.): it lacks -||theta'_k||^2, and is another
        assignment.
        """
        kind, frame = OBJECTIVES[self.config.objective], self.frame()
        logistic = issubclass(kind, LogisticObjective)
        by_prototypes = self.reading == "q" and (self.made.has_head or not logistic)
        if self.weights is None or self.bias is None or by_prototypes:
            if self.reading != "p":
                log_s = torch.zeros_like(self.log_s) if logistic else self.log_s
                return Scores.of(self.prototypes, log_s, self.temperature, frame)
            bias = 0.5 * self.shares.clamp(min=1e-300).log()
            return Scores.linear(self.prototypes / self.temperature, bias, OF_LOGITS, frame)
        if self.reading != "q":
            return Scores.linear(self.weights, self.bias, OF_LOGITS, frame)
        assert issubclass(kind, LogisticObjective)
        _, l2, l3 = kind.mixture((self.config.l1, self.config.l2, self.config.l3))
        power = 1 + l2 / l3
        return Scores.linear(power * self.weights, power * self.bias + self.log_s, OF_LOGITS, frame)

    def checksum(self) -> str:
        """SHA-256 of the tensors: the identity of what the model computes."""
        found = hashlib.sha256()
        for name, content in self._contents().items():
            if name != _HISTORY:
                found.update(content)
        return found.hexdigest()

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write the artefact; raise `OutputError` if `path` cannot be written, or exists and may not be overwritten."""
        files = self._contents()
        described: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "objective": self.config.objective,
            "clusters": self.clusters,
            "dim": self.dim,
            "metric": self.config.metric,
            "temperature": self.temperature,
            "config": self.config.model_dump(),
            "made": self.made.model_dump(),
            "features": None if self.features is None else self.features.described(),
            "record": self.record,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        described["sha256"][_JSON] = _own_checksum(described)
        try:
            with new_directory(path, overwrite=overwrite) as staging:
                for name, content in files.items():
                    (staging / name).write_bytes(content)
                (staging / _JSON).write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to {path}: {error.strerror or error}") from None

    def _contents(self) -> dict[str, bytes]:
        """The files of the artefact, but for the description."""
        tensors = {name: tensor for name in _TENSOR_NAMES if (tensor := getattr(self, name)) is not None}
        files = {_TENSORS: save_tensors(tensors)}
        if self.features is not None:
            parts = {_MAPS: self.features.map_tensors(), _ENCODER: self.features.encoder_tensors()}
            files |= {name: save_tensors(some) for name, some in parts.items() if some}
        files[_HISTORY] = "".join(json.dumps(entry) + "\n" for entry in self.history).encode()
        return files


def load(path: str | os.PathLike, *, encoder: str | None = None) -> Model:
    """Read and verify a model artefact.

    Parameters
    ----------
    path : path
    encoder : str, optional
        The user's own function, ``package.module:build``, where the model was fitted with one; it is never taken from
        the artefact.

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
    if not isinstance(described, dict) or described.get("schema_version") not in READ_VERSIONS:
        found = described.get("schema_version") if isinstance(described, dict) else None
        raise ModelError(f"{place}: schema version {found}, this raydkm reads versions up to {SCHEMA_VERSION}")
    try:
        if described["sha256"].pop(_JSON) != _own_checksum(described):
            raise ModelError(f"{place / _JSON}: its checksum differs from its content; the file was changed")
        optional = [name for name in (_MAPS, _ENCODER) if name in described["sha256"]]
        content = {name: _verified(place / name, described["sha256"][name]) for name in (_TENSORS, _HISTORY, *optional)}
        tensors: dict[str, Any] = {name: t.double() for name, t in load_tensors(content[_TENSORS]).items()}
        if unknown := set(tensors) - set(_TENSOR_NAMES):
            raise ModelError(f"{place}: damaged (unknown tensors {', '.join(sorted(unknown))})")
        features, own = described.get("features"), None if encoder is None else own_build(encoder)
        if own is not None and (features is None or features["encoder"] is None):
            raise ConfigError(f"encoder {encoder}: the model at {place} has none; drop it")
        maps, network = (load_tensors(content[name]) if name in content else {} for name in (_MAPS, _ENCODER))
        model = Model(
            config=FitConfig(**described["config"]),
            temperature=float(described["temperature"]),
            **tensors,
            record=dict(described["record"]),
            history=[json.loads(line) for line in content[_HISTORY].splitlines()],
            made=FeatureConfig(**described.get("made", {})),
            features=None if features is None else features_of(features, maps, network, own),
        )
        _check_shapes(model, place)
    except RaydkmError:
        raise
    except (
        *(AttributeError, LookupError, OverflowError, MemoryError, RuntimeError, TypeError, ValueError),
        SafetensorError,
    ) as error:
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
    shapes["shares"] = (clusters,)
    if issubclass(OBJECTIVES[model.config.objective], LogisticObjective) or model.weights is not None:
        shapes |= {"weights": (clusters, dim), "bias": (clusters,)}
    for name, shape in shapes.items():
        tensor = getattr(model, name)
        if tensor is None:
            raise ModelError(f"{place}: no {name}")
        if tuple(tensor.shape) != shape or not bool(tensor.isfinite().all()):
            raise ModelError(f"{place}: {name} of shape {tuple(tensor.shape)}; expected {shape}, all finite")
    if model.features is not None:
        given = model.features(torch.zeros(1, model.input_dim))
        if given.shape != (1, dim):
            raise ModelError(f"{place}: features of shape {tuple(given.shape)} of a row; expected (1, {dim})")
    if not 0 <= model.temperature < math.inf or (
        model.temperature == 0 and not OBJECTIVES[model.config.objective].hard
    ):
        raise ModelError(f"{place}: temperature {model.temperature}")
