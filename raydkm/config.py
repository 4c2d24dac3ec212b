"""Every parameter of a fit, declared, documented and validated once.

The CLI's options, the YAML keys, the keyword arguments of :func:`raydkm.fit` and ``model.json`` all
derive from the models below: `FitConfig` holds what determines the clusters of given features, `FeatureConfig` what
the features are and how they are learned, `RunConfig` what only determines where and how fast all of it is computed,
`AssignConfig` what an assignment needs besides.
"""

from __future__ import annotations

import math
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raydkm.errors import ConfigError
from raydkm.features.stages import Stage, parse

_FRACTION_OF_TC = re.compile(r"(?P<fraction>[0-9.eE+-]+)\s*\*?\s*Tc")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Config = TypeVar("_Config", bound=_Frozen)


class Problem(_Frozen):
    """What is sought, and from where; a fit and a plan of it share this."""

    clusters: int = Field(8, ge=1, description="Number of clusters K.")
    objective: str = Field(
        "sr-kmeans",
        description="Objective: hard (kmeans), soft (soft-kmeans), soft and regularised (sr-kmeans); with logistic "
        "posteriors mi (mutual information), kl (DEPICT), tim, sinkhorn (self-labelling).",
    )
    init: Literal["k-means||", "k-means++", "afk-mc2", "random", "array"] = Field(
        "k-means||",
        description="Seeding: k-means||, k-means++, afk-mc2, random, the path of an .npy file of prototypes (K, d), or "
        "of a model to go on from.",
    )
    n_init: int = Field(4, ge=1, description="Seeded restarts on the seeding sample; the best goes on to all rows.")
    seed_rows: int | Literal["all"] | None = Field(
        None,
        description="Rows in the seeding sample (default: 32 K, at least 32768, at most all rows); or all: k-means|| "
        "and k-means++ draw from every row, in 7 or K passes for each of n_init restarts.",
    )

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, name: str) -> str:
        from raydkm.objectives import OBJECTIVES  # here, for `raydkm --help` need not import torch

        if name not in OBJECTIVES:
            raise ValueError(f"must be one of {', '.join(OBJECTIVES)}")
        return name

    @field_validator("seed_rows", mode="before")
    @classmethod
    def _number_or_all(cls, value: Any) -> Any:
        if value is None or value == "all":
            return value
        if not re.fullmatch(r"0*[1-9][0-9]*", str(value)):
            raise ValueError("must be a positive number of rows, or all")
        return int(value)


class FitConfig(Problem):
    """What determines the result of a fit."""

    column: str | None = Field(
        None, description="Feature column (list of numbers), or scalar columns joined as one vector: a,b,c."
    )
    weight: str | None = Field(None, description="Column of non-negative row weights.")
    metric: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="euclidean, or cosine: every row is scaled to unit length first."
    )
    spherical: bool = Field(
        False,
        description="Prototypes of unit length, as rows of metric cosine are: spherical k-means, hard or soft. "
        "temperature auto then is 1.3 sqrt(2 T_c / K), and annealing begins at four times T.",
    )
    temperature: float | str = Field(
        "auto",
        description="Softness T: auto, a number (units of squared distance), or a fraction of the collapse "
        "temperature such as 0.25Tc; auto is 0.1Tc. Logistic objectives have their first targets of it, and lambda; "
        "auto then is half of 2 lambda_max of the covariance within the clusters that they begin at.",
    )
    lam: float | None = Field(
        None,
        gt=0,
        description="The paper's regularisation lambda: in place of a temperature, T = lambda K; of logistic "
        "objectives their own (default: T / K, of kl a thousandth of it).",
    )
    balance: float = Field(
        0.0, ge=0, le=1, description="Strength beta of the pull towards equal cluster sizes: 0 none, 1 exactly equal."
    )
    marginal: tuple[float, ...] | None = Field(
        None,
        description="Shares that clusters are pulled towards, of any sum: K numbers, or the path of a file with them "
        "(.npy, .json or text); with balance or sinkhorn (default: equal ones).",
    )
    min_share: float = Field(0.0, ge=0, lt=1, description="Least share of the weight that a cluster may have.")
    max_share: float = Field(1.0, gt=0, le=1, description="Largest share of the weight that a cluster may have.")
    l1: float = Field(1.0, ge=0, description="tim: weight of the balance term.")
    l2: float = Field(1.0, ge=0, description="tim: weight of the conditional entropy.")
    l3: float = Field(1.0, gt=0, description="tim: weight of the cross entropy of targets and posteriors.")
    anneal: int = Field(
        0, ge=0, description="Steps in which T falls from 0.9 T_c to the temperature (soft-kmeans, sr-kmeans)."
    )
    empty: Literal["split", "farthest", "keep"] = Field(
        "split",
        description="Prototypes that lose all rows: split (moved beside that of the largest cluster), farthest (to the "
        "rows farthest from theirs, one pass more) or keep (as they are).",
    )
    max_steps: int = Field(300, ge=1, description="Most ADM steps.")
    max_time: float | None = Field(
        None, gt=0, description="Seconds after which no further step is begun; of a run that goes on, since it did."
    )
    tol: float = Field(
        1e-4,
        ge=0,
        description="Stop when the prototypes' squared shift falls to tol times the mean column variance "
        "(kmeans, soft-kmeans, sr-kmeans).",
    )
    objective_tol: float | None = Field(
        None,
        ge=0,
        description="Stop when the objective changes by less than this part of it in a step (default: 1e-6 for "
        "logistic objectives, which have no other rule, else 0).",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw.")
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Of matrix products. Hard assignments are screened in it and decided exactly, so that labels are "
        "the same: fp32, bf16 or int8; auto: the fastest here. Soft steps are fp32, or with bf16 their sums bf16.",
    )

    assignment: Literal["auto", "exact", "approximate"] = Field(
        "auto",
        description="Labels of kmeans in its steps: exact; approximate: the best of the most promising prototypes, "
        "without balance; auto: approximate from 131,072 clusters on, on a CPU and without balance. "
        "The last are exact.",
    )
    max_miss: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Share of the sampled rows to which an approximate assignment may give another label than an exact "
        "one; above it the next steps look farther, and at last are exact.",
    )
    device: str = Field("auto", description="auto (GPU where there is one), cpu, cuda or cuda:N.")

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("must be auto, cpu, cuda or cuda:N")
        return device

    @field_validator("temperature", mode="before")
    @classmethod
    def _readable_temperature(cls, value: Any) -> float | str:
        if value == "auto":
            return "auto"
        if isinstance(value, str) and (match := _FRACTION_OF_TC.fullmatch(value.strip())):
            fraction = _number(match["fraction"])
            if fraction is not None and fraction > 0:
                return f"{fraction:g}Tc"
        elif (number := _number(value)) is not None and number > 0:
            return number
        raise ValueError("must be auto, a positive number, or a positive fraction of T_c such as 0.1Tc")

    @model_validator(mode="after")
    def _one_softness(self) -> FitConfig:
        if self.lam is not None and self.temperature != "auto" and self._is_distance:
            raise ValueError("give temperature or lam, not both: T = lam * clusters")
        softness_given = self.lam is not None or self.temperature != "auto"
        if softness_given and not self.has_temperature:
            raise ValueError(f"{self.objective} has no temperature unless balance > 0; use a soft objective")
        return self

    @field_validator("marginal", mode="before")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        if value is None:
            return None
        shares = np.asarray(value, dtype=np.float64)
        if shares.ndim != 1 or not (np.isfinite(shares).all() and (shares > 0).all()):
            raise ValueError("must be K positive numbers")
        return tuple((shares / shares.sum()).tolist())

    @model_validator(mode="after")
    def _one_way_of_balance(self) -> FitConfig:
        from raydkm.objectives import OBJECTIVES

        distance, bounded = self._is_distance, self.bounded
        if not distance and (self.balance > 0 or bounded):
            raise ValueError(f"{self.objective} has its own balance; for another strength use tim with l1")
        if bounded and self.balance > 0:
            raise ValueError("give balance, or min_share and max_share, not both")
        if self.min_share * self.clusters > 1 + 1e-9 or self.max_share * self.clusters < 1 - 1e-9:
            raise ValueError(f"min_share and max_share: no {self.clusters} shares within them sum to 1")
        if self.marginal is not None:
            if len(self.marginal) != self.clusters:
                raise ValueError(f"marginal: {len(self.marginal)} shares for {self.clusters} clusters")
            if distance and not self.balance:
                raise ValueError("marginal: give balance, the strength of the pull towards it")
            if self.objective == "tim" and not self.l1:
                raise ValueError("marginal: give l1, the weight of the pull towards it")
        used = {"tim": "", "sinkhorn": "l1"}.get(self.objective, "l1 l2 l3")
        if any(getattr(self, name) != 1 for name in used.split()):
            raise ValueError(f"{self.objective} has its own {used.replace(' ', ', ')}; use tim")
        if self.spherical and (not distance or self.metric != "cosine"):
            raise ValueError("spherical goes with metric cosine, and kmeans, soft-kmeans or sr-kmeans")
        if self.anneal and (not distance or OBJECTIVES[self.objective].hard):
            raise ValueError("anneal goes with soft-kmeans and sr-kmeans")
        if self.anneal >= self.max_steps:
            raise ValueError(f"anneal: {self.anneal} steps do not end before max_steps = {self.max_steps}")
        if not distance and self.empty != "split":
            raise ValueError(f"empty: {self.objective} has no prototypes that could lose their rows")
        return self

    @model_validator(mode="after")
    def _one_way_of_assignment(self) -> FitConfig:
        if self.assignment == "approximate" and not self._may_approximate:
            raise ValueError("assignment: approximate goes with kmeans, without balance, min_share and max_share")
        if self.max_miss != type(self).model_fields["max_miss"].default and not self.approximate:
            raise ValueError("max_miss goes with an approximate assignment: of kmeans, with many clusters or asked for")
        return self

    @property
    def approximate(self) -> bool:
        """Whether labels of the steps are approximate, on a CPU."""
        from raydkm.ops.approximate import MANY_PROTOTYPES

        many = self.clusters >= MANY_PROTOTYPES and self._may_approximate
        return many if self.assignment == "auto" else self.assignment == "approximate"

    @property
    def _may_approximate(self) -> bool:
        from raydkm.objectives import OBJECTIVES

        return OBJECTIVES[self.objective].hard and not self.balance and not self.bounded

    @property
    def bounded(self) -> bool:
        """Whether the clusters' shares have bounds."""
        return self.min_share > 0 or self.max_share < 1

    @property
    def _is_distance(self) -> bool:
        from raydkm.objectives import OBJECTIVES
        from raydkm.objectives.distance import DistanceObjective

        return issubclass(OBJECTIVES[self.objective], DistanceObjective)

    @property
    def has_temperature(self) -> bool:
        """Whether the objective has a temperature: soft ones do, hard ones only as the price scale of the balance."""
        from raydkm.objectives import OBJECTIVES

        return self.balance > 0 or self.bounded or not OBJECTIVES[self.objective].hard

    def fraction_of_tc(self) -> float | None:
        """The temperature as a fraction of T_c, or None where it is absolute or automatic."""
        match = _FRACTION_OF_TC.fullmatch(str(self.temperature))
        return float(match["fraction"]) if match else None


class FeatureConfig(_Frozen):
    """What rows are made into before they are clustered, and how that is learned."""

    shape: str | None = Field(
        None,
        description="Shape of a row: channels x height x width of images (1x28x28), channels x length of series "
        "(3x100); encoded images (PNG, JPEG, ...) are resized to it.",
    )
    map: str | None = Field(
        None,
        description="Stages, in turn: center, standardize, whiten, pca:D, lda[:D], rff:D (random Fourier features), "
        "nystrom:D, unit; and, where no encoder follows, at the end neighbours:HOPS, by which a fit averages features "
        "over their nearest neighbours.",
    )
    encoder: str = Field(
        "identity",
        description="Network that makes features: identity, mlp, conv, tcn, or package.module:build, a function of the "
        "row's shape that returns a torch.nn.Module.",
    )
    encoder_args: str | None = Field(
        None, description="Its arguments, as name=value,name=value; numbers of a list are joined by -: channels=32-64."
    )
    feature_map: str | None = Field(
        None,
        description="Stages, as those of map, of an encoder's features for clustering them in a fit; the model's "
        "prototypes are means of the features themselves.",
    )
    view: Literal["auto", "image", "vector", "series"] = Field(
        "auto", description="Kind of random changes of a row that its cluster should not depend on; auto: by shape."
    )
    view_args: str | None = Field(
        None, description="Their amplitudes, as name=value,name=value: rotation=20 (see raydkm/features/views.py)."
    )
    strength: float = Field(1.0, ge=0, description="Factor of all of them.")
    last_strength: float | None = Field(
        None, ge=0, description="Their factor in the last round, which then has half the learning rate."
    )
    pretrain: Literal["none", "contrastive", "autoencoder"] = Field(
        "none",
        description="Training before there are clusters: contrastive (InfoNCE of two views of a row), autoencoder or "
        "none.",
    )
    pretrain_epochs: int = Field(8, ge=0, description="Epochs of it.")
    contrast_temperature: float = Field(0.3, gt=0, description="Temperature of InfoNCE.")
    positives: int = Field(
        0,
        ge=0,
        description="contrastive: afterwards, for positive_epochs, a row's second view is of one of so many nearest "
        "neighbours by its features, or of itself.",
    )
    positive_epochs: int = Field(3, ge=1, description="Epochs of that.")
    neighbours: int = Field(
        15, ge=1, description="Nearest neighbours of a row, for neighbours:HOPS of a map and for agreement."
    )
    agreement: float = Field(
        0.0,
        ge=0,
        le=1,
        description="A row is learned from in a round only if so large a part of its neighbours are of its cluster.",
    )
    rounds: int = Field(1, ge=0, description="Rounds of training on targets: the clusters of the features so far.")
    epochs: int = Field(6, ge=1, description="Epochs of each round.")
    loss: Literal["cross-entropy", "sr-kmeans"] = Field(
        "cross-entropy",
        description="Of a round: cross-entropy of the targets and a linear head's posteriors of a view; or sr-kmeans, "
        "the paper's: distances to prototypes, with the reconstruction of the row.",
    )
    reconstruction: float = Field(1.0, ge=0, description="sr-kmeans: weight of the reconstruction.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="cross-entropy: part of the targets that is spread over all clusters."
    )
    heads: int = Field(
        1, ge=1, description="Clusterings that are learned at the same time; that of least loss is kept."
    )
    overclustering: int = Field(
        1, ge=1, description="If above 1, further heads, as many as heads, learn so many times as many clusters."
    )
    batch: int = Field(512, ge=2, description="Rows of a step of training, of all workers together.")
    learning_rate: float = Field(1e-3, gt=0, description="Of AdamW, at its highest.")
    weight_decay: float = Field(1e-4, ge=0, description="Of AdamW.")
    amp: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of training: fp32, bf16, or auto: bf16 on GPUs and CPUs with AMX, else fp32."
    )

    @field_validator("shape", mode="before")
    @classmethod
    def _readable_shape(cls, shape: Any) -> Any:
        if shape is None:
            return None
        text = "x".join(map(str, shape)) if isinstance(shape, list | tuple) else str(shape)
        if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*){1,2}", text):
            raise ValueError("must be channels x height x width, or channels x length, such as 1x28x28")
        return text

    @field_validator("map", "feature_map")
    @classmethod
    def _known_stages(cls, stages: str | None) -> str | None:
        return None if stages is None else ",".join(map(str, parse(stages)))

    @field_validator("encoder_args", "view_args", mode="before")
    @classmethod
    def _readable_arguments(cls, given: Any) -> Any:
        if isinstance(given, dict):
            given = ",".join(
                f"{name}={'-'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
                for name, value in given.items()
            )
        if given is not None:
            arguments_of(given)
        return given

    @field_validator("encoder")
    @classmethod
    def _known_encoder(cls, encoder: str) -> str:
        if encoder not in _ENCODERS and not re.fullmatch(r"[\w.]+:\w+", encoder):
            raise ValueError(f"must be one of {', '.join(_ENCODERS)}, or package.module:function")
        return encoder

    @model_validator(mode="after")
    def _used(self) -> FeatureConfig:
        changed = [name for name in type(self).model_fields if self._is_set(name)]
        if not self.trains:
            idle = [name for name in changed if name not in ("shape", "map", "neighbours")]
            if idle:
                raise ValueError(f"{idle[0]} goes with an encoder")
        if self.trains and any(stage.name == "neighbours" for stage in _stages(self.map)):
            raise ValueError("map: neighbours is for what is clustered; with an encoder it goes to feature_map")
        if not self.hops and not self.agreement and self._is_set("neighbours"):
            raise ValueError("neighbours goes with agreement, or neighbours:HOPS at the end of map or feature_map")
        if self.pretrain == "none" and self._is_set("pretrain_epochs"):
            raise ValueError("pretrain_epochs goes with pretrain")
        if self.pretrain != "contrastive" and (self.positives or self._is_set("contrast_temperature")):
            raise ValueError("positives and contrast_temperature go with pretrain contrastive")
        if not self.positives and self._is_set("positive_epochs"):
            raise ValueError("positive_epochs goes with positives")
        if self.loss != "sr-kmeans" and self._is_set("reconstruction"):
            raise ValueError("reconstruction goes with loss sr-kmeans")
        if self.loss == "sr-kmeans" and (self.heads > 1 or self.overclustering > 1 or self.label_smoothing):
            raise ValueError("heads, overclustering and label_smoothing go with loss cross-entropy")
        if self.loss == "sr-kmeans" and self.feature_map is not None:
            raise ValueError(
                "feature_map goes with loss cross-entropy; sr-kmeans trains towards the prototypes themselves"
            )
        of_rounds = [
            "epochs",
            "loss",
            "heads",
            "overclustering",
            "agreement",
            "last_strength",
            "label_smoothing",
            "reconstruction",
        ]
        if self.rounds == 0 and (idle := [name for name in of_rounds if self._is_set(name)]):
            raise ValueError(f"{idle[0]} goes with rounds")
        if self.loss == "sr-kmeans" and self.pretrain != "contrastive":
            unseen = [name for name in ("view", "view_args", "strength", "last_strength") if self._is_set(name)]
            if unseen:
                raise ValueError(f"{unseen[0]} goes with pretrain contrastive, or loss cross-entropy")
        if self.trains and self.pretrain == "none" and self.rounds == 0:
            raise ValueError(f"encoder {self.encoder} would not be trained: give pretrain or rounds")
        return self

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def trains(self) -> bool:
        """Whether there is a network to train."""
        return self.encoder != "identity"

    @property
    def has_head(self) -> bool:
        """Whether a linear head is trained, which then assigns rows."""
        return self.trains and self.rounds > 0 and self.loss == "cross-entropy"

    @property
    def plain(self) -> bool:
        """Whether features are the rows as they are."""
        return not self.trains and self.map is None

    @property
    def dims(self) -> tuple[int, ...] | None:
        """The shape of a row as numbers."""
        return None if self.shape is None else tuple(map(int, self.shape.split("x")))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The maps before an encoder."""
        return tuple(stage for stage in _stages(self.map) if stage.name != "neighbours")

    @property
    def feature_stages(self) -> tuple[Stage, ...]:
        """The maps after it."""
        return tuple(stage for stage in _stages(self.feature_map) if stage.name != "neighbours")

    @property
    def hops(self) -> int:
        """How often a fit averages over neighbours."""
        both = _stages(self.map) + _stages(self.feature_map)
        return sum(stage.number or 0 for stage in both if stage.name == "neighbours")


def _stages(text: str | None) -> tuple[Stage, ...]:
    return () if text is None else parse(text)


_ENCODERS = ("identity", "mlp", "conv", "tcn")

#: Rows are clustered as they are.
AS_THEY_ARE = FeatureConfig()


def arguments_of(text: str | None) -> dict[str, Any]:
    """The values in ``name=value,name=value``: numbers, lists of them joined by -, true and false, else words.

    Raises
    ------
    ValueError
    """
    found: dict[str, Any] = {}
    for part in [] if text is None else text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or not name.isidentifier() or not value:
            raise ValueError(f"must be name=value,name=value; {part.strip()!r} is not")
        if re.fullmatch(r"[0-9]+(-[0-9]+)+", value):
            found[name] = tuple(map(int, value.split("-")))
        elif re.fullmatch(r"-?[0-9]+", value):
            found[name] = int(value)
        elif (number := _number(value)) is not None:
            found[name] = number
        else:
            found[name] = {"true": True, "false": False}.get(value.lower(), value)
    return found


class RunConfig(_Frozen):
    """Where a fit or an assignment is computed; changes nothing in its result."""

    engine: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="local: in this process; ray: on a Ray cluster; auto: ray with --workers, where a "
        "cluster is connected (RAY_ADDRESS) or the data is of Ray Data, else local.",
    )
    workers: int | tuple[int, int] | None = Field(
        None,
        description="Workers on Ray, or MIN:MAX of them, as many as the cluster has room for at the time (default: one "
        "a node; of a fit on GPUs, one a GPU).",
    )
    threads: int | None = Field(None, ge=1, description="Threads of each worker (default: its CPUs).")

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(":")
        if isinstance(value, list | tuple) and len(value) == 1:
            [value] = value
        parts = value if isinstance(value, list | tuple) else [value]
        numbers = [int(part) for part in parts if re.fullmatch(r"[0-9]+", str(part))]
        if value is not None and (
            len(numbers) != len(parts) or len(parts) > 2 or sorted(numbers) != numbers or numbers[0] < 1
        ):
            raise ValueError("must be a positive number of workers, or MIN:MAX with MIN up to MAX")
        return value if value is None else numbers[0] if len(numbers) == 1 else tuple(numbers)


class AssignConfig(RunConfig):
    """Where an assignment is computed, and how the best prototypes are found."""

    index: Literal["auto", "flat", "ivf", "hnsw"] = Field(
        "auto",
        description="FAISS index of a hard model's prototypes: flat (all are compared), ivf, hnsw, or auto: flat below "
        "16,384 clusters, else the cheapest that reaches the recall. Of soft models all are compared.",
    )
    recall: float = Field(
        0.999,
        gt=0,
        le=1,
        description="Share of the rows, measured on the first ones, whose best prototype ivf or hnsw has to find; else "
        "the index is flat.",
    )
    range_rows: int = Field(
        262_144, ge=1, description="Most rows of an output file, which is of whole row groups of an input file."
    )
    partition_by: Literal["cluster"] | None = Field(
        None, description="cluster: a directory cluster=K for the rows of each cluster, instead of a column."
    )
    nearest: int | None = Field(
        None, ge=1, description="Also write the N rows of each cluster that are closest to its prototype."
    )


class FitRunConfig(RunConfig):
    """Where a fit is computed, and what survives a failure."""

    cache: Literal["auto", "device", "host", "disk", "stream"] = Field(
        "auto",
        description="Where a worker holds its rows: device (GPU) memory, host memory, local disk (memory-mapped, in "
        "TMPDIR); stream: nowhere, they are read again at each pass; auto: each part in the fastest with room.",
    )
    memory_budget: float | None = Field(
        None,
        gt=0,
        description="GiB of rows that a worker may hold in host memory, with cache auto (default: half its share of "
        "the memory there is).",
    )
    run_dir: str | None = Field(
        None,
        description="Directory (path or URI, reached by all nodes) for checkpoints; a fit started again with the same "
        "one goes on after the last.",
    )
    checkpoint_every: float = Field(30.0, ge=0, description="Seconds between checkpoints in run_dir.")
    max_failures: int = Field(3, ge=0, description="Lost workers or nodes after which a Ray run gives up.")
    timeout: float = Field(
        600.0,
        gt=0,
        description="Seconds that workers of a Ray run wait for one that does not answer, before it is lost.",
    )

    @field_validator("run_dir")
    @classmethod
    def _same_place_for_every_worker(cls, run_dir: str | None) -> str | None:
        return run_dir if run_dir is None or "://" in run_dir else os.path.abspath(run_dir)


class PlanConfig(Problem):
    """What a fit's cost is estimated from."""

    rows: int = Field(..., ge=1, description="Number of rows N.")
    dim: int = Field(..., ge=1, description="Dimensions d.")
    dtype: Literal["float64", "float32", "float16", "int8", "uint8"] = Field(
        "float32", description="Of the stored rows, in which they are held."
    )
    steps: int = Field(30, ge=1, description="ADM steps S.")
    workers: int = Field(1, ge=1, description="Workers, each on a node (or GPU) of its own.")
    device: Literal["cpu", "a100", "h100"] = Field("cpu", description="Kind of device of a worker.")
    threads: int = Field(8, ge=1, description="Threads of each worker, on a CPU.")
    memory: float = Field(64.0, gt=0, description="GiB of host memory of each worker.")
    disk: float = Field(0.0, ge=0, description="GiB of local disk of each worker for rows, in TMPDIR.")
    network: float = Field(10.0, gt=0, description="Gbit/s of each worker to the others.")
    storage: float = Field(
        1.0, gt=0, description="GB/s of each worker from the storage of the files, decoding included."
    )
    storage_of_all: float | None = Field(
        None, gt=0, description="GB/s of the storage to all workers together (default: as many times storage)."
    )
    deadline: float | None = Field(None, gt=0, description="Hours in which the fit is to end: how many workers then?")

    @property
    def fit(self) -> FitConfig:
        """The fit that is planned; all else in it is as by default."""
        return FitConfig(**{name: getattr(self, name) for name in Problem.model_fields})


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def configure(options: dict[str, Any]) -> tuple[FitConfig, FeatureConfig, FitRunConfig]:
    """Sort `options` into the three configurations; raise `ConfigError` on an unknown or impossible one."""
    models: tuple[type[_Frozen], ...] = (FitConfig, FeatureConfig, FitRunConfig)
    for name in options:
        _known(name, [name for model in models for name in model.model_fields])
    found = [build(model, {k: v for k, v in options.items() if k in model.model_fields}) for model in models]
    return tuple(found)  # type: ignore[return-value]


def build(model: type[_Config], values: dict[str, Any]) -> _Config:
    """Validate `values` as a configuration; raise `ConfigError` on an unknown or impossible one."""
    for name in values:
        _known(name, [*model.model_fields])
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(e) for e in error.errors())) from None


def _known(name: str, names: list[str]) -> None:
    if name not in names:
        hint = get_close_matches(name, names, n=1)
        raise ConfigError(f"unknown configuration key '{name}'" + (f"; did you mean '{hint[0]}'?" if hint else ""))


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    what = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{where}: {what} (got {error['input']!r})" if where else what


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read configuration keys from a YAML file: one flat mapping with the names of the CLI's options."""
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping of configuration keys, found {type(loaded).__name__}")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}
